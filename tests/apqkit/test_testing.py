from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import apqkit.testing as testing_module
from apqkit.config import SpaceConfig
from apqkit.cost import BitFusionCost, NetworkCost
from apqkit.cost.bitfusion import BITFUSION_ARRAYS
from apqkit.formats import FORMATS, NumberFormat
from apqkit.quant.calibration import calibrate
from apqkit.quant.quantize import fake_quantize
from apqkit.search.strategies import STRATEGIES, Proposal
from apqkit.spaces.draws import draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions
from apqkit.testing import (
    check_cost_model,
    check_dims,
    check_format,
    check_space,
    check_strategy,
    count_macs,
)


def sentence_of(check, *args, **kwargs):
    """What a check says; it must fail."""
    with pytest.raises(AssertionError) as caught:
        check(*args, **kwargs)
    return str(caught.value)


class Broken:
    """A space with some of its methods replaced."""

    def __init__(self, space, **methods):
        self._space = space
        for name, method in methods.items():
            setattr(self, name, method)

    def __getattr__(self, name):
        return getattr(self._space, name)


@pytest.fixture(scope="module")
def space():
    options = MobileNetOptions(
        stages=(StageOptions(width=8, depth=2), StageOptions(width=8, depth=2, stride=2)),
        hidden_choices=3,
        head=16,
    )
    config = SpaceConfig(weight_formats=("int4", "int8"), activation_formats=("int4", "int8"))
    return MobileNetSpace(config, options, (1, 8, 8), 4)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def table(space):
    return space.network(draw_uniform(space, 12, np.random.default_rng(0)))


def features_of(picks):
    return picks.astype(np.float64)


def costs_of(space):
    return lambda picks: NetworkCost().cost(space.network(picks))


def test_a_sound_space_passes(space, images):
    check_space(space, images)
    check_dims(space, features_of, costs_of(space), images, candidates=1)


def test_repair_that_goes_on_is_found(space, images):
    def repair(picks):
        flipped = space.repair(picks)
        flipped[:, 0] = 1 - flipped[:, 0]
        return flipped

    said = sentence_of(check_space, Broken(space, repair=repair), images)
    assert said == "repair is not idempotent"


def test_a_description_that_loses_a_dim_is_found(space, images):
    def describe(picks):
        return [
            {k: v for k, v in each.items() if k != "depth.s0"} for each in space.describe(picks)
        ]

    picks = draw_uniform(space, 6, np.random.default_rng(0))
    first = next(each for each in picks if each[0] != 0)
    said = sentence_of(check_space, Broken(space, describe=describe), images)
    assert said == f"describe loses what picks say: {describe(first[None])[0]}"


class Forgetful:
    """A supernet whose extracted networks are not those that it selects."""

    def __init__(self, net):
        self._net = net

    def train(self):
        self._net.train()
        return self

    def select(self, layers):
        self._net.select(layers)

    def extract(self, layers):
        extracted = self._net.extract(layers)
        with torch.no_grad():
            extracted.units["classifier"].bias.add_(0.01)
        return extracted

    def __call__(self, images):
        return self._net(images)


def test_a_network_that_is_not_the_selected_one_is_found(space, images):
    broken = Broken(space, supernet=lambda seed: Forgetful(space.supernet(seed)))
    assert sentence_of(check_space, broken, images) == (
        "select and extract differ for candidate 0"
    )


def test_a_table_that_states_other_macs_is_found(space, images):
    def network(picks):
        table = replace(space.network(picks))
        table.__dict__["macs"] = table.macs + (np.arange(len(table.names)) == 1)
        return table

    said = sentence_of(check_space, Broken(space, network=network), images)
    drawn = draw_uniform(space, 6, np.random.default_rng(0))
    true = int(space.network(drawn).macs[0].sum())
    assert said == f"the table of candidate 0 states {true + 1} MACs, its network makes {true}"


def inactive_name(space, seed=0):
    row = draw_uniform(space, 1, np.random.default_rng(seed))
    active = space.active(row)[0]
    return next(dim.name for dim, used in zip(space.dims, active, strict=True) if not used)


def test_an_inactive_dim_that_leaves_a_trace_is_found(space, images):
    broken = Broken(space, repair=lambda picks: picks)
    said = sentence_of(check_dims, broken, features_of, costs_of(space), images, candidates=4)
    name = said.removeprefix("inactive ").removesuffix(" leaves a trace")
    assert said == f"inactive {name} leaves a trace"
    assert ".b1" in name  # of a block beyond the depth


@pytest.mark.parametrize("name", ["width.s0", "keep.s0.b0", "a_format.head"])
def test_features_that_ignore_a_dim_are_found(space, images, name):
    column = [each.name for each in space.dims].index(name)

    def features(picks):
        return np.delete(picks, column, axis=1).astype(np.float64)

    said = sentence_of(check_dims, space, features, costs_of(space), images, candidates=1)
    assert said == f"{name} does not change predictor input"


@pytest.mark.parametrize("name", ["width.s0", "w_format.s0.b0.expand"])
def test_a_network_table_that_ignores_a_dim_is_found(space, images, name):
    column = [each.name for each in space.dims].index(name)

    def network(picks):
        frozen = picks.copy()
        frozen[:, column] = 0
        return space.network(frozen)

    broken = Broken(space, network=network)
    said = sentence_of(check_dims, broken, features_of, costs_of(space), images, candidates=1)
    assert said == f"{name} does not change the network table"


def test_costs_that_ignore_a_dim_are_found(space, images):
    def costs(picks):
        return {"macs": space.network(picks).macs.sum(axis=1).astype(np.float64)}

    said = sentence_of(check_dims, space, features_of, costs, images, candidates=1)
    assert said == "w_format.s0.b0.expand changes no cost"  # the first dim of formats


def test_a_supernet_that_ignores_a_dim_is_found(space, images):
    class Deaf(Forgetful):
        def select(self, layers):
            in_int8 = [
                replace(each, weight_format=each.weight_format and "int8") for each in layers
            ]
            self._net.select(in_int8)

        def __call__(self, images):
            logits = self._net(images)
            return logits + 1e-7 * torch.rand(logits.shape)  # what rounding does

    broken = Broken(space, supernet=lambda seed: Deaf(space.supernet(seed)))
    said = sentence_of(check_dims, broken, features_of, costs_of(space), images, candidates=1)
    assert said == "w_format.s0.b0.expand does not change the supernet's output"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_passes(name):
    check_format(name)


def shrunk(x, number_format, *, scale):
    return fake_quantize(x, number_format, scale=scale) * 0.6


def falling(x, number_format, *, scale):
    return fake_quantize(-x, number_format, scale=scale)


def without_zero(x, number_format, *, scale):
    quantized = fake_quantize(x, number_format, scale=scale)
    return torch.where(quantized == 0, scale, quantized)


def without_nan(x, number_format, *, scale):
    return fake_quantize(x.nan_to_num(), number_format, scale=scale)


def too_fine(x, number_format, *, scale):
    return fake_quantize(x, number_format, scale=scale / 2)


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (shrunk, "int4: quantizing twice changes values"),
        (falling, "int4: quantizing twice changes values"),
        (without_zero, "int4: zero becomes 0.25"),
        (without_nan, "int4: nan is not refused"),
        (too_fine, "int4: the largest value is 0.875, not 1.75"),
    ],
)
def test_a_broken_quantizer_is_found(monkeypatch, broken, text):
    monkeypatch.setattr(testing_module, "fake_quantize", broken)
    assert sentence_of(check_format, "int4") == text


def test_a_quantizer_that_turns_values_around_is_found(monkeypatch):
    def swapped(x, number_format, *, scale):
        quantized = fake_quantize(x, number_format, scale=scale)
        return torch.where(quantized == 0.5, 0.75, torch.where(quantized == 0.75, 0.5, quantized))

    def twice_swapped(x, number_format, *, scale):
        on_grid = torch.equal(x, fake_quantize(x, number_format, scale=scale))
        return x if on_grid else swapped(x, number_format, scale=scale)

    monkeypatch.setattr(testing_module, "fake_quantize", twice_swapped)
    assert sentence_of(check_format, "int4") == "int4: order is not kept"


def test_a_format_with_more_values_than_bits_is_found(monkeypatch):
    # 0 .5 1 1.5 2 2.5 3 3.5 4 5 6 7 8 10 and their negatives
    wide = NumberFormat("wide", "float", 4, exponent_bits=1, max_value=10.0)
    monkeypatch.setitem(FORMATS, "wide", wide)
    assert sentence_of(check_format, "wide") == "wide: 27 values in 4 bits"


@dataclass
class Cost:
    """A cost model that says what it is told to."""

    figures: dict
    metrics: tuple = ("macs",)

    def cost(self, table):
        return {name: rule(table) for name, rule in self.figures.items()}


def macs(table):
    return table.macs.sum(axis=1).astype(np.float64)


@pytest.mark.parametrize(
    "model", [NetworkCost(), BitFusionCost(BITFUSION_ARRAYS["bitfusion-2x4"], batch=1)]
)
def test_shipped_cost_models_pass(model, table):
    check_cost_model(model, table)


def test_a_candidate_that_a_device_cannot_run_may_have_no_figure(table):
    check_cost_model(
        Cost({"macs": lambda each: np.where(macs(each) > np.median(macs(table)), np.nan, 1.0)}),
        table,
    )


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"macs": macs, "ms": macs}, "metrics ('macs',) but costs {'macs', 'ms'}"),
        ({"macs": lambda table: macs(table)[:, None]}, "macs has shape (12, 1)"),
        ({"macs": lambda table: macs(table) - 1e9}, "macs is not always positive"),
        ({"macs": lambda table: 0.0 * macs(table)}, "macs is not always positive"),
        (
            {"macs": lambda table: macs(table) + np.arange(len(table))},
            "macs depends on the order of candidates",
        ),
    ],
)
def test_a_broken_cost_model_is_found(table, figures, text):
    said = sentence_of(check_cost_model, Cost(figures), table)
    assert said in (text, text.replace("{'macs', 'ms'}", "{'ms', 'macs'}"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_shipped_strategies_pass(space, name):
    check_strategy(STRATEGIES[name], space)


def proposing(change):
    """A strategy that spoils what random search proposes."""

    def propose(problem, known, count, rng):
        return change(STRATEGIES["random"](problem, known, count, rng), problem, known)

    return propose


def test_a_strategy_that_forgets_its_seed_is_found(space):
    calls = []

    def change(proposal, problem, known):
        calls.append(proposal)
        keep = len(calls)
        return Proposal(proposal.picks[:keep], proposal.origins[:keep])

    assert sentence_of(check_strategy, proposing(change), space) == (
        "the same seed proposes other candidates"
    )


def test_a_strategy_that_proposes_without_origins_is_found(space):
    change = proposing(lambda proposal, problem, known: Proposal(proposal.picks, ()))
    assert sentence_of(check_strategy, change, space) == "not every candidate has an origin"


def test_a_strategy_that_leaves_the_canonical_form_is_found(space):
    def change(proposal, problem, known):
        spoiled = np.where(space.active(proposal.picks), proposal.picks, 1)
        return Proposal(spoiled, proposal.origins)

    assert sentence_of(check_strategy, proposing(change), space) == "a proposal is not canonical"


def test_a_strategy_that_proposes_what_is_known_is_found(space):
    def change(proposal, problem, known):
        return Proposal(known.picks[:3], ("random",) * 3)

    assert sentence_of(check_strategy, proposing(change), space) == "a proposal is not new"


def test_a_strategy_that_repeats_itself_is_found(space):
    def change(proposal, problem, known):
        return Proposal(proposal.picks[[0, 0]], proposal.origins[:2])

    assert sentence_of(check_strategy, proposing(change), space) == "a proposal is not new"


def test_a_strategy_that_exceeds_a_limit_is_found(space):
    def change(proposal, problem, known):
        drawn = draw_uniform(problem.space, 50, np.random.default_rng(99))
        largest = drawn[[np.argmax(macs(problem.space.network(drawn)))]]
        return Proposal(largest, ("random",))

    assert sentence_of(check_strategy, proposing(change), space) == "a proposal exceeds the limit"


def test_macs_are_counted_at_the_layers(space, images):
    layers = space.network(draw_uniform(space, 1, np.random.default_rng(4))).layers()
    model = space.supernet(0).extract(layers)
    calibrate(model, images)
    expected = 0
    for layer in layers:
        if layer.weight_format is None:
            continue
        size = (1, 1)
        if layer.op == "conv":
            size = (-(-layer.in_height // layer.stride), -(-layer.in_width // layer.stride))
        taps = layer.kernel**2 * layer.in_channels // layer.groups
        expected += taps * layer.out_channels * size[0] * size[1]
    before = model(images)
    assert count_macs(model, images[:1]) == expected
    assert count_macs(model, images) == 4 * expected
    assert torch.equal(model(images), before)
    assert not any("compute" in vars(each) for each in model.modules())

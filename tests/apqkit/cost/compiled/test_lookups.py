from contextlib import contextmanager
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.config import SpaceConfig, load_config
from apqkit.cost.bitfusion import BITFUSION_ARRAYS, BitFusionCost
from apqkit.cost.compiled import compile_cost
from apqkit.cost.lut import make_table
from apqkit.cost.lut_cost import LutCost, wanted_keys
from apqkit.cost.network import layer_bops
from apqkit.cost.roofline import ROOFLINES, RooflineCost
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.spaces import build_space
from apqkit.spaces.draws import draw_hierarchical, draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions

HEADER = {
    "units": "ms", "batch": "1", "runtime_rules": "onnxruntime", "fp32_block": "16",
    "device": "toy",
}  # fmt: skip


class Summed:
    """An additive model from one function of network tables."""

    peaks = ()

    def __init__(self, **terms):
        self.terms = terms
        self.metrics = tuple(terms)

    def layer_terms(self, table):
        return {name: price(table).astype(float) for name, price in self.terms.items()}

    def totals(self, sums):
        return dict(sums)

    def cost(self, table):
        return {name: rows.sum(axis=1) for name, rows in self.layer_terms(table).items()}


class ListedProgress:
    """Notes what it is told."""

    def __init__(self):
        self.tasks = []

    @contextmanager
    def task(self, label, total):
        steps = []
        yield steps.append
        self.tasks.append((label, total, sum(steps), min(steps)))

    def note(self, text):
        del text


def drawn(space, count, seed=0):
    """Uniform and hierarchical candidates, and ones that were not brought into canonical form."""
    rng = np.random.default_rng(seed)
    raw = [rng.integers(0, len(dim.choices), count) for dim in space.dims]
    return np.concatenate(
        [draw_uniform(space, count, rng), draw_hierarchical(space, count, rng), np.stack(raw, 1)]
    )


def lut_cost(space, *, edges=True, share=1.0):
    """Made-up prices of everything that networks of a space need, or of a share of it."""
    rng = np.random.default_rng(0)
    keys = wanted_keys(space.network(drawn(space, 1500)), block=16).keys
    keys = keys[rng.random(len(keys)) < share]
    latency = rng.uniform(0.01, 1.0, len(keys))
    return LutCost(make_table(HEADER, keys, latency, sd_ms=0.1 * latency), edges=edges)


def shipped(name, image_shape, **changes):
    config = load_config(name).space
    return build_space(config.model_copy(update=changes), image_shape, 10)


def assert_equals_the_model(compiled, model, space, picks):
    expected = model.cost(space.network(picks))
    found = compiled(picks)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=0.0, err_msg=name)


@pytest.fixture(scope="module")
def integers_and_fp32():
    """A space whose every format has a kernel, so that conversions abound and nothing is NaN."""
    names = ("int4", "int8", "fp32")
    stages = (StageOptions(width=8, depth=3), StageOptions(width=12, depth=2, stride=2))
    options = MobileNetOptions(stages=stages, hidden_choices=3, head=16, depthwise_formats=names)
    config = SpaceConfig(weight_formats=names, activation_formats=names, first_last_formats=names)
    return MobileNetSpace(config, options, (3, 12, 12), 5)


@pytest.fixture(scope="module")
def cases(tiny_space, integers_and_fp32):
    """Models, and the space whose candidates they price."""
    return {
        "conversions": (lut_cost(integers_and_fp32), integers_and_fp32),
        "no conversions": (lut_cost(integers_and_fp32, edges=False), integers_and_fp32),
        "rows that are estimated": (lut_cost(integers_and_fp32, share=0.7), integers_and_fp32),
        "formats without a kernel": (lut_cost(tiny_space), tiny_space),
        "simulator": (BitFusionCost(BITFUSION_ARRAYS["bitfusion-2x4"], batch=2), tiny_space),
        "roofline": (RooflineCost(ROOFLINES["t4"], batch=4), tiny_space),
        "counts": (Summed(macs=lambda table: table.macs, bops=layer_bops), tiny_space),
    }


NAMES = (
    "conversions", "no conversions", "rows that are estimated", "formats without a kernel",
    "simulator", "roofline", "counts",
)  # fmt: skip


@pytest.fixture(scope="module")
def compiled(cases):
    return {name: compile_cost(model, space) for name, (model, space) in cases.items()}


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_picks_cost_what_their_networks_cost(name, cases, compiled, data):
    model, space = cases[name]
    pick = st.tuples(*(st.integers(0, len(dim.choices) - 1) for dim in space.dims))
    picks = np.array(data.draw(st.lists(pick, min_size=1, max_size=5)))
    assert_equals_the_model(compiled[name], model, space, picks)


@pytest.mark.parametrize("name", NAMES)
def test_random_candidates_cost_what_their_networks_cost(name, cases, compiled):
    model, space = cases[name]
    assert_equals_the_model(compiled[name], model, space, drawn(space, 1000, seed=1))
    assert compiled[name].metrics == model.metrics


def test_the_cases_hold_what_they_are_named_for(cases):
    def latency(name):
        model, space = cases[name]
        return model.cost(space.network(drawn(space, 300)))["latency_ms"]

    assert np.median(latency("conversions") / latency("no conversions")) > 1.2
    assert 20 < np.isfinite(latency("formats without a kernel")).sum() < 880
    assert not np.allclose(latency("rows that are estimated"), latency("conversions"))
    assert cases["rows that are estimated"][0].coverage.estimated


@pytest.mark.parametrize("name", NAMES)
def test_canonical_form_changes_no_price(name, cases, compiled):
    space = cases[name][1]
    picks = drawn(space, 500, seed=2)
    canonical = space.repair(picks)
    assert (picks != canonical).any()
    for metric, values in compiled[name](picks).items():
        np.testing.assert_array_equal(values, compiled[name](canonical)[metric])


def test_any_number_of_candidates_goes_the_same_way(compiled, tiny_space):
    picks = draw_uniform(tiny_space, 5000, np.random.default_rng(3))
    cost = compiled["counts"]
    every = cost(picks)["bops"]
    assert cost(picks[:0])["bops"].shape == (0,)
    for index in (0, 4095, 4096, 4999):
        assert cost(picks[index : index + 1])["bops"][0] == every[index]
    assert np.array_equal(cost(np.asfortranarray(picks.astype(np.int8)))["bops"], every)


def test_the_shipped_space_of_a_table_compiles_from_few_networks():
    """A few thousand random ones to find faults, twice, and what fills the tables."""
    space = shipped("fashion-mnist", (1, 28, 28))
    model = lut_cost(space)
    compiled = compile_cost(model, space)
    assert_equals_the_model(compiled, model, space, drawn(space, 1000, seed=4))
    assert compiled.networks < 20_000


def test_the_shipped_space_of_the_simulator_compiles_from_few_networks():
    space = shipped("digits", (1, 8, 8))
    model = BitFusionCost(BITFUSION_ARRAYS["bitfusion-2x4"])
    compiled = compile_cost(model, space)
    assert_equals_the_model(compiled, model, space, drawn(space, 1000, seed=4))
    assert compiled.networks < 25_000


def test_formats_passed_on_by_residuals_do_not_blow_up_the_tables(compiled):
    """What a layer converts depends on the formats of all blocks of the stage before it."""
    assert compiled["conversions"].networks < 50_000
    assert compiled["conversions"].entries < 40_000


_FAR = {"s0.b0.expand": "int4", "s0.b1.project": "fp32", "s1.b1.expand": "int8", "head": "int4"}


def interacting(rows):
    """The first row is dearer where the weights of the named rows are in certain formats."""

    def price(table):
        columns = [table.names.index(row) for row in rows]
        codes = [format_code(_FAR[row]) for row in rows]
        met = (table.weight_format[:, columns] == codes).all(axis=1)
        return (np.arange(len(table.names)) == 0) * (1.0 + met[:, None])

    return Summed(latency_ms=price)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_dims_that_act_only_together_are_found_however_far_apart(tiny_space, count):
    """Four of them show in one random network of a thousand."""
    model = interacting(list(_FAR)[:count])
    compiled = compile_cost(model, tiny_space)
    picks = drawn(tiny_space, 3000, seed=5)
    for row, name in _FAR.items():  # and networks in which they nearly act
        column = [dim.name for dim in tiny_space.dims].index(f"w_format.{row}")
        close = np.random.default_rng(column).random(len(picks)) < 0.8
        picks[close, column] = tiny_space.dims[column].choices.index(name)
    met = model.cost(tiny_space.network(picks))["latency_ms"] == 2.0
    assert 0.05 < met.mean() < 0.95
    assert_equals_the_model(compiled, model, tiny_space, picks)


def test_a_seed_gives_the_same_tables_again(cases, compiled):
    model, space = cases["conversions"]
    picks = drawn(space, 300, seed=6)
    one, same = compiled["conversions"], compile_cost(model, space, seed=0)
    assert (one.networks, one.entries) == (same.networks, same.entries)
    for name, values in one(picks).items():
        assert values.tobytes() == same(picks)[name].tobytes()


def test_another_seed_gives_the_same_prices(cases, compiled):
    model, space = cases["simulator"]
    picks = drawn(space, 300, seed=7)
    other = compile_cost(model, space, seed=1)
    for name, values in compiled["simulator"](picks).items():
        np.testing.assert_allclose(other(picks)[name], values, rtol=1e-12)


def test_a_row_that_depends_on_too_much_is_named_with_its_dims(tiny_space):
    def price(table):
        codes = table.weight_format + 100 * table.activation_format
        entangled = np.sin((codes * np.sqrt(1.0 + np.arange(codes.shape[1]))).sum(axis=1))
        return np.where(np.arange(len(table.names)) == 3, entangled[:, None], 0.0)

    words = ("w_format", "a_format", "depth")
    dims = [dim for dim in tiny_space.dims if dim.name.startswith(words)]
    combinations = prod(len(dim.choices) for dim in dims)
    with pytest.raises(CostError) as caught:
        compile_cost(Summed(latency_ms=price), tiny_space)
    assert str(caught.value) == (
        f"row 's0.b0.expand' cannot be tabulated: it depends on {len(dims)} dims in "
        f"{combinations} combinations, at most 65536 are held: "
        f"{', '.join(dim.name for dim in dims)}"
    )


def test_a_model_that_changes_its_mind_is_refused(tiny_space):
    rng = np.random.default_rng(0)

    def price(table):
        return np.where(np.arange(len(table.names)) == 2, rng.random((len(table), 1)) < 0.001, 0)

    with pytest.raises(CostError) as caught:
        compile_cost(Summed(latency_ms=price), tiny_space)
    assert str(caught.value) == (
        "row 'stem' cannot be tabulated: one network was given different prices"
    )


@pytest.mark.parametrize(
    ("picks", "text"),
    [
        (np.zeros((2, 3), dtype=int), "picks must be of shape (n, {k}), got (2, 3)"),
        (np.zeros(3, dtype=int), "picks must be of shape (n, {k}), got (3,)"),
        (2, "picks of depth.s0 must be 0 to 1, got 2"),
        (-1, "picks of depth.s0 must be 0 to 1, got -1"),
    ],
)
def test_picks_of_no_candidate_are_refused(compiled, tiny_space, picks, text):
    k = len(tiny_space.dims)
    if isinstance(picks, int):
        depth = picks
        picks = np.zeros((3, k), dtype=int)
        picks[1, 0] = depth
    with pytest.raises(CostError) as caught:
        compiled["counts"](picks)
    assert str(caught.value) == text.format(k=k)


def test_progress_counts_the_rows(tiny_space, tiny_networks):
    progress, rows = ListedProgress(), len(tiny_networks.names)
    compile_cost(Summed(macs=lambda table: table.macs), tiny_space, progress=progress)
    assert progress.tasks == [("cost, tabulating rows", rows, rows, 0)]

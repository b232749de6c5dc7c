import time

import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.cost import BitFusionCost, compile_cost
from apqkit.cost.bitfusion import BITFUSION_ARRAYS
from apqkit.cost.network import NetworkCost
from apqkit.errors import ConfigError
from apqkit.search.self_test import check_dims_matter, dim_effects
from apqkit.spaces.apq import ApqOptions, ApqSpace


def one_hot(space):
    """Masked columns, one a choice."""
    counts = [len(dim.choices) for dim in space.dims]

    def read(picks):
        active = space.active(picks)
        return np.hstack(
            [
                (picks[:, [column]] == np.arange(count)) * active[:, [column]] * 1.0
                for column, count in enumerate(counts)
            ]
        )

    return read


def blind_to(space, names, read):
    hidden = [index for index, dim in enumerate(space.dims) if dim.name in names]

    def blind(picks):
        picks = picks.copy()
        picks[:, hidden] = 0
        return read(picks)

    return blind


@pytest.fixture
def costs(mobilenet):
    return lambda picks: NetworkCost().cost(mobilenet.network(picks))


def test_a_space_whose_dims_all_matter_passes(mobilenet, costs):
    found = dim_effects(mobilenet, costs, {"predictor input": one_hot(mobilenet)})
    assert found.faults == []
    assert found.untried == ()
    assert found.flips >= 4 * sum(len(dim.choices) for dim in mobilenet.dims)
    check_dims_matter(mobilenet, costs, {"predictor input": one_hot(mobilenet)})


def test_formats_that_the_predictor_does_not_see_are_named(mobilenet, costs):
    hidden = ["w_format.s1.b1.project", "a_format.head"]
    read = blind_to(mobilenet, hidden, one_hot(mobilenet))
    found = dim_effects(mobilenet, costs, {"predictor input": read})
    assert set(found.unseen["predictor input"]) == set(hidden)
    with pytest.raises(ConfigError) as caught:
        check_dims_matter(mobilenet, costs, {"predictor input": read})
    assert str(caught.value) == (
        "the search cannot see all of space 'mobilenet': predictor input does not tell choices of "
        "w_format.s1.b1.project, a_format.head apart"
    )


def test_two_choices_that_look_alike_are_enough_to_be_named(mobilenet, costs):
    column = next(i for i, dim in enumerate(mobilenet.dims) if dim.name == "w_format.head")

    def read(picks):
        picks = picks.copy()
        picks[:, column] = np.maximum(picks[:, column], 1)
        return one_hot(mobilenet)(picks)

    found = dim_effects(mobilenet, costs, {"predictor input": read})
    assert found.unseen["predictor input"] == ("w_format.head",)


def test_columns_that_heed_inactive_dims_are_named(mobilenet, costs):
    counts = np.array([len(dim.choices) for dim in mobilenet.dims])
    found = dim_effects(mobilenet, costs, {"predictor input": lambda picks: picks / counts})
    expected = {dim.name for dim in mobilenet.dims if ".b1" in dim.name}
    assert set(found.leaking["predictor input"]) == expected
    assert found.leaking["a cost"] == ()
    assert found.leaking["the canonical form"] == ()


def test_many_dims_are_counted_rather_than_listed(mobilenet, costs):
    read = blind_to(mobilenet, {dim.name for dim in mobilenet.dims}, one_hot(mobilenet))
    fault = dim_effects(mobilenet, costs, {"x": read}).faults[0]
    first = ", ".join(dim.name for dim in mobilenet.dims[:3])
    more = len(mobilenet.dims) - 3
    assert fault == f"x does not tell choices of {first} and {more} more apart"


def test_a_dim_that_costs_nothing_is_named(mobilenet, costs):
    free = blind_to(mobilenet, ["kernel.s0.b0"], lambda picks: picks)
    found = dim_effects(mobilenet, lambda picks: costs(free(picks)))
    assert found.free == ("kernel.s0.b0",)
    assert found.faults == ["no cost depends on kernel.s0.b0"]


def test_a_cost_that_heeds_inactive_dims_is_named(mobilenet, costs):
    def leaky(picks):
        return {**costs(picks), "odd": picks.sum(axis=1) * 1.0}

    found = dim_effects(mobilenet, leaky)
    assert found.leaking["a cost"]
    assert all(".b1" in name for name in found.leaking["a cost"])


def test_a_dim_that_no_candidate_uses_is_named(mobilenet, costs, monkeypatch):
    active, column = mobilenet.active, 3

    def never(picks):
        found = active(picks)
        found[:, column] = False
        return found

    monkeypatch.setattr(mobilenet, "active", never)
    assert dim_effects(mobilenet, costs).untried == (mobilenet.dims[column].name,)


def test_missing_costs_are_values_like_others(mobilenet, costs):
    def gaps(picks):
        return {"latency_ms": np.where(picks[:, 0] == 0, np.nan, 1.0)}

    found = dim_effects(mobilenet, gaps)
    assert mobilenet.dims[0].name not in found.free
    assert mobilenet.dims[1].name in found.free


def test_what_predictors_read_must_be_columns(mobilenet, costs):
    with pytest.raises(ConfigError) as caught:
        dim_effects(mobilenet, costs, {"x": lambda picks: picks[:, 0] * 1.0})
    flips = dim_effects(mobilenet, costs).flips
    assert str(caught.value) == f"what predictors read must have shape (n, d), got ({flips},)"


def test_a_space_of_131_dims_is_checked_in_less_than_a_second():
    formats = ("int4", "int6", "int8")
    config = SpaceConfig(
        weight_formats=formats, activation_formats=formats, first_last_formats=("int8",)
    )
    space = ApqSpace(config, ApqOptions(), (3, 224, 224), 1000)
    model = BitFusionCost(BITFUSION_ARRAYS["bitfusion-apq"])
    compiled = compile_cost(model, space)
    began = time.process_time()
    found = dim_effects(space, compiled, {"predictor input": one_hot(space)})
    assert time.process_time() - began < 1.0
    assert len(space.dims) == 131
    assert found.faults == []

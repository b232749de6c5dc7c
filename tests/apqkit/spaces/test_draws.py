import numpy as np
import pytest
from scipy.stats import chisquare

from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import (
    draw_hierarchical,
    draw_uniform,
    draw_uniform_formats,
    with_format,
)

DRAWS = [draw_uniform, draw_uniform_formats, draw_hierarchical]


def columns_of(space, prefix):
    return [index for index, dim in enumerate(space.dims) if dim.name.startswith(prefix)]


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_are_candidates_in_canonical_form(space, draw):
    picks = draw(space, 300, np.random.default_rng(0))
    assert picks.shape == (300, len(space.dims))
    assert picks.dtype == np.int64
    assert (picks >= 0).all()
    assert (picks < [len(dim.choices) for dim in space.dims]).all()
    assert np.array_equal(space.repair(picks), picks)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_seed_gives_the_same_draws(space, draw):
    one, same, other = (draw(space, 20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("draw", DRAWS)
def test_none_may_be_drawn(space, draw):
    assert draw(space, 0, np.random.default_rng(0)).shape == (0, len(space.dims))


@pytest.mark.parametrize("draw", DRAWS)
def test_every_choice_of_every_dim_is_met(space, draw):
    picks = draw(space, 3000, np.random.default_rng(0))
    active = space.active(picks)
    for column, dim in enumerate(space.dims):
        met = set(picks[active[:, column], column].tolist())
        assert met == set(range(len(dim.choices))), dim.name


def test_uniform_draws_are_uniform(space):
    picks = draw_uniform(space, 6000, np.random.default_rng(0))
    active = space.active(picks)
    for column, dim in enumerate(space.dims):
        counts = np.bincount(picks[active[:, column], column], minlength=len(dim.choices))
        assert chisquare(counts).pvalue > 1e-4, dim.name


def test_uniform_formats_give_one_format_of_each_kind(space):
    picks = draw_uniform_formats(space, 400, np.random.default_rng(0))
    seen = set()
    for values in space.describe(picks):
        for prefix in ("w_format.", "a_format."):
            formats = {each for name, each in values.items() if name.startswith(prefix)}
            assert len(formats) == 1
            seen |= {(prefix, each) for each in formats}
    assert len(seen) == 7  # four weight formats, three activation formats


def test_uniform_formats_leave_architectures_as_varied(space):
    picks = draw_uniform_formats(space, 4000, np.random.default_rng(0))
    depth = columns_of(space, "depth.s0")[0]
    assert chisquare(np.bincount(picks[:, depth])).pvalue > 1e-4


def test_hierarchical_draws_reach_the_corners(space):
    """Sizes and formats far from the middle are common, as they never are in uniform draws."""
    table = {}
    for draw in (draw_uniform, draw_hierarchical):
        picks = draw(space, 4000, np.random.default_rng(0))
        formats = columns_of(space, "w_format.")
        active = space.active(picks)[:, formats]
        highest = np.array([len(space.dims[each].choices) - 1 for each in formats])
        widest = ((picks[:, formats] == highest) | ~active).all(axis=1)
        narrowest = ((picks[:, formats] == 0) | ~active).all(axis=1)
        params = space.network(picks).weights.sum(axis=1)
        table[draw] = (widest.sum(), narrowest.sum(), params.std())
    uniform, hierarchical = table[draw_uniform], table[draw_hierarchical]
    assert uniform[0] + uniform[1] < 5
    assert min(hierarchical[0], hierarchical[1]) > 100
    assert hierarchical[2] > 1.2 * uniform[2]


def test_one_format_throughout_keeps_the_architecture(space):
    drawn = draw_uniform(space, 50, np.random.default_rng(0))
    before = drawn.copy()
    picks = with_format(space, drawn, "int4", "int8")
    assert np.array_equal(drawn, before)
    quant = [index for index, dim in enumerate(space.dims) if dim.role == "quant"]
    assert np.array_equal(np.delete(picks, quant, 1), np.delete(drawn, quant, 1))
    for values in space.describe(picks):
        formats = {
            name.partition(".")[0]: each for name, each in values.items() if "format" in name
        }
        assert formats == {"w_format": "int4", "a_format": "int8"}
    assert np.array_equal(space.repair(picks), picks)


def test_a_format_that_is_not_offered_becomes_the_widest(make_space):
    space = make_space(weight_formats=("int2", "int4"), first_last_formats=("int4", "int8"))
    picks = with_format(space, smallest_picks(space.dims), "int2", "")
    values = space.describe(picks)[0]
    assert values["w_format.head"] == "int2"
    assert values["w_format.stem"] == "int8"  # offers no int2
    assert values["a_format.head"] == "fp8_e4m3"
    widest = with_format(space, largest_picks(space.dims), "", "")
    assert np.array_equal(widest, largest_picks(space.dims))

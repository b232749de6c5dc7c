import numpy as np
import pytest
import torch

from apqkit.errors import ConfigError
from apqkit.spaces.base import TableSpace, largest_picks, picks_of_values, smallest_picks
from apqkit.spaces.draws import draw_uniform
from apqkit.types import Dim

DIMS = (
    Dim("depth", (1, 2), "arch"),
    Dim("width", (4, 8, 12), "arch"),
    Dim("w_format.second", ("int4", "int8"), "quant"),
)


class TwoRows(TableSpace):
    """The last dim matters where the depth is 2."""

    name = "two-rows"

    def active(self, picks):
        active = np.ones(picks.shape, bool)
        active[:, 2] = picks[:, 0] == 1
        return active

    def network(self, picks):
        raise NotImplementedError


@pytest.fixture
def two_rows():
    return TwoRows(DIMS)


def test_repair_sets_inactive_dims_to_zero(two_rows):
    picks = np.array([[0, 2, 1], [1, 2, 1]])
    assert two_rows.repair(picks).tolist() == [[0, 2, 0], [1, 2, 1]]
    assert picks.tolist() == [[0, 2, 1], [1, 2, 1]]  # a copy


def test_candidates_are_described_by_the_values_that_matter(two_rows):
    assert two_rows.describe(np.array([[0, 2, 1], [1, 0, 1]])) == [
        {"depth": 1, "width": 12},
        {"depth": 2, "width": 4, "w_format.second": "int8"},
    ]
    assert two_rows.describe(np.zeros((0, 3), int)) == []


def test_descriptions_lead_back_to_picks(space):
    picks = draw_uniform(space, 50, np.random.default_rng(0))
    for row, values in zip(picks, space.describe(picks), strict=True):
        assert picks_of_values(space.dims, values).tolist() == [row.tolist()]


def test_corners_of_a_space():
    assert largest_picks(DIMS).tolist() == [[1, 2, 1]]
    assert smallest_picks(DIMS).tolist() == [[0, 0, 0]]
    assert largest_picks(DIMS).dtype == smallest_picks(DIMS).dtype == np.int64


def test_values_that_are_missing_read_zero():
    assert picks_of_values(DIMS, {"width": 8}).tolist() == [[0, 1, 0]]


def test_a_name_that_is_no_dim_is_refused():
    with pytest.raises(ConfigError) as caught:
        picks_of_values(DIMS, {"height": 8})
    assert str(caught.value) == "no dim named 'height' in this space of 3 dims"


def test_a_value_that_is_no_choice_is_refused():
    with pytest.raises(ConfigError) as caught:
        picks_of_values(DIMS, {"width": "8"})
    assert str(caught.value) == "width must be one of [4, 8, 12], got '8'"


def test_the_supernet_holds_every_row_of_the_largest_network(space):
    net = space.supernet(3)
    rows = space.network(largest_picks(space.dims)).layers()
    assert [name.replace("_", ".") for name in net.units if "pool" not in name] == [
        each.name for each in rows if each.op not in ("input", "global_pool")
    ]
    weights = [each.get_parameter("units.stem.weight") for each in (net, space.supernet(3))]
    assert torch.equal(*weights)

import numpy as np
import pytest
import torch

from apqkit.errors import ConfigError
from apqkit.spaces.base import (
    Block,
    BlockSpace,
    TableRows,
    TableSpace,
    largest_picks,
    picks_of_values,
    smallest_picks,
)
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


class NoRows(BlockSpace):
    """Blocks without a network."""

    def network(self, picks):
        raise NotImplementedError


def test_a_decision_with_one_choice_is_no_dim():
    space = NoRows((*DIMS[:2], Dim("kernel", (5,), "arch"), DIMS[2]), [])
    assert space.dims == DIMS
    with pytest.raises(ConfigError) as caught:
        NoRows((Dim("kernel", (5,), "arch"),), [])
    assert str(caught.value) == "space offers a single network: give some dim a second choice"


def test_dims_of_blocks_beyond_the_depth_do_not_matter():
    blocks = [Block(0, 0), Block(0, 1), Block(1, 0)]
    names = ("depth.s0", "kernel.s0.b0", "kernel.s0.b1", "w_format.s0.b1.expand", "kernel.s1.b0")
    offered = [*(Dim(name, (1, 2), "arch") for name in names), Dim("depth.s1", (1,), "arch")]

    space = NoRows(offered, blocks)
    assert space.active(np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])).tolist() == [
        [True, True, False, False, True],
        [True, True, True, True, True],
    ]


def test_rows_become_columns_and_inactive_ones_read_nothing():
    rows = TableRows(2)
    first = rows.add("input", "input", 3, 3, (8, 6), activation_format=0)
    used = np.array([True, False])
    last = rows.add(
        "conv", "conv", 3, np.array([4, 5]), (8, 6), kernel=3, stride=2, relu=True,
        weight_format=1, activation_format=2, active=used, producers=(first,),
    )  # fmt: skip
    table = rows.table()
    assert table.names == ("input", "conv")
    assert (first.tolist(), last.tolist()) == ([0, 0], [1, 1])
    assert table.active.tolist() == [[True, True], [True, False]]
    assert table.out_channels.tolist() == [[3, 4], [3, 0]]
    assert table.in_width.tolist() == [[6, 6], [6, 0]]
    assert table.weight_format.tolist() == [[-1, 1], [-1, -1]]
    assert table.activation.tolist() == [[0, 1], [0, 0]]
    assert table.producers.tolist() == [[[-1, -1], [0, -1]], [[-1, -1], [-1, -1]]]


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

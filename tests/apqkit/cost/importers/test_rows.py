import math
from pathlib import Path

import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.cost.importers.rows import (
    Figures,
    ImportedRows,
    TableOptions,
    conv_key,
    global_pool_key,
    header_of,
    linear_key,
    measured,
)
from apqkit.cost.keys import key_text
from apqkit.cost.lut_cost import plain_keys
from apqkit.errors import CostError
from apqkit.spaces.base import smallest_picks
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace

PATH = Path("table.yaml")


def test_keys_are_those_of_network_tables():
    """Rows that are imported are found by rows of a network, whatever its activations."""
    space = MobileNetSpace(SpaceConfig(), MobileNetOptions(), (3, 20, 16), 10)
    table = space.network(smallest_picks(space.dims)).with_formats("fp32", "fp32")
    keys = dict(zip(table.names, plain_keys(table)[0], strict=True))
    layers = {each.name: each for each in table.layers()}
    stem, pool = layers["stem"], layers["global_pool"]
    wanted = {
        "stem": conv_key((3, stem.out_channels), (20, 16), kernel=3, stride=stem.stride),
        "global_pool": global_pool_key(pool.in_channels, (pool.in_height, pool.in_width)),
        "classifier": linear_key((layers["classifier"].in_channels, 10)),
    }
    for name, key in wanted.items():
        assert key_text(key) == key_text(keys[name])


def test_a_depthwise_convolution_in_formats_of_its_own_is_keyed():
    key = conv_key((8, 8), (5, 4), kernel=3, stride=2, groups=8, formats=("int4", "int6"))
    assert key_text(key) == (
        "conv in_channels 8 out_channels 8 kernel 3 stride 2 groups 8 in_height 5 in_width 4 "
        "weight_format int4 activation_format int6"
    )


def test_rows_become_a_table_in_their_order():
    rows = ImportedRows(PATH)
    rows.add("a", linear_key((8, 4)), Figures(2.0, sd_ms=0.1, count=7, energy_mj=3.0))
    rows.add("b", linear_key((8, 5)), Figures(1.0))
    table = rows.table({"units": "ms"})
    assert len(rows) == len(table) == 2
    assert table.header == {"units": "ms"}
    assert table.latency_ms.tolist() == [2.0, 1.0]
    assert table.spread_ms == pytest.approx([0.1, 0.0])
    assert table.count.tolist() == [7, 1]
    assert table.energy_mj[0] == 3.0
    assert math.isnan(table.energy_mj[1])
    assert np.array_equal(table.keys[1], linear_key((8, 5)))


def test_a_layer_twice_is_refused_with_both_names():
    rows = ImportedRows(PATH)
    rows.add("a", linear_key((8, 4)), Figures(2.0))
    rows.add("b", linear_key((8, 5)), Figures(2.0))
    with pytest.raises(CostError) as caught:
        rows.add("c", linear_key((8, 4)), Figures(2.0))
    assert str(caught.value) == "table.yaml holds a layer twice: 'a' and 'c'"


def test_a_table_without_rows_is_refused():
    with pytest.raises(CostError) as caught:
        ImportedRows(PATH).table({})
    assert str(caught.value) == "table.yaml holds no layer that can be imported"


def test_a_header_says_what_is_not_stated():
    assert header_of(TableOptions(device="phone"), Path("some/table.yaml")) == {
        "device": "phone",
        "runtime": "not stated",
        "batch": "1",
        "units": "ms",
        "licence": "not stated",
        "source": "table.yaml",
    }


@pytest.mark.parametrize(
    ("entry", "figures"),
    [
        ({"mean": 2.0}, Figures(2.0)),
        ({"mean": 2.0, "std": 0.5, "count": 3.0}, Figures(2.0, 0.5, 3)),
        ({"mean": "2", "var": "0.25"}, Figures(2.0, 0.5)),
        ({"mean": 2, "var": 0}, Figures(2.0, 0.0)),
    ],
)
def test_figures_have_a_spread_from_either_way_to_say_it(entry, figures):
    found = measured(entry, "file, 'A'")
    assert vars(found) == pytest.approx(vars(figures), nan_ok=True)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({}, "it has no mean"),
        ({"std": 1.0}, "it has no mean"),
        ({"mean": 0.0}, "mean must be a positive number, got 0.0"),
        ({"mean": -1.0}, "mean must be a positive number, got -1.0"),
        ({"mean": "nan"}, "mean must be a positive number, got 'nan'"),
        ({"mean": 1.0, "var": -1.0}, "var must be a positive number, got -1.0"),
        ({"mean": 1.0, "count": 0.0}, "count must be a positive number, got 0.0"),
        ({"mean": 1.0, "count": 2.5}, "count must be a whole number, got 2.5"),
        (
            {"mean": 1.0, "std": 1.0, "var": 1.0},
            "expected mean, count, and std or var, got mean, std, var",
        ),
        (
            {"mean": 1.0, "median": 1.0},
            "expected mean, count, and std or var, got mean, median",
        ),
    ],
)
def test_figures_that_cannot_be_are_refused(entry, fault):
    with pytest.raises(CostError) as caught:
        measured(entry, "file, 'A'")
    assert str(caught.value) == f"file, 'A': {fault}"

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost import keys as keys_module
from apqkit.cost.keys import (
    BLOCK_OPS,
    CONVERSIONS,
    KEY_COLUMNS,
    NO_FORMAT,
    TABLE_ACTIVATIONS,
    TABLE_OPS,
    coded,
    column,
    distinct_keys,
    key_of,
    key_text,
    named_key,
)
from apqkit.errors import UnknownNameError
from apqkit.formats import FORMATS
from apqkit.types import ACTIVATIONS, OPS, LayerTable

VALUES = {
    "op": st.sampled_from(TABLE_OPS),
    "activation": st.sampled_from(TABLE_ACTIVATIONS),
    **{
        name: st.sampled_from([*FORMATS, NO_FORMAT])
        for name in ("weight_format", "activation_format", "output_format")
    },
}
NAMED_KEYS = st.fixed_dictionaries(
    {name: VALUES.get(name, st.integers(0, 5000)) for name in KEY_COLUMNS}
)


def brute_force(rows, active):
    """The set of distinct keys in plain loops."""
    return {tuple(rows[at].tolist()) for at in zip(*np.nonzero(active), strict=True)}


@pytest.fixture
def rows():
    """(30, 9, c) keys that repeat, and where there is one."""
    rng = np.random.default_rng(0)
    return rng.integers(-1, 3, (30, 9, len(KEY_COLUMNS))) * (
        np.arange(len(KEY_COLUMNS)) < 4
    ), rng.random((30, 9)) < 0.8


def test_codes_of_network_tables_are_codes_of_keys():
    assert TABLE_OPS[: len(OPS)] == OPS
    assert TABLE_ACTIVATIONS[: len(ACTIVATIONS)] == ACTIVATIONS
    assert set(CONVERSIONS) | set(BLOCK_OPS) == set(TABLE_OPS[len(OPS) :])
    own = {"hidden_channels", "squeeze_excite", "residual", "output_format"}
    columns = {each.name for each in fields(LayerTable)} | {"signed_input"}
    assert set(KEY_COLUMNS) - columns == own


@settings(deadline=None, max_examples=60)
@given(NAMED_KEYS)
def test_a_key_by_value_reads_back(values):
    key = key_of(values["op"], values)
    assert key.shape == (len(KEY_COLUMNS),)
    assert named_key(key) == [values[name] for name in KEY_COLUMNS]
    for name, value in values.items():
        assert int(column(key, name)) == coded(name, value)


def test_columns_that_are_not_named_are_zero_or_none():
    named = dict(zip(KEY_COLUMNS, named_key(key_of("pool", {"kernel": 2})), strict=True))
    assert named.pop("op") == "pool"
    assert named.pop("activation") == "none"
    assert named.pop("kernel") == 2
    formats = {name: value for name, value in named.items() if name.endswith("_format")}
    assert set(formats.values()) == {NO_FORMAT}
    assert {value for name, value in named.items() if name not in formats} == {0}


def test_a_column_of_many_keys_is_found_by_name():
    keys = np.arange(3 * 2 * len(KEY_COLUMNS)).reshape(3, 2, -1)
    for index, name in enumerate(KEY_COLUMNS):
        assert np.array_equal(column(keys, name), keys[:, :, index])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("op", "deconv"), ("op", "3"), ("op", ""), ("weight_format", "int9"),
        ("output_format", "0"), ("activation", "gelu"), ("kernel", "wide"), ("kernel", "3.0"),
    ],
)  # fmt: skip
def test_a_value_without_a_place_in_its_column_is_refused(name, value):
    with pytest.raises(ValueError, match=r"not in|invalid literal"):
        coded(name, value)


def test_figures_may_come_as_text():
    assert coded("in_channels", "12") == coded("in_channels", 12) == 12


def test_the_text_of_a_key_leaves_out_what_is_nothing():
    key = key_of(
        "conv",
        {"in_channels": 8, "out_channels": 16, "kernel": 3, "stride": 2, "groups": 1,
         "in_height": 6, "in_width": 4, "activation": "relu", "weight_format": "int8",
         "activation_format": "int8", "output_format": "fp32", "signed_input": 1},
    )  # fmt: skip
    assert key_text(key) == (
        "conv in_channels 8 out_channels 16 kernel 3 stride 2 groups 1 in_height 6 in_width 4 "
        "activation relu weight_format int8 activation_format int8 output_format fp32 "
        "signed_input 1"
    )
    assert key_text(key_of("tail", {})) == "tail"


def test_every_distinct_key_is_found_once(rows):
    keys, active = rows
    found = distinct_keys(keys, active)
    expected = brute_force(keys, active)
    assert len(found.keys) == len(expected) < active.sum()
    assert set(map(tuple, found.keys.tolist())) == expected


def test_the_index_leads_back_to_each_row(rows):
    keys, active = rows
    found = distinct_keys(keys, active)
    assert found.index.shape == active.shape
    assert np.array_equal(found.keys[found.index[active]], keys[active])
    assert (found.index[~active] == 0).all()
    assert np.array_equal(found.active, active)


def test_keys_do_not_depend_on_the_order_of_candidates(rows):
    keys, active = rows
    assert np.array_equal(
        distinct_keys(keys[::-1], active[::-1]).keys, distinct_keys(keys, active).keys
    )


def test_keys_with_one_hash_are_still_told_apart(rows, monkeypatch):
    keys, active = rows
    monkeypatch.setattr(keys_module, "_MIX", np.zeros_like(keys_module._MIX))
    found = distinct_keys(keys, active)
    assert set(map(tuple, found.keys.tolist())) == brute_force(keys, active)
    assert np.array_equal(found.keys[found.index[active]], keys[active])


@pytest.mark.parametrize("name", KEY_COLUMNS)
def test_keys_that_differ_in_any_column_are_distinct(name):
    key = key_of("conv", {"in_channels": 8})
    pair = np.stack([key, key])
    pair[1, KEY_COLUMNS.index(name)] += 1
    assert len(distinct_keys(pair, np.ones(2, dtype=bool)).keys) == 2


def test_where_nothing_is_active_there_are_no_keys(rows):
    keys, active = rows
    found = distinct_keys(keys, np.zeros_like(active))
    assert found.keys.shape == (0, len(KEY_COLUMNS))
    assert (found.index == 0).all()


def test_a_misspelt_column_is_not_dropped():
    with pytest.raises(UnknownNameError) as caught:
        key_of("conv", {"in_channel": 8})
    assert str(caught.value) == (
        "no key column named 'in_channel' (did you mean 'in_channels'?); there are: activation, "
        "activation_format, groups, hidden_channels, in_channels, in_height, in_width, kernel, "
        "op, out_channels, output_format, residual, signed_input, squeeze_excite, stride, "
        "weight_format"
    )

from dataclasses import replace

import numpy as np
import pytest

from apqkit.cost import keys as keys_module
from apqkit.cost.keys import KEY_COLUMNS, distinct_keys, key_columns


def brute_force(table):
    """The set of distinct layers, by value, in plain loops."""
    found = set()
    for candidate, row in zip(*np.nonzero(table.active), strict=True):
        found.add(tuple(int(getattr(table, name)[candidate, row]) for name in KEY_COLUMNS))
    return found


def test_every_distinct_layer_is_found_once(tiny_networks):
    found = distinct_keys(tiny_networks)
    expected = brute_force(tiny_networks)
    assert len(found.keys) == len(expected) < tiny_networks.active.sum()
    assert set(map(tuple, found.keys.tolist())) == expected


def test_the_index_leads_back_to_each_row(tiny_networks):
    found = distinct_keys(tiny_networks)
    assert found.index.shape == tiny_networks.op.shape
    columns = key_columns(tiny_networks)
    active = tiny_networks.active
    assert np.array_equal(found.keys[found.index[active]], columns[active])
    assert (found.index[~active] == 0).all()
    assert np.array_equal(found.active, active)


def test_keys_do_not_depend_on_the_order_of_candidates(tiny_networks):
    turned = tiny_networks.take(np.arange(len(tiny_networks))[::-1])
    assert np.array_equal(distinct_keys(turned).keys, distinct_keys(tiny_networks).keys)


def test_layers_with_one_hash_are_still_told_apart(tiny_networks, monkeypatch):
    expected = distinct_keys(tiny_networks)
    monkeypatch.setattr(keys_module, "_MIX", np.zeros_like(keys_module._MIX))
    found = distinct_keys(tiny_networks)
    assert set(map(tuple, found.keys.tolist())) == set(map(tuple, expected.keys.tolist()))
    active = tiny_networks.active
    assert np.array_equal(found.keys[found.index[active]], key_columns(tiny_networks)[active])


def test_given_columns_replace_the_own_ones(tiny_networks):
    columns = key_columns(tiny_networks)
    columns[..., KEY_COLUMNS.index("weight_format")] = 0
    columns[..., KEY_COLUMNS.index("activation_format")] = 0
    found = distinct_keys(tiny_networks, columns)
    assert len(found.keys) < len(distinct_keys(tiny_networks).keys)
    assert np.array_equal(np.unique(found.keys, axis=0), np.unique(columns[found.active], axis=0))


@pytest.mark.parametrize("name", KEY_COLUMNS)
def test_layers_that_differ_in_any_column_are_distinct(tiny_networks, name):
    column = KEY_COLUMNS.index(name)
    one = key_columns(tiny_networks.take(slice(1)))[:, :1]
    pair = np.concatenate([one, one], axis=1)
    pair[0, 1, column] += 1
    two_rows = replace(tiny_networks.take(slice(1)), active=np.ones((1, 2), dtype=bool))
    assert len(distinct_keys(two_rows, pair).keys) == 2


def test_a_table_without_active_rows_has_no_keys(tiny_networks):
    nothing = replace(tiny_networks, active=np.zeros_like(tiny_networks.active))
    found = distinct_keys(nothing)
    assert found.keys.shape == (0, len(KEY_COLUMNS))
    assert (found.index == 0).all()

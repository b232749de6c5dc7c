"""Distinct layers of many networks. Letters: n candidates, L rows, c key columns, m distinct."""

from dataclasses import dataclass

import numpy as np

from apqkit.types import BoolArray, IntArray, LayerTable

__all__ = ["KEY_COLUMNS", "LayerKeys", "distinct_keys", "key_columns"]

KEY_COLUMNS = (
    "op",
    "in_channels",
    "out_channels",
    "kernel",
    "stride",
    "groups",
    "in_height",
    "in_width",
    "activation",
    "weight_format",
    "activation_format",
    "signed_input",
)
"""What the price of a layer can depend on, in the order of a key's columns."""

_MIX = np.random.default_rng(20240229).integers(1, 2**63, len(KEY_COLUMNS), dtype=np.uint64) | 1


@dataclass(frozen=True)
class LayerKeys:
    """The distinct layers of a table.

    Attributes:
        keys: (m, c) one row of :data:`KEY_COLUMNS` a distinct active layer.
        index: (n, L) which key each row has; 0 where the row is inactive.
        active: (n, L) the table's activity.
    """

    keys: IntArray
    index: IntArray
    active: BoolArray


def key_columns(table: LayerTable) -> IntArray:
    """(n, L, c) the key columns of every row; inactive rows read 0 or -1."""
    return np.stack([getattr(table, name).astype(np.int64) for name in KEY_COLUMNS], axis=-1)


def distinct_keys(table: LayerTable, columns: IntArray | None = None) -> LayerKeys:
    """Finds the distinct active layers of a table.

    Args:
        table: The networks.
        columns: (n, L, c) keys to use instead of :func:`key_columns`, such as keys with formats
            replaced by their carriers.
    """
    columns = key_columns(table) if columns is None else columns
    rows = columns[table.active]
    with np.errstate(over="ignore"):
        hashed = (rows.astype(np.uint64) * _MIX[: rows.shape[1]]).sum(axis=1, dtype=np.uint64)
    _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
    keys = rows[first]
    if not np.array_equal(keys[inverse], rows):  # two layers with one hash: take the slow way
        keys, inverse = np.unique(rows, axis=0, return_inverse=True)
    index = np.zeros(table.active.shape, dtype=np.int64)
    index[table.active] = inverse
    return LayerKeys(keys, index, table.active)

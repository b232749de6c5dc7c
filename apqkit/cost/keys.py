"""What the price of a row of a table depends on. Letters: c key columns, m keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from apqkit.formats import FORMATS
from apqkit.registry import lookup
from apqkit.types import ACTIVATIONS, OPS, BoolArray, IntArray

__all__ = [
    "BLOCK_OPS",
    "CONVERSIONS",
    "KEY_COLUMNS",
    "NO_FORMAT",
    "TABLE_ACTIVATIONS",
    "TABLE_OPS",
    "LayerKeys",
    "coded",
    "column",
    "distinct_keys",
    "key_of",
    "key_text",
    "named_key",
]

CONVERSIONS = ("quantize", "dequantize", "requantize", "layout_in", "layout_out")
"""What can stand between two layers: the edges of a table.

``quantize`` turns fp32 into integers, ``dequantize`` the reverse, ``requantize`` cuts integers to
fewer levels; ``layout_in`` brings a tensor from plain order (channels, height, width) into the
order that kernels of its format read, ``layout_out`` back. An edge is keyed by the tensor's
channels, height and width, by ``activation_format``, which it reads, and ``output_format``.
"""

BLOCK_OPS = ("inverted_residual", "head", "tail")
"""What tables of others price as a whole: a block, and what comes before and after all blocks."""

TABLE_OPS = (*OPS, *CONVERSIONS, *BLOCK_OPS)
"""What a row of a look-up table can be; the first are the ops of network tables."""

TABLE_ACTIVATIONS = (*ACTIVATIONS, "relu6", "h_swish", "swish")
"""Activation functions in a look-up table; the first are those of network tables."""

KEY_COLUMNS = (
    "op",
    "in_channels",
    "hidden_channels",
    "out_channels",
    "kernel",
    "stride",
    "groups",
    "in_height",
    "in_width",
    "activation",
    "squeeze_excite",
    "residual",
    "weight_format",
    "activation_format",
    "output_format",
    "signed_input",
)
"""The columns of a key, in order.

``hidden_channels``, ``squeeze_excite`` and ``residual`` are 0 but in rows of whole blocks; a
convolution that adds another tensor to what it writes has ``residual`` 1, too.
``activation_format`` is that of the input; ``output_format`` that in which the output is stored.
"""

NO_FORMAT = "none"
_MIX = np.random.default_rng(20240229).integers(1, 2**63, len(KEY_COLUMNS), dtype=np.uint64) | 1
_CODES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"op": TABLE_OPS, "activation": TABLE_ACTIVATIONS}
)


@dataclass(frozen=True)
class LayerKeys:
    """The distinct keys among those of many rows.

    Attributes:
        keys: (m, c) one row of :data:`KEY_COLUMNS` a distinct key.
        index: Which key each row has, in the shape of the rows; 0 where it has none.
        active: Whether a row has a key, in the same shape.
    """

    keys: IntArray
    index: IntArray
    active: BoolArray


def column(keys: IntArray, name: str) -> IntArray:
    """Returns one column, by name, of keys (..., c)."""
    return np.asarray(keys[..., KEY_COLUMNS.index(name)])


def key_of(op: str, columns: Mapping[str, int | str]) -> IntArray:
    """(c,) a key by value; columns that are not named are 0, or none for formats.

    Raises:
        UnknownNameError: There is no such column.
        ValueError: A value has no place in its column.

    >>> int(column(key_of("conv", {"in_channels": 8, "weight_format": "int8"}), "in_channels"))
    8
    """
    values: dict[str, int | str] = {
        name: NO_FORMAT if name.endswith("_format") else 0 for name in KEY_COLUMNS
    }
    for name in columns:
        lookup(values, name, "key column")
    values |= {**columns, "op": op}
    return np.array([coded(name, value) for name, value in values.items()])


def coded(name: str, value: int | str) -> int:
    """Returns the integer that stands for a value in a column.

    Raises:
        ValueError: The value has no place in that column.
    """
    if not isinstance(value, str):
        return int(value)
    if name.endswith("_format"):
        return -1 if value == NO_FORMAT else list(FORMATS).index(value)
    return _CODES[name].index(value) if name in _CODES else int(value)


def named_key(key: IntArray) -> list[str | int]:
    """Returns a key (c,) by value, as a file shows it."""
    formats = list(FORMATS)
    named: list[str | int] = []
    for name, value in zip(KEY_COLUMNS, key.tolist(), strict=True):
        if name in _CODES:
            named.append(_CODES[name][value])
        elif name.endswith("_format"):
            named.append(formats[value] if value >= 0 else NO_FORMAT)
        else:
            named.append(int(value))
    return named


def key_text(key: IntArray) -> str:
    """Returns a key (c,) for people: what is 0 or none is left out.

    >>> key_text(key_of("pool", {"in_channels": 8, "kernel": 2, "activation_format": "int8"}))
    'pool in_channels 8 kernel 2 activation_format int8'
    """
    op, *values = named_key(key)
    named = zip(KEY_COLUMNS[1:], values, strict=True)
    said = (f"{name} {value}" for name, value in named if value not in (0, NO_FORMAT))
    return " ".join([str(op), *said])


def distinct_keys(rows: IntArray, active: BoolArray) -> LayerKeys:
    """Finds the distinct keys among many.

    Args:
        rows: (..., c) keys.
        active: (...) where there is one.
    """
    chosen = rows[active]
    with np.errstate(over="ignore"):
        hashed = (chosen.astype(np.uint64) * _MIX[: chosen.shape[1]]).sum(axis=1, dtype=np.uint64)
    _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
    keys = chosen[first]
    if not np.array_equal(keys[inverse], chosen):  # two keys with one hash: take the slow way
        keys, inverse = np.unique(chosen, axis=0, return_inverse=True)
    index = np.zeros(active.shape, dtype=np.int64)
    index[active] = inverse
    return LayerKeys(keys, index, active)

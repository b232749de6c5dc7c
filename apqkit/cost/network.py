"""Costs that follow from the network table alone: no device, no measurement."""

from dataclasses import dataclass

import numpy as np

from apqkit.cost.tensors import format_bits, stored_tensors
from apqkit.formats import FORMATS
from apqkit.types import FloatArray, IntArray, LayerTable

__all__ = [
    "NetworkCost",
    "bops",
    "layer_bops",
    "peak_activation_kib",
    "size_kib",
]

_BITS_A_KIB = 8 * 1024
_BIAS_BITS = 32
_SCALE_BITS = 32


@dataclass(frozen=True)
class NetworkCost:
    """Prices networks by counting; satisfies :class:`apqkit.types.CostModel`."""

    metrics: tuple[str, ...] = ("size_kib", "bops", "peak_activation_kib", "macs", "params")

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{metric: (n,)}`` for every candidate."""
        return {
            "size_kib": size_kib(table),
            "bops": bops(table),
            "peak_activation_kib": peak_activation_kib(table),
            "macs": table.macs.sum(axis=1).astype(np.float64),
            "params": _params(table).sum(axis=1).astype(np.float64),
        }


def size_kib(table: LayerTable) -> FloatArray:
    """(n,) weights in their formats, one fp32 scale a quantized channel, 32-bit biases; in KiB."""
    bits = format_bits(table.weight_format)
    quantized = np.where(bits < FORMATS["fp32"].bits, _SCALE_BITS, 0)
    a_channel = np.where(table.weight_format >= 0, _BIAS_BITS + quantized, 0)
    total = table.weights * bits + table.out_channels * a_channel
    return np.asarray(total.sum(axis=1) / _BITS_A_KIB)


def bops(table: LayerTable) -> FloatArray:
    """(n,) bit operations of one image: sum of MACs x weight bits x input bits.

    The convention of HAWQ and FLIQS; first and last layers count, fp32 is 32 x 32.
    """
    return np.asarray(layer_bops(table).sum(axis=1), dtype=np.float64)


def layer_bops(table: LayerTable) -> IntArray:
    """(n, L) bit operations of each row."""
    return table.macs * format_bits(table.weight_format) * format_bits(table.activation_format)


def peak_activation_kib(table: LayerTable) -> FloatArray:
    """(n,) the most memory that tensors take at any moment, one image, in KiB.

    Rows run one after the other. A tensor lives from the row that writes it to the last row that
    reads it, residuals included, in the format of its first reader; the last output is fp32.
    """
    stored, last_reader = _lifetimes(table)
    rows = table.op.shape[1]
    peak = np.zeros(len(table))
    for row in range(rows):
        alive = (np.arange(rows) <= row) & (last_reader >= row)
        held = np.where(alive, stored, 0).sum(axis=1)
        peak = np.maximum(peak, np.where(table.active[:, row], held, 0))
    return peak / _BITS_A_KIB


def _lifetimes(table: LayerTable) -> tuple[IntArray, IntArray]:
    """Bits that each row's output takes, and the last row that reads it."""
    bits, last_reader = stored_tensors(table)
    elements = table.out_channels * table.out_height * table.out_width
    return np.where(table.active, elements * bits, 0), last_reader


def _params(table: LayerTable) -> IntArray:
    """(n, L) weights and biases."""
    return table.weights + np.where(table.weight_format >= 0, table.out_channels, 0)

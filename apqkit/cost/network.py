"""Costs that follow from the network table alone: no device, no measurement."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from apqkit.cost.tensors import format_bits, stored_tensors
from apqkit.formats import FORMATS
from apqkit.registry import lookup
from apqkit.types import BoolArray, FloatArray, IntArray, LayerTable

__all__ = [
    "BOPS_CONVENTIONS",
    "BOPS_LAYERS",
    "NetworkCost",
    "bops",
    "layer_bops",
    "peak_activation_kib",
    "size_kib",
]

_BITS_A_KIB = 8 * 1024
_BIAS_BITS = 32
_SCALE_BITS = 32

BOPS_CONVENTIONS: dict[str, str] = {
    "product": "MACs x weight bits x input bits, fp32 as 32 x 32 (HAWQ, FLIQS)",
    "baskin": "MACs x (w a + w + a + log2(k^2 c)): products and sums as wide as they grow "
    "(Baskin et al. 2018)",
}
"""How bit operations are counted. The same network differs by convention: name it."""

BOPS_LAYERS: dict[str, str] = {
    "all": "every convolution and linear layer (FLIQS)",
    "inner": "all but the first and the last of them (EdMIPS)",
}
"""Which layers bit operations are counted of."""


@dataclass(frozen=True)
class NetworkCost:
    """Prices networks by counting; satisfies :class:`apqkit.types.CostModel`."""

    metrics: tuple[str, ...] = ("size_kib", "bops", "peak_activation_kib", "macs", "params")
    peaks: tuple[str, ...] = ("held_bits",)

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{metric: (n,)}`` for every candidate."""
        terms = self.layer_terms(table)
        return self.totals(
            {
                name: values.max(axis=1) if name in self.peaks else values.sum(axis=1)
                for name, values in terms.items()
            }
        )

    def layer_terms(self, table: LayerTable) -> dict[str, FloatArray]:
        """{term: (n, L)} whole numbers: stored bits, bit operations, held bits, MACs, params."""
        terms = {
            "stored_bits": _stored_bits(table),
            "bops": layer_bops(table),
            "held_bits": _held_bits(table),
            "macs": table.macs,
            "params": _params(table),
        }
        return {name: values.astype(np.float64) for name, values in terms.items()}

    def totals(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns the metrics that follow from the terms, summed over rows or at their peak."""
        return {
            "size_kib": sums["stored_bits"] / _BITS_A_KIB,
            "bops": sums["bops"],
            "peak_activation_kib": sums["held_bits"] / _BITS_A_KIB,
            "macs": sums["macs"],
            "params": sums["params"],
        }


def size_kib(table: LayerTable) -> FloatArray:
    """(n,) weights in their formats, one fp32 scale a quantized channel, 32-bit biases; in KiB."""
    return np.asarray(_stored_bits(table).sum(axis=1) / _BITS_A_KIB)


def _stored_bits(table: LayerTable) -> IntArray:
    bits = format_bits(table.weight_format)
    quantized = np.where(bits < FORMATS["fp32"].bits, _SCALE_BITS, 0)
    a_channel = np.where(table.weight_format >= 0, _BIAS_BITS + quantized, 0)
    return np.asarray(table.weights * bits + table.out_channels * a_channel)


def bops(table: LayerTable, *, convention: str = "product", layers: str = "all") -> FloatArray:
    """(n,) bit operations of one image.

    Args:
        table: n networks of L rows.
        convention: Any of :data:`BOPS_CONVENTIONS`.
        layers: Any of :data:`BOPS_LAYERS`.

    Raises:
        UnknownNameError: There is no such convention, or choice of layers.
    """
    rows = layer_bops(table, convention=convention, layers=layers)
    return np.asarray(rows.sum(axis=1), dtype=np.float64)


def layer_bops(
    table: LayerTable, *, convention: str = "product", layers: str = "all"
) -> FloatArray:
    """(n, L) bit operations of each row; arguments and errors as of :func:`bops`."""
    lookup(BOPS_CONVENTIONS, convention, "convention of bit operations")
    lookup(BOPS_LAYERS, layers, "choice of layers for bit operations")
    weights, inputs = format_bits(table.weight_format), format_bits(table.activation_format)
    each = (weights * inputs).astype(np.float64)
    if convention == "baskin":
        summed = table.kernel**2 * (table.in_channels // np.maximum(table.groups, 1))
        each += weights + inputs + np.log2(np.maximum(summed, 1))
    counted = np.where(_inner(table), table.macs, 0) if layers == "inner" else table.macs
    return counted * each


def _inner(table: LayerTable) -> BoolArray:
    """(n, L) True for layers with weights, except each candidate's first and last."""
    before = np.cumsum(table.macs > 0, axis=1)
    count = before[:, -1:]
    return np.asarray((table.macs > 0) & (before > 1) & (before < count))


def peak_activation_kib(table: LayerTable) -> FloatArray:
    """(n,) the most memory that tensors take at any moment, one image, in KiB.

    Rows run one after the other. A tensor lives from the row that writes it to the last row that
    reads it, residuals included, in the format of its first reader; the last output is fp32.
    """
    return np.asarray(_held_bits(table).max(axis=1) / _BITS_A_KIB)


def _held_bits(table: LayerTable) -> IntArray:
    """(n, L) bits of the tensors that live while each row runs; 0 where it is inactive."""
    stored, last_reader = _lifetimes(table)
    rows = table.op.shape[1]
    held = np.zeros_like(stored)
    for row in range(rows):
        alive = (np.arange(rows) <= row) & (last_reader >= row)
        held[:, row] = np.where(alive, stored, 0).sum(axis=1)
    return np.where(table.active, held, 0)


def _lifetimes(table: LayerTable) -> tuple[IntArray, IntArray]:
    """Bits that each row's output takes, and the last row that reads it."""
    bits, last_reader = stored_tensors(table)
    elements = table.out_channels * table.out_height * table.out_width
    return np.where(table.active, elements * bits, 0), last_reader


def _params(table: LayerTable) -> IntArray:
    """(n, L) weights and biases."""
    return table.weights + np.where(table.weight_format >= 0, table.out_channels, 0)

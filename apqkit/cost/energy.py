"""Energy of any network by operation and memory level, without a device.

A multiply-accumulate costs what its formats cost; a tensor costs each time it passes the on-chip
memory, and again where it lives in DRAM. Weights are read once a batch. What no accelerator
avoids is counted and what a bad one adds is not: no tile is read twice. Letters: n candidates,
L rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from apqkit.cost.tensors import format_bits, stored_tensors
from apqkit.errors import CostError
from apqkit.formats import FORMATS
from apqkit.types import OPS, BoolArray, FloatArray, IntArray, LayerTable

__all__ = [
    "ENERGY_PROCESSES",
    "EnergyCost",
    "EnergyProcess",
    "LayerEnergy",
    "MixedWidths",
    "Place",
]

MixedWidths = Literal["geometric", "max"]
Place = Literal["sram", "dram"]

_MJ_A_PJ = 1e-9
_BITS_A_KIB = 8 * 1024
_WORD_BITS = 64
_INTEGER_SUM_BITS = 32
_HALF, _SINGLE = 16, 32


@dataclass(frozen=True)
class EnergyProcess:
    """Energies of one silicon process, in pJ.

    Attributes:
        integer_multiply: Factors of b^2 and of b for two integers of b bits.
        integer_add: A bit of the sum.
        float_multiply: By bits: of 16 and of 32. Other widths follow the power law through both.
        float_add: The same for a sum.
        sram_word: Polynomial in the binary logarithm of the memory's bits, highest power first,
            for 64 bits read or written.
        smallest_sram_kib: A memory that holds less costs as one of this size.
        dram_bit: A bit read or written.
        source: Where the figures are from.
    """

    integer_multiply: tuple[float, float]
    integer_add: float
    float_multiply: Mapping[int, float]
    float_add: Mapping[int, float]
    sram_word: tuple[float, float, float]
    smallest_sram_kib: float
    dram_bit: float
    source: str


ENERGY_PROCESSES: dict[str, EnergyProcess] = {
    "45nm": EnergyProcess(
        integer_multiply=(0.002994791667, 0.001041666667),
        integer_add=0.003125,
        float_multiply=MappingProxyType({_HALF: 1.1, _SINGLE: 3.7}),
        float_add=MappingProxyType({_HALF: 0.4, _SINGLE: 0.9}),
        sram_word=(0.02455, -0.2656, 0.8661),
        smallest_sram_kib=8.0,
        dram_bit=20.3125,
        source="Horowitz, ISSCC 2014, as QKeras has it in code; widths between are estimates",
    )
}
"""Processes by name.

45nm: the figures are those of QKeras (``qtools/settings.py``), which says that they are estimates
of Horowitz, ISSCC 2014. What is his own is from memory, check before quoting: integer products of
8 and 32 bits take 0.2 and 3.1 pJ and a sum of 32 bits 0.1, all of which the polynomials meet; 64
bits of DRAM take 1,300 to 2,600 pJ, of which QKeras has the lower; 64 bits of a cache take 10, 20
and 100 pJ at 8, 32 and 1,000 KB, where QKeras' polynomial of SRAM gives 2.9, 4.0 and 7.7. Choices
of this project: the smallest memory of 8 KiB, fp16's figures for bf16, and the power law for
floats of fewer bits, which nobody measured.
"""


@dataclass(frozen=True)
class LayerEnergy:
    """Where the energy goes, as arrays of shape (n, L) in mJ; 0 where inactive.

    Attributes:
        compute: Multiplications and sums.
        sram: Tensors through on-chip memory.
        dram: Tensors through DRAM.
    """

    compute: FloatArray
    sram: FloatArray
    dram: FloatArray

    @property
    def total(self) -> FloatArray:
        """(n, L) all together."""
        return self.compute + self.sram + self.dram


class EnergyCost:
    """Prices networks by operations and traffic; satisfies :class:`apqkit.types.CostModel`.

    Products of integers are summed in 32 bits. With a float on either side both operands compute
    as floats, summed in 16 bits or in their own width if that is more. A sum of two rows takes one
    addition a value, a pool one for each value in a window, in the format of the input.

    Args:
        process: The silicon, such as ``ENERGY_PROCESSES["45nm"]``.
        batch: Images that are computed together; the energy is that of the whole batch.
        mixed_widths: The width at which operands of w and a bits multiply: ``geometric`` for
            sqrt(w a), as if the multiplier were built for the pair, or ``max`` for the wider one,
            as if the narrow operand rode in it.
        weights_in: Where weights live: ``dram`` adds reading them from there once a batch.
        activations_in: Where tensors between layers live. Images come from DRAM, and what nobody
            reads goes there, in any case.

    Raises:
        CostError: ``mixed_widths`` or a place has no such name, or the batch is empty.
    """

    metrics: tuple[str, ...] = ("energy_mj",)
    peaks: tuple[str, ...] = ()

    def __init__(
        self,
        process: EnergyProcess,
        *,
        batch: int = 1,
        mixed_widths: MixedWidths = "geometric",
        weights_in: Place = "dram",
        activations_in: Place = "sram",
    ) -> None:
        if batch < 1:
            raise CostError(f"batch must be at least 1, got {batch}")
        _check_choice("mixed_widths", mixed_widths, get_args(MixedWidths))
        _check_choice("weights_in", weights_in, get_args(Place))
        _check_choice("activations_in", activations_in, get_args(Place))
        self.process = process
        self.batch = batch
        self.mixed_widths = mixed_widths
        self.weights_in = weights_in
        self.activations_in = activations_in

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{"energy_mj": (n,)}``."""
        return self.totals({"energy_mj": self.layer_energy(table).total.sum(axis=1)})

    def totals(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns the metrics that follow from sums over rows of :meth:`layer_terms`."""
        return {name: sums[name] for name in self.metrics}

    def layer_terms(self, table: LayerTable) -> dict[str, FloatArray]:
        """``{"energy_mj": (n, L)}`` of each row, all parts of :meth:`layer_energy` together."""
        return {"energy_mj": self.layer_energy(table).total}

    def layer_energy(self, table: LayerTable) -> LayerEnergy:
        """Returns the energy of each row by what takes it."""
        output_bits, last_reader = stored_tensors(table)
        weights = table.weights * format_bits(table.weight_format)
        read = table.in_channels * table.in_height * table.in_width
        inputs = self.batch * read * format_bits(table.activation_format)
        readers = (table.producers >= 0).sum(axis=-1)
        written = table.out_channels * table.out_height * table.out_width
        outputs = self.batch * written * output_bits
        crossing = inputs * readers + outputs
        if self.activations_in == "sram":
            crossing = np.where(_enters_or_leaves(table, last_reader), outputs, 0)
        if self.weights_in == "dram":
            crossing = crossing + weights
        passes = self._sram_pj(weights) + self._sram_pj(inputs) * readers + self._sram_pj(outputs)
        return LayerEnergy(
            compute=self._compute_pj(table) * _MJ_A_PJ,
            sram=passes * _MJ_A_PJ,
            dram=crossing * self.process.dram_bit * _MJ_A_PJ,
        )

    def _compute_pj(self, table: LayerTable) -> FloatArray:
        """(n, L) multiplications and sums of the whole batch."""
        products = table.macs * self._mac_pj(table)
        return np.asarray(self.batch * (products + _additions(table) * self._add_pj(table)))

    def _mac_pj(self, table: LayerTable) -> FloatArray:
        """(n, L) one multiply-accumulate of each row's formats; 0 bits cost nothing."""
        widths = format_bits(table.weight_format), format_bits(table.activation_format)
        if self.mixed_widths == "geometric":
            bits = np.sqrt(widths[0] * widths[1])
        else:
            bits = np.maximum(*widths).astype(np.float64)
        process = self.process
        squared, plain = process.integer_multiply
        integer = squared * bits**2 + plain * bits + process.integer_add * _INTEGER_SUM_BITS
        product = _power_law(process.float_multiply, bits)
        sums = _power_law(process.float_add, np.maximum(bits, _HALF))
        floats = _is_float(table.weight_format) | _is_float(table.activation_format)
        return np.where(floats, product + sums, integer)

    def _add_pj(self, table: LayerTable) -> FloatArray:
        """(n, L) one addition in the format of each row's input."""
        bits = format_bits(table.activation_format).astype(np.float64)
        in_floats = _power_law(self.process.float_add, bits)
        floats = _is_float(table.activation_format)
        return np.where(floats, in_floats, self.process.integer_add * bits)

    def _sram_pj(self, bits: IntArray) -> FloatArray:
        """(n, L) one pass of tensors through memories that just hold them."""
        smallest = self.process.smallest_sram_kib * _BITS_A_KIB
        size = np.log2(np.maximum(bits, smallest))
        word = np.maximum(np.polyval(np.array(self.process.sram_word), size), 0.0)
        return np.asarray(-(-bits // _WORD_BITS) * word)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        listed = " or ".join(repr(each) for each in allowed)
        raise CostError(f"{name} must be {listed}, got {value!r}")


def _enters_or_leaves(table: LayerTable, last_reader: IntArray) -> BoolArray:
    """(n, L) True for images, and for outputs that no row reads."""
    unread = last_reader == np.arange(table.op.shape[1])
    return np.asarray(table.active & (unread | (table.op == OPS.index("input"))))


def _additions(table: LayerTable) -> IntArray:
    """(n, L) additions of sums and pools, one image; those of an average's division included."""
    windows = np.select(
        [table.op == OPS.index(op) for op in ("add", "pool", "global_pool")],
        [np.ones_like(table.op), table.kernel**2, table.in_height * table.in_width],
        default=0,
    )
    return np.asarray(windows * table.out_channels * table.out_height * table.out_width)


def _is_float(codes: IntArray) -> BoolArray:
    """Whether formats have exponents; those of blocks count as their elements."""
    floats = np.array([*(each.exponent_bits > 0 for each in FORMATS.values()), False])
    return np.asarray(floats[codes])  # -1 reads the last


def _power_law(figures: Mapping[int, float], bits: FloatArray) -> FloatArray:
    """The power of bits that goes through the figures of 16 and 32 bits."""
    exponent = np.log2(figures[_SINGLE] / figures[_HALF])
    return np.asarray(figures[_HALF] * (bits / _HALF) ** exponent)

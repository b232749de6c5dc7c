"""Latency by the roofline: a layer takes as long as its arithmetic or its memory traffic.

T = max(operations / peak of the unit that runs them, bytes / bandwidth) + overhead, with two
operations a multiply-accumulate. A format without a unit of its own runs in the fastest unit that
holds both operands: int4 on H100 in int8, fp8 on A100 in bf16, int8 on TPUv3 in bf16. Channels are
padded to the width of the unit. Source of the rule: Williams et al. 2009, and Li et al. 2021
(EfficientNet-X) for padding. Letters: n candidates, L rows.

The figures of one core of a CPU follow from its instructions: two fused multiply-adds a cycle of
16 fp32 lanes with AVX-512 (8 with AVX2); VNNI adds up four int8 products a lane, so four times as
many; without it two multiplying instructions do 32 int8 products where one does 8 fp32, so twice.
Assumptions are the two units (some chips have one of 512 bits), the clock of 2.4 GHz, the 12 GB/s
that one core draws, and that depthwise layers, which add up no channels, get as much from VNNI.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from apqkit.cost.capability import Capability
from apqkit.cost.tensors import format_bits, output_bits
from apqkit.formats import FORMATS, NumberFormat
from apqkit.types import BoolArray, FloatArray, IntArray, LayerTable

__all__ = ["ROOFLINES", "Chip", "RooflineCost", "capability", "unit_holds"]

_TERA, _GIGA, _MS = 1e12, 1e9, 1e3
_OPERATIONS_A_MAC = 2
_BYTE = 8
_UNIT_FAMILY = {"int4": "int", "int8": "int", "fp8": "float", "bf16": "float", "fp32": "float"}
_UNIT_BITS = {"int4": 4, "int8": 8, "fp8": 8, "bf16": 16, "fp32": 32}
_BF16_INTEGER_BITS = 8  # it holds integers up to 256 exactly
_GPU_WIDTHS = MappingProxyType({"int4": 32, "int8": 16, "fp8": 16, "bf16": 8, "fp32": 1})
_TPU_WIDTHS = MappingProxyType(dict.fromkeys(("int8", "bf16", "fp32"), 128))


@dataclass(frozen=True)
class Chip:
    """An accelerator or a core as its data sheet has it, one chip, dense.

    Attributes:
        name: For people.
        tera_ops: Peak of each unit: any of int4, int8, fp8, bf16, fp32.
        bandwidth_gb_s: Of its memory.
        widths: Channels that fill a unit.
        overhead_us: Added to every layer.
        source: Where the figures are from.
        vector: True for units that compute one vector of output channels at a time: input channels
            are not filled up, and the channels of a depthwise layer share a vector.
    """

    name: str
    tera_ops: Mapping[str, float]
    bandwidth_gb_s: float
    widths: Mapping[str, int] = field(default_factory=lambda: _GPU_WIDTHS)
    overhead_us: float = 0.0
    source: str = ""
    vector: bool = False


_DOCUMENTED = "vendor's documentation"
_RECALLED = "data sheet, from memory: check before quoting"
_CPU_GHZ, _CPU_GB_S = 2.4, 12.0
_DERIVED = f"instructions a cycle at an assumed {_CPU_GHZ} GHz and {_CPU_GB_S:g} GB/s"


def _cpu_core(instructions: str, lanes: int, int8_speedup: int) -> Chip:
    """One core that issues two fused multiply-adds of so many fp32 lanes a cycle."""
    fp32 = 2 * lanes * _OPERATIONS_A_MAC * _CPU_GHZ / 1e3
    return Chip(
        f"one CPU core with {instructions}",
        {"fp32": fp32, "int8": int8_speedup * fp32},
        _CPU_GB_S,
        MappingProxyType(dict.fromkeys(("fp32", "int8"), lanes)),
        source=_DERIVED,
        vector=True,
    )


ROOFLINES: dict[str, Chip] = {
    "tpu-v3": Chip("TPUv3", {"bf16": 123.0}, 900.0, _TPU_WIDTHS, source=_DOCUMENTED),
    "tpu-v4": Chip(
        "TPUv4", {"bf16": 275.0, "int8": 275.0}, 1200.0, _TPU_WIDTHS, source=_DOCUMENTED
    ),
    "v100": Chip(
        "V100 SXM2", {"fp32": 15.7, "bf16": 125.0, "int8": 62.8}, 900.0, source=_RECALLED
    ),
    "t4": Chip(
        "T4", {"fp32": 8.1, "bf16": 65.0, "int8": 130.0, "int4": 260.0}, 320.0, source=_RECALLED
    ),
    "a100": Chip(
        "A100 80 GB",
        {"fp32": 19.5, "bf16": 312.0, "int8": 624.0, "int4": 1248.0},
        2039.0,
        source=_DOCUMENTED,
    ),
    "h100": Chip(
        "H100 SXM",
        {"fp32": 67.0, "bf16": 989.0, "int8": 1979.0, "fp8": 1979.0},
        3350.0,
        source=_RECALLED,
    ),
    "cpu-avx2": _cpu_core("AVX2", lanes=8, int8_speedup=2),
    "cpu-avx512-vnni": _cpu_core("AVX-512 VNNI", lanes=16, int8_speedup=4),
}
"""Chips by name. Units called bf16 stand for fp16 where a chip has no bf16."""


def unit_holds(unit: str, number_format: NumberFormat) -> bool:
    """Returns whether a unit computes on every value of a format exactly.

    >>> unit_holds("int8", FORMATS["int4"]), unit_holds("fp8", FORMATS["int8"])
    (True, False)
    """
    bits = _UNIT_BITS[unit]
    if unit == "fp32":
        return number_format.bits <= bits
    if number_format.family == "int":
        held = _BF16_INTEGER_BITS if unit == "bf16" else bits
        return unit != "fp8" and number_format.bits <= held
    if unit.startswith("int"):
        return False
    return number_format.bits <= bits and (unit != "fp8" or _fits_fp8(number_format))


def capability(chip: Chip) -> Capability:
    """Returns what a chip computes natively: formats that have a unit of their family and width.

    int4 on H100, fp8 on A100 and int8 on TPUv3 run, in wider units, and are not native. Both
    operands must be native to the same unit.
    """

    def native(weights: NumberFormat | None, inputs: NumberFormat) -> bool:
        operands = (inputs,) if weights is None else (weights, inputs)
        return any(all(_is_of_unit(unit, each) for each in operands) for unit in chip.tera_ops)

    return Capability(
        f"in units of {', '.join(chip.tera_ops)}",
        dict.fromkeys(("conv", "linear", "add", "pool", "global_pool"), native),
    )


def _is_of_unit(unit: str, number_format: NumberFormat) -> bool:
    """Whether a unit is built for a format, which it then holds."""
    same = number_format.family == _UNIT_FAMILY[unit] and number_format.bits == _UNIT_BITS[unit]
    return same and unit_holds(unit, number_format)


def _fits_fp8(number_format: NumberFormat) -> bool:
    """Whether e4m3 or e5m2 has its exponents and its mantissa."""
    layouts = ((4, 3), (5, 2))
    return any(
        number_format.exponent_bits <= exponent and number_format.mantissa_bits <= mantissa
        for exponent, mantissa in layouts
    )


class RooflineCost:
    """Prices networks on a chip; satisfies :class:`apqkit.types.CostModel`.

    Args:
        chip: Which.
        batch: Images that are computed together.
    """

    metrics = ("latency_ms",)
    peaks: tuple[str, ...] = ()

    def __init__(self, chip: Chip, *, batch: int) -> None:
        self.chip = chip
        self.batch = batch

    def data_sheet(self) -> str:
        """Returns what the figures rest on, as CSV."""
        rows = [
            f"{unit},{peak:g},{self.chip.widths[unit]}"
            for unit, peak in self.chip.tera_ops.items()
        ]
        head = [
            f"# chip: {self.chip.name}",
            f"# bandwidth_gb_s: {self.chip.bandwidth_gb_s:g}",
            f"# overhead_us: {self.chip.overhead_us:g}",
            f"# source: {self.chip.source}",
            "unit,tera_ops,channels",
        ]
        return "\n".join([*head, *rows, ""])

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{"latency_ms": (n,)}``; NaN where the chip cannot run a candidate."""
        return self.totals({"latency_ms": self.layer_latency_ms(table).sum(axis=1)})

    def totals(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns the metrics that follow from sums over rows of :meth:`layer_terms`."""
        return {name: sums[name] for name in self.metrics}

    def layer_terms(self, table: LayerTable) -> dict[str, FloatArray]:
        """``{"latency_ms": (n, L)}`` of each row, as :meth:`layer_latency_ms` has it."""
        return {"latency_ms": self.layer_latency_ms(table)}

    def layer_latency_ms(self, table: LayerTable) -> FloatArray:
        """(n, L) latency of each row; 0 where inactive, NaN where no unit holds its formats."""
        bound = np.maximum(self.compute_ms(table), self.memory_ms(table))
        works = table.active & (table.op != 0)
        return np.where(works, bound + self.chip.overhead_us / _MS, 0.0)

    def compute_ms(self, table: LayerTable) -> FloatArray:
        """(n, L) time of the arithmetic in the fastest unit that holds both operands."""
        best = np.full(table.op.shape, np.nan)
        padded = _vector_macs if self.chip.vector else _padded_macs
        for unit, peak in self.chip.tera_ops.items():
            operations = _OPERATIONS_A_MAC * self.batch * padded(table, self.chip.widths[unit])
            time = operations / (peak * _TERA) * _MS
            best = np.fmin(best, np.where(_both_held(unit, table), time, np.nan))
        return np.where(table.macs > 0, best, 0.0)

    def memory_ms(self, table: LayerTable) -> FloatArray:
        """(n, L) time to read inputs and weights and to write the output once."""
        inputs = table.in_channels * table.in_height * table.in_width
        readers = (table.producers >= 0).sum(axis=-1)
        outputs = table.out_channels * table.out_height * table.out_width
        bits = self.batch * (
            inputs * readers * format_bits(table.activation_format) + outputs * output_bits(table)
        )
        bits = bits + table.weights * format_bits(table.weight_format)
        return np.asarray(bits / _BYTE / (self.chip.bandwidth_gb_s * _GIGA) * _MS)


def _padded_macs(table: LayerTable, width: int) -> FloatArray:
    """(n, L) multiply-accumulates of one image with a group's channels filled up to a width."""
    groups = np.maximum(table.groups, 1)
    inputs = _filled(table.in_channels // groups, width)
    outputs = _filled(table.out_channels // groups, width)
    return _macs(table, groups * inputs * outputs)


def _vector_macs(table: LayerTable, width: int) -> FloatArray:
    """(n, L) the same with output channels alone filled up, those of depthwise layers together."""
    groups = np.maximum(table.groups, 1)
    inputs, outputs = table.in_channels // groups, table.out_channels // groups
    depthwise = (inputs == 1) & (outputs == 1)
    together = np.where(depthwise, _filled(groups, width), groups * _filled(outputs, width))
    return _macs(table, together * inputs)


def _macs(table: LayerTable, channel_pairs: IntArray) -> FloatArray:
    """(n, L) multiply-accumulates of one image with so many pairs of channels."""
    taps = np.maximum(table.kernel, 1) ** 2
    pixels = table.out_height * table.out_width
    return np.where(table.macs > 0, pixels.astype(np.float64) * channel_pairs * taps, 0.0)


def _filled(channels: IntArray, width: int) -> IntArray:
    return np.asarray(-(-channels // width) * width)


def _both_held(unit: str, table: LayerTable) -> BoolArray:
    """(n, L) whether a unit computes on a row's weights and input exactly."""
    held = np.array([*(unit_holds(unit, each) for each in FORMATS.values()), True])  # -1: none
    return np.asarray(held[table.weight_format] & held[table.activation_format])

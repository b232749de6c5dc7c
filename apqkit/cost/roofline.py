"""Latency by the roofline: a layer takes as long as its arithmetic or its memory traffic.

T = max(operations / peak of the unit that runs them, bytes / bandwidth) + overhead, with two
operations a multiply-accumulate. A format without a unit of its own runs in the fastest unit that
holds both operands: int4 on H100 in int8, fp8 on A100 in bf16, int8 on TPUv3 in bf16. Channels are
padded to the width of the unit. Source of the rule: Williams et al. 2009, and Li et al. 2021
(EfficientNet-X) for padding. Letters: n candidates, L rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from apqkit.cost.tensors import format_bits, output_bits
from apqkit.formats import FORMATS, NumberFormat
from apqkit.types import BoolArray, FloatArray, IntArray, LayerTable

__all__ = ["ROOFLINES", "Chip", "RooflineCost", "unit_holds"]

_TERA, _GIGA, _MS = 1e12, 1e9, 1e3
_OPERATIONS_A_MAC = 2
_BYTE = 8
_UNIT_BITS = {"int4": 4, "int8": 8, "fp8": 8, "bf16": 16, "fp32": 32}
_BF16_INTEGER_BITS = 8  # it holds integers up to 256 exactly
_GPU_WIDTHS = MappingProxyType({"int4": 32, "int8": 16, "fp8": 16, "bf16": 8, "fp32": 1})
_TPU_WIDTHS = MappingProxyType(dict.fromkeys(("int8", "bf16", "fp32"), 128))


@dataclass(frozen=True)
class Chip:
    """An accelerator as its data sheet has it, one chip, dense.

    Attributes:
        name: For people.
        tera_ops: Peak of each unit: any of int4, int8, fp8, bf16, fp32.
        bandwidth_gb_s: Of its memory.
        widths: Channels that fill a unit.
        overhead_us: Added to every layer.
        source: Where the figures are from.
    """

    name: str
    tera_ops: Mapping[str, float]
    bandwidth_gb_s: float
    widths: Mapping[str, int] = field(default_factory=lambda: _GPU_WIDTHS)
    overhead_us: float = 0.0
    source: str = ""


_DOCUMENTED = "vendor's documentation"
_RECALLED = "data sheet, from memory: check before quoting"

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
}
"""Accelerators by name. Units called bf16 stand for fp16 where a chip has no bf16."""


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
        return {"latency_ms": self.layer_latency_ms(table).sum(axis=1)}

    def layer_latency_ms(self, table: LayerTable) -> FloatArray:
        """(n, L) latency of each row; 0 where inactive, NaN where no unit holds its formats."""
        bound = np.maximum(self.compute_ms(table), self.memory_ms(table))
        works = table.active & (table.op != 0)
        return np.where(works, bound + self.chip.overhead_us / _MS, 0.0)

    def compute_ms(self, table: LayerTable) -> FloatArray:
        """(n, L) time of the arithmetic in the fastest unit that holds both operands."""
        best = np.full(table.op.shape, np.nan)
        for unit, peak in self.chip.tera_ops.items():
            operations = (
                _OPERATIONS_A_MAC * self.batch * _padded_macs(table, self.chip.widths[unit])
            )
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
    taps = np.maximum(table.kernel, 1) ** 2

    def filled(channels: IntArray) -> IntArray:
        return np.asarray(-(-channels // width) * width)

    pixels = table.out_height * table.out_width
    inputs, outputs = filled(table.in_channels // groups), filled(table.out_channels // groups)
    padded = pixels.astype(np.float64) * groups * inputs * outputs * taps
    return np.where(table.macs > 0, padded, 0.0)


def _both_held(unit: str, table: LayerTable) -> BoolArray:
    """(n, L) whether a unit computes on a row's weights and input exactly."""
    held = np.array([*(unit_holds(unit, each) for each in FORMATS.values()), True])  # -1: none
    return np.asarray(held[table.weight_format] & held[table.activation_format])

"""HW-NAS-Bench's tables of FBNet's operations: one number a name.

``HWNASBenchAPI.get_op_lookup_tables()`` of github.com/GATECH-EIC/HW-NAS-Bench returns a mapping
for each device and metric; one of latencies in ms, written as JSON, is what is read here. Names
are ``ConvNorm_H_W_Cin_Cout_kernel_stride_group``, ``FC_Cin_Cout``,
``ConvBlock_H_W_Cin_Cout_exp_kernel_stride_group``, ``AvgP_H_W_Cin_Cout_kernel_stride`` and
``Skip_H_W_Cin_Cout_stride``, each letter followed by its number. A block expands by ``exp``, 1
included, and adds its input where shapes allow; ``group`` is that of its pointwise convolutions.
A skip that changes the shape is a 1x1 convolution. -1 stands for what the device cannot run; about
0 is what a skip without work takes. Number formats are not stated; rows say fp32.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeGuard

from apqkit.cost.importers.rows import (
    Figures,
    ImportedRows,
    Line,
    TableOptions,
    conv_key,
    global_pool_key,
    header_of,
    linear_key,
)
from apqkit.cost.importers.sources import WHOLE, positive, read_json
from apqkit.cost.keys import key_of
from apqkit.cost.lut import LookupTable
from apqkit.cost.lut_cost import FREE_HEADER
from apqkit.errors import CostError
from apqkit.types import IntArray

__all__ = ["HwNasBenchTableOptions", "read_hw_nas_bench"]

_NOT_AVAILABLE = -1
_NO_WORK_MS = 1e-6  # a nanosecond: no operation takes less
_MAP = ("H", "W", "Cin", "Cout")
_PARTS: Mapping[str, tuple[str, ...]] = {
    "ConvNorm": (*_MAP, "kernel", "stride", "group"),
    "ConvBlock": (*_MAP, "exp", "kernel", "stride", "group"),
    "Skip": (*_MAP, "stride"),
    "AvgP": (*_MAP, "kernel", "stride"),
    "FC": ("Cin", "Cout"),
}
_GRAMMAR = {
    kind: re.compile("_".join([kind, *(f"{part}(?P<{part}>{WHOLE})" for part in parts)]), re.ASCII)
    for kind, parts in _PARTS.items()
}
_LEFT_OUT = ("not available", "without work", "grouped pointwise")


class HwNasBenchTableOptions(TableOptions):
    """What the header says of a table; the device must be named."""

    licence: Line = "MIT"
    source: Line | None = "github.com/GATECH-EIC/HW-NAS-Bench, HW-NAS-Bench-v1_0.pickle"


def read_hw_nas_bench(path: Path, options: HwNasBenchTableOptions) -> LookupTable:
    """Reads a table of FBNet's operations; what is left out is counted in the header.

    Args:
        path: JSON of latencies in ms by name.
        options: For the header.

    Raises:
        CostError: The file is missing or broken, or a name is of another grammar.
    """
    rows = ImportedRows(path)
    left_out: Counter[str] = Counter()
    for name, value in read_json(path).items():
        where = f"{path}, {name!r}"
        kind, op = _parsed(name, where)
        reason = _reason_to_leave_out(kind, op, value)
        if reason:
            left_out[reason] += 1
            continue
        rows.add(name, _KEYS[kind](op, where), Figures(positive(value, "latency", where)))
    counts = ", ".join(f"{left_out[reason]} {reason}" for reason in _LEFT_OUT)
    return rows.table(header_of(options, path) | {"left_out": counts, FREE_HEADER: "input add"})


def _parsed(name: str, where: str) -> tuple[str, dict[str, int]]:
    kind = name.partition("_")[0]
    match = _GRAMMAR[kind].fullmatch(name) if kind in _GRAMMAR else None
    if match is None:
        known = ", ".join("_".join([kind, *parts]) for kind, parts in _PARTS.items())
        raise CostError(f"{where}: expected one of {known}, each letter with its number")
    return kind, {part: int(text) for part, text in match.groupdict().items()}


def _reason_to_leave_out(kind: str, op: Mapping[str, int], value: object) -> str:
    """Returns why an operation is no row, or an empty text."""
    if value == _NOT_AVAILABLE:
        return "not available"
    if _is_number(value) and 0 <= value < _NO_WORK_MS:
        return "without work"
    if kind == "Skip" and op["stride"] == 1 and op["Cin"] == op["Cout"]:
        return "without work"
    if kind == "ConvBlock" and op["group"] > 1:  # a key has no place for it
        return "grouped pointwise"
    return ""


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _conv(op: Mapping[str, int], where: str) -> IntArray:
    kernel, groups = op.get("kernel", 1), op.get("group", 1)
    _check_odd(kernel, where)
    if op["Cin"] % groups or op["Cout"] % groups:
        raise CostError(f"{where}: {groups} groups do not divide the channels")
    channels, size = (op["Cin"], op["Cout"]), (op["H"], op["W"])
    return conv_key(channels, size, kernel=kernel, stride=op["stride"], groups=groups)


def _block(op: Mapping[str, int], where: str) -> IntArray:
    _check_odd(op["kernel"], where)
    hidden = op["Cin"] * op["exp"]
    columns: dict[str, int | str] = {
        "in_channels": op["Cin"],
        "hidden_channels": hidden,
        "out_channels": op["Cout"],
        "kernel": op["kernel"],
        "stride": op["stride"],
        "groups": hidden,
        "in_height": op["H"],
        "in_width": op["W"],
        "activation": "relu",
        "residual": int(op["stride"] == 1 and op["Cin"] == op["Cout"]),
        "weight_format": "fp32",
        "activation_format": "fp32",
    }
    return key_of("inverted_residual", columns)


def _pool(op: Mapping[str, int], where: str) -> IntArray:
    if (op["kernel"], op["kernel"], op["Cin"]) != (op["H"], op["W"], op["Cout"]):
        raise CostError(f"{where}: an average of whole maps is expected")
    return global_pool_key(op["Cin"], (op["H"], op["W"]))


def _linear(op: Mapping[str, int], where: str) -> IntArray:
    del where
    return linear_key((op["Cin"], op["Cout"]))


def _check_odd(kernel: int, where: str) -> None:
    if kernel % 2 == 0:
        raise CostError(f"{where}: the kernel must be odd, got {kernel}")


_KEYS: Mapping[str, Callable[[Mapping[str, int], str], IntArray]] = {
    "ConvNorm": _conv,
    "ConvBlock": _block,
    "Skip": _conv,
    "AvgP": _pool,
    "FC": _linear,
}

"""Which number formats a device computes natively, by operation.

Native means: the device has arithmetic for exactly these formats. What only rides in a wider
carrier, such as int4 in an int8 multiplier, runs but gains no arithmetic, and is not native.
Letters: n candidates, L rows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from apqkit.errors import CostError
from apqkit.formats import FORMATS, NumberFormat, format_named
from apqkit.registry import lookup
from apqkit.types import OPS, BoolArray, LayerTable

__all__ = [
    "ONNXRUNTIME_CPU",
    "Capability",
    "Native",
    "native_formats",
    "non_native",
    "offered_natively",
]

Native: TypeAlias = Callable[[NumberFormat | None, NumberFormat], bool]
"""(format of the weights, None where there are none; format of the input) -> native or not."""

_WEIGHTED = ("conv", "linear")
_INT8_BITS = 8


@dataclass(frozen=True)
class Capability:
    """What a device computes natively.

    Attributes:
        says: In a few words, for messages and reports.
        rules: One rule an operation; operations that are left out take any format.
    """

    says: str
    rules: Mapping[str, Native]


def native_formats(capability: Capability, op: str) -> frozenset[tuple[str | None, str]]:
    """Returns the native pairs (weight format, input format) of an operation, by name.

    Integers stand with and without sign; operations without weights have None for them.

    Raises:
        UnknownNameError: The capability has no rule for the operation.
    """
    rule = lookup(capability.rules, op, "operation with a rule")
    weights = FORMATS.values() if op in _WEIGHTED else (None,)
    return frozenset(
        (None if weight is None else weight.name, inputs.name)
        for weight in weights
        for inputs in FORMATS.values()
        if rule(weight, inputs)
    )


def non_native(capability: Capability, table: LayerTable) -> BoolArray:
    """(n, L) True where an active row computes in formats that are not native."""
    formats = tuple(FORMATS.values())
    none = len(formats)  # code -1 reads the last
    native = np.ones((len(OPS), none + 1, none + 1), dtype=bool)
    for op, rule in capability.rules.items():
        weighted = op in _WEIGHTED
        for row, weight in enumerate(formats) if weighted else [(none, None)]:
            native[OPS.index(op), row, :none] = [rule(weight, inputs) for inputs in formats]
    offered = native[table.op, table.weight_format, table.activation_format]
    return np.asarray(table.active & ~offered)


def offered_natively(
    capability: Capability, weight_formats: Iterable[str], activation_formats: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the formats that are native in at least one pair of those offered, in their order.

    A pair counts if convolutions and linear layers both compute it natively. Of what is left some
    pairs may still not be native (int8 with fp32 where both go with themselves only): those are
    for :func:`non_native` to find.

    Raises:
        CostError: No pair is native.
        UnknownNameError: A format does not exist.
    """
    weights, inputs = tuple(weight_formats), tuple(activation_formats)
    rules = [capability.rules[op] for op in _WEIGHTED if op in capability.rules]
    pairs = [
        (weight, each)
        for weight in weights
        for each in inputs
        if all(rule(format_named(weight), format_named(each)) for rule in rules)
    ]
    if not pairs:
        raise CostError(
            f"no pair of weight formats {', '.join(weights)} and input formats "
            f"{', '.join(inputs)} is native to the device: it computes {capability.says}"
        )
    left = {weight for weight, _ in pairs}, {each for _, each in pairs}
    return tuple(w for w in weights if w in left[0]), tuple(a for a in inputs if a in left[1])


def _in_int8_or_fp32(weights: NumberFormat | None, inputs: NumberFormat) -> bool:
    operands = (inputs,) if weights is None else (weights, inputs)
    in_int8 = all(each.family == "int" and each.bits == _INT8_BITS for each in operands)
    return in_int8 or all(each.is_fp32 for each in operands)


ONNXRUNTIME_CPU = Capability(
    "int8 with int8, and fp32",
    dict.fromkeys(("conv", "linear", "add", "pool", "global_pool"), _in_int8_or_fp32),
)
"""ONNX Runtime on a CPU: integers of fewer bits ride in int8, floats of fewer bits in fp32."""

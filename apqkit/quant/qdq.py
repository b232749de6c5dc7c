"""The ONNX nodes that compute what a quantizer computes.

Integer activations ride in unsigned carriers of 8 or 16 bits, signed ones with the middle code
standing for 0: the runtime fuses a layer into an integer kernel only where its input and output
have one type. Where a format has fewer codes than its carrier, a Clip after QuantizeLinear keeps
to them. Weights are stored as integers wherever steps of one size hold them, else as float8.
fp8_e4m3 and fp8_e5m2 use the float8 types; other small floats are rounded by ordinary nodes, since
ONNX Runtime quantizes to no such type on a CPU. Block formats have no ONNX form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from apqkit.errors import ExportError
from apqkit.formats import SMALLEST_SCALE, NumberFormat
from apqkit.quant.carriers import carrier_bits, value_step

__all__ = [
    "FLOAT8_FORMATS",
    "OPSET",
    "Carrier",
    "GraphParts",
    "carrier_zero",
    "check_carrier",
    "dequantize_apart",
    "lower_activation",
    "lower_bias",
    "lower_weight",
]

OPSET = 21
"""The ONNX operator set of a model, unless what it holds needs a later one."""

Carrier = Literal["int8", "packed"]
"""How weights of at most 4 bits are stored: as int8, or in 2 or 4 bits and cast when loaded."""

FLOAT8_FORMATS = MappingProxyType(
    {"fp8_e4m3": TensorProto.FLOAT8E4M3FN, "fp8_e5m2": TensorProto.FLOAT8E5M2}
)
"""Formats of which ONNX has a type, by name."""

_FLOAT8_OPSET, _BLOCKED_OPSET, _WIDE_OPSET = 19, 21, 21
_PACKED = {2: (TensorProto.INT2, 25), 4: (TensorProto.INT4, 21)}
"""Packed types by bits, with the first operator set that has them."""


@dataclass(frozen=True)
class GraphParts:
    """Nodes and constants that are being collected for a graph.

    Attributes:
        nodes: In order of execution.
        constants: Stored tensors.
        needs: The least operator set that each kind of thing in use asks for.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    needs: dict[str, int] = field(default_factory=dict)

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Adds a node with one output and returns the name of that."""
        node = helper.make_node(op, list(inputs), [output], name=output, **(attributes or {}))
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        """Adds a constant and returns its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def typed_constant(self, name: str, value: NDArray[np.float32], data_type: int) -> str:
        """Adds a constant of an ONNX type that NumPy lacks and returns its name."""
        stored = value.astype(helper.tensor_dtype_to_np_dtype(data_type))
        self.constants.append(numpy_helper.from_array(stored, name))
        return name


def check_carrier(carrier: str) -> None:
    """Raises if a word is no carrier.

    Raises:
        ExportError: It is not.
    """
    if carrier not in get_args(Carrier):
        raise ExportError(f"carrier must be {' or '.join(get_args(Carrier))}, got {carrier!r}")


def carrier_zero(*, signed: bool, bits: int = 8) -> np.uint8 | np.uint16:
    """Returns the code that stands for 0 in the unsigned carrier of integer activations.

    Args:
        signed: Whether the integers are.
        bits: Of the carrier, 8 or 16.
    """
    code = 2 ** (bits - 1) if signed else 0
    return np.uint8(code) if bits == 8 else np.uint16(code)


def lower_activation(
    parts: GraphParts,
    source: str,
    target: str,
    number_format: NumberFormat,
    scale: float | None,
    zero_point: int = 0,
) -> None:
    """Adds the nodes that read ``source`` and write its quantized form to ``target``.

    Args:
        parts: Where nodes and constants go.
        source: Name of the fp32 tensor.
        target: Name of the fp32 tensor that holds quantized values.
        number_format: A format other than fp32, of the right sign.
        scale: Frozen, positive; None finds one for every row along the last axis as it comes.
        zero_point: Level that stands for 0.

    Raises:
        ExportError: The format has no ONNX form.
    """
    if number_format.name == "bf16":
        half = parts.node("Cast", [source], f"{target}.code", {"to": TensorProto.BFLOAT16})
        parts.node("Cast", [half], target, {"to": TensorProto.FLOAT})
    elif not number_format.is_scaled:
        raise ExportError(_no_form("activations", number_format))
    elif scale is None:
        step = _token_scale(parts, source, target, number_format)
        _round_by_nodes(parts, source, target, number_format, step)
    elif number_format.family == "float" and number_format.name not in FLOAT8_FORMATS:
        step = parts.constant(f"{target}.scale", np.float32(scale))
        _round_by_nodes(parts, source, target, number_format, step)
    else:
        _quantize_and_back(parts, source, target, number_format, scale, zero_point)


def lower_weight(
    parts: GraphParts,
    target: str,
    number_format: NumberFormat,
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
    *,
    group_size: int | None = None,
    carrier: Carrier = "int8",
    folds: bool = False,
) -> None:
    """Adds a stored weight and the nodes that write its fp32 values to ``target``.

    Args:
        parts: Where nodes and constants go.
        target: Name of the fp32 tensor.
        number_format: A format other than fp32.
        values: Weights as the format holds them, output channels first.
        scale: (channels,); with groups the weight's shape with groups for input channels.
        group_size: Input channels that share a scale, or None.
        carrier: How integers of at most 4 bits are stored; both carriers give the same numbers.
        folds: For a layer without an integer kernel: writes nodes that runtimes compute once, when
            they load the model, and not DequantizeLinear, which they keep. The numbers are the
            same.

    Raises:
        ExportError: The format has no ONNX form.
    """
    if number_format.name == "bf16":
        code = parts.typed_constant(f"{target}.code", values, TensorProto.BFLOAT16)
        parts.node("Cast", [code], target, {"to": TensorProto.FLOAT})
        return
    attributes = {"axis": 0}
    spread = scale.reshape(-1, *[1] * (values.ndim - 1)) if group_size is None else scale
    if group_size is not None:
        parts.needs[f"groups of {group_size} weights"] = _BLOCKED_OPSET
        attributes = {"axis": 1, "block_size": group_size}
        spread = np.repeat(scale, group_size, axis=1)[:, : values.shape[1]]
    unit = value_step(number_format)
    if unit is None:
        raise ExportError(_no_form("weights", number_format))
    levels = values / spread
    if number_format.name in FLOAT8_FORMATS:
        parts.needs[f"{number_format.name} weights"] = _FLOAT8_OPSET
        stored: int = FLOAT8_FORMATS[number_format.name]
        code = parts.typed_constant(f"{target}.code", levels, stored)
    else:
        code, stored = _integer_code(parts, target, number_format, levels / unit, carrier)
        scale = (scale * unit).astype(np.float32)
        if folds and group_size is None:
            _scaled_when_loaded(parts, target, code, scale.reshape(spread.shape))
            return
    step = parts.constant(f"{target}.scale", scale)
    # Integer kernels are fused only where zero points are spelled out.
    zero = parts.typed_constant(f"{target}.zero", np.zeros(scale.shape, np.float32), stored)
    parts.node("DequantizeLinear", [code, step, zero], target, attributes)


def _integer_code(
    parts: GraphParts,
    target: str,
    number_format: NumberFormat,
    levels: NDArray[np.float32],
    carrier: Carrier,
) -> tuple[str, int]:
    """Stores whole levels; returns the name and the type of the tensor that is dequantized."""
    bits = carrier_bits(number_format)
    if bits is None:
        raise ExportError(_no_form("weights", number_format))
    whole = np.rint(levels)
    if bits == 16:
        parts.needs[f"{number_format.name} weights"] = _WIDE_OPSET
        return parts.typed_constant(f"{target}.code", whole, TensorProto.INT16), TensorProto.INT16
    packed = next((b for b in _PACKED if number_format.bits <= b), None)
    if carrier == "int8" or number_format.family != "int" or packed is None:
        return parts.typed_constant(f"{target}.code", whole, TensorProto.INT8), TensorProto.INT8
    data_type, parts.needs[f"packed {number_format.name} weights"] = _PACKED[packed]
    code = parts.typed_constant(f"{target}.packed", whole, data_type)
    # Runtimes unpack a constant once, when they load it, and have kernels for int8 alone.
    unpacked = parts.node("Cast", [code], f"{target}.code", {"to": TensorProto.INT8})
    return unpacked, TensorProto.INT8


def lower_bias(
    parts: GraphParts,
    target: str,
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
    *,
    folds: bool = False,
) -> None:
    """Adds a bias stored as int32 and the nodes that write its fp32 values to ``target``.

    Args:
        parts: Where nodes and constants go.
        target: Name of the fp32 tensor.
        values: (channels,) multiples of the scale.
        scale: (channels,) input scale times weight scale, of the integers that hold both.
        folds: As in :func:`lower_weight`.
    """
    code = parts.constant(f"{target}.code", np.rint(values / scale).astype(np.int32))
    if folds:
        _scaled_when_loaded(parts, target, code, scale)
        return
    zero = parts.constant(f"{target}.zero", np.zeros(len(scale), np.int32))
    step = parts.constant(f"{target}.scale", scale.astype(np.float32))
    parts.node("DequantizeLinear", [code, step, zero], target, {"axis": 0})


def dequantize_apart(parts: GraphParts, target: str, channels: int) -> str:
    """Adds nodes that dequantize a tensor once more, in a form that fuses with nothing.

    It is the same scale for every channel or, where there is but one, a clip that cuts nothing.

    Args:
        parts: Where the tensor was quantized.
        target: Name that :func:`lower_activation` wrote it to.
        channels: Size of axis 1.
    """
    name = f"{target}.apart"
    if any(name in each.output for each in parts.nodes):  # two layers read it
        return name
    if channels == 1:
        widest = np.finfo(np.float32)
        ends = (("least", widest.min), ("most", widest.max))
        limits = [parts.constant(f"{target}.{end}", np.float32(value)) for end, value in ends]
        return parts.node("Clip", [target, *limits], name)
    node = next(each for each in parts.nodes if target in each.output)
    values = {each.name: each for each in parts.constants}
    spread = []
    for suffix, source in zip(("scales", "zeros"), node.input[1:3], strict=True):
        constant = numpy_helper.to_array(values[source])
        stored = numpy_helper.from_array(np.full(channels, constant), f"{target}.{suffix}")
        parts.constants.append(stored)
        spread.append(stored.name)
    return parts.node("DequantizeLinear", [node.input[0], *spread], name, {"axis": 1})


def _scaled_when_loaded(
    parts: GraphParts, target: str, code: str, scale: NDArray[np.float32]
) -> None:
    whole = parts.node("Cast", [code], f"{target}.whole", {"to": TensorProto.FLOAT})
    step = parts.constant(f"{target}.scale", scale.astype(np.float32))
    parts.node("Mul", [whole, step], target)


def _quantize_and_back(
    parts: GraphParts,
    source: str,
    target: str,
    number_format: NumberFormat,
    scale: float,
    zero_point: int,
) -> None:
    step = parts.constant(f"{target}.scale", np.float32(scale))
    if number_format.name in FLOAT8_FORMATS:
        parts.needs[f"{number_format.name} activations"] = _FLOAT8_OPSET
        data_type = FLOAT8_FORMATS[number_format.name]
        zero = parts.typed_constant(f"{target}.zero", np.zeros((), np.float32), data_type)
        code = parts.node("QuantizeLinear", [source, step, zero], f"{target}.code")
        parts.node("DequantizeLinear", [code, step, zero], target)
        return
    bits = carrier_bits(number_format)
    assert bits is not None
    if bits == 16:
        parts.needs[f"{number_format.name} activations"] = _WIDE_OPSET
    middle = carrier_zero(signed=number_format.signed, bits=bits)
    kind = type(middle)
    zero = parts.constant(f"{target}.zero", kind(int(middle) + zero_point))
    code = parts.node("QuantizeLinear", [source, step, zero], f"{target}.code")
    if number_format.bits < bits:
        # A Clip of codes lets the runtime fuse the layer before it into an integer kernel; one of
        # fp32 values would not.
        low = parts.constant(f"{target}.low", kind(int(middle) + number_format.lowest_level))
        high = parts.constant(f"{target}.high", kind(int(middle) + number_format.highest_level))
        code = parts.node("Clip", [code, low, high], f"{target}.clipped")
    parts.node("DequantizeLinear", [code, step, zero], target)


def _token_scale(parts: GraphParts, source: str, target: str, number_format: NumberFormat) -> str:
    """Adds nodes that find a scale for every row along the last axis."""
    axis = parts.constant(f"{target}.axis", np.array([-1], np.int64))
    largest = parts.constant(f"{target}.max", np.float32(number_format.max_value))
    least = parts.constant(f"{target}.least", np.float32(SMALLEST_SCALE))
    magnitude = parts.node("Abs", [source], f"{target}.magnitude")
    reach = parts.node("ReduceMax", [magnitude, axis], f"{target}.reach", {"keepdims": 1})
    parts.needs["per-token scales"] = 18
    ideal = parts.node("Div", [reach, largest], f"{target}.ideal")
    return parts.node("Max", [ideal, least], f"{target}.scale")


def _round_by_nodes(
    parts: GraphParts, source: str, target: str, number_format: NumberFormat, step: str
) -> None:
    """Rounds to the values of a format, ties to even, and saturates.

    Steps of a minifloat double with every power of two from its smallest normal value on: fp4 has
    steps of 1/2 below 2, 1 below 4, else 2.
    """

    def constant(name: str, value: float) -> str:
        return parts.constant(f"{target}.{name}", np.float32(value))

    scaled = parts.node("Div", [source, step], f"{target}.scaled")
    if number_format.family == "int":
        whole = parts.node("Round", [scaled], f"{target}.whole")
        ends = [
            constant("low", number_format.lowest_level),
            constant("high", number_format.highest_level),
        ]
        level = parts.node("Clip", [whole, *ends], f"{target}.level")
        parts.node("Mul", [level, step], target)
        return
    sign = parts.node("Sign", [scaled], f"{target}.sign")
    magnitude = parts.node("Abs", [scaled], f"{target}.abs")
    capped = parts.node(
        "Min", [magnitude, constant("top", number_format.max_value)], f"{target}.capped"
    )
    lowest = number_format.min_exponent
    unit = constant("unit", 2.0 ** (lowest - number_format.mantissa_bits))
    for exponent in range(lowest + 1, int(np.frexp(number_format.max_value)[1])):
        edge = constant(f"edge{exponent}", 2.0**exponent)
        above = parts.node("GreaterOrEqual", [capped, edge], f"{target}.above{exponent}")
        wider = constant(f"unit{exponent}", 2.0 ** (exponent - number_format.mantissa_bits))
        unit = parts.node("Where", [above, wider, unit], f"{target}.unit_to{exponent}")
    units = parts.node("Div", [capped, unit], f"{target}.units")
    whole = parts.node("Round", [units], f"{target}.whole")
    level = parts.node("Mul", [whole, unit], f"{target}.level")
    signed = parts.node("Mul", [level, sign], f"{target}.signed")
    parts.node("Mul", [signed, step], target)


def _no_form(what: str, number_format: NumberFormat) -> str:
    why = "blocks with scales of their own are emulated in torch only"
    reason = f": {why}" if number_format.block_size else ""
    return f"{what} in {number_format.name} have no ONNX form{reason}"

"""The ONNX nodes that compute what a quantizer computes.

Integer activations ride in unsigned 8-bit carriers, signed ones with 128 standing for 0: the
runtime fuses a layer into an integer kernel only where its input and output have one type. Under 8
bits a Clip after QuantizeLinear keeps to the format's levels.
fp8 uses the float8 types. fp4 weights are exact in int8 at half the scale; fp4 activations are
rounded by ordinary nodes, since ONNX Runtime has no float4 QuantizeLinear on a CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from apqkit.errors import ExportError
from apqkit.formats import NumberFormat
from apqkit.quant.integer import integer_step

__all__ = ["OPSET", "GraphParts", "carrier_zero", "lower_activation", "lower_bias", "lower_weight"]

OPSET = 21
"""The ONNX operator set of every model that is written."""

_FLOAT8 = {"fp8_e4m3": TensorProto.FLOAT8E4M3FN, "fp8_e5m2": TensorProto.FLOAT8E5M2}
_FP4 = "fp4_e2m1"


@dataclass(frozen=True)
class GraphParts:
    """Nodes and constants that are being collected for a graph."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Adds a node named after its output and returns that name."""
        node = helper.make_node(op, list(inputs), [output], name=output, **(attributes or {}))
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        """Adds a constant and returns its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def typed_constant(self, name: str, value: NDArray[np.float32], data_type: int) -> str:
        """Adds a constant of an ONNX type that NumPy lacks and returns its name."""
        flat = value.astype(np.float32).ravel()
        self.constants.append(helper.make_tensor(name, data_type, value.shape, flat))
        return name


def carrier_zero(*, signed: bool) -> np.uint8:
    """Returns the code that stands for 0 in the unsigned 8-bit carrier of integer activations."""
    return np.uint8(128 if signed else 0)


def lower_activation(
    parts: GraphParts, source: str, target: str, number_format: NumberFormat, scale: float
) -> None:
    """Adds the nodes that read ``source`` and write its quantized form to ``target``.

    Args:
        parts: Where nodes and constants go.
        source: Name of the fp32 tensor.
        target: Name of the fp32 tensor that holds quantized values.
        number_format: A format other than fp32, of the right sign.
        scale: Frozen, positive.

    Raises:
        ExportError: The format has no ONNX form.
    """
    step = parts.constant(f"{target}.scale", np.float32(scale))
    if number_format.name == _FP4:
        _lower_fp4_activation(parts, source, target, step)
        return
    if number_format.name in _FLOAT8:
        data_type = _FLOAT8[number_format.name]
        zero = parts.typed_constant(f"{target}.zero", np.zeros((), np.float32), data_type)
    elif number_format.family == "int" and number_format.bits <= 8:
        zero = parts.constant(f"{target}.zero", carrier_zero(signed=number_format.signed))
    else:
        raise ExportError(f"activations in {number_format.name} have no ONNX form")
    code = parts.node("QuantizeLinear", [source, step, zero], f"{target}.code")
    if number_format.family == "int" and number_format.bits < 8:
        code = _clip_levels(parts, code, target, number_format)
    parts.node("DequantizeLinear", [code, step, zero], target)


def lower_weight(
    parts: GraphParts,
    target: str,
    number_format: NumberFormat,
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> None:
    """Adds a stored weight and the node that writes its fp32 values to ``target``.

    Args:
        parts: Where nodes and constants go.
        target: Name of the fp32 tensor.
        number_format: A format other than fp32.
        values: Weights as the format holds them, output channels first.
        scale: (channels,).

    Raises:
        ExportError: The format has no ONNX form.
    """
    levels = values / scale.reshape(-1, *[1] * (values.ndim - 1))
    if number_format.name in _FLOAT8:
        data_type = _FLOAT8[number_format.name]
        code = parts.typed_constant(f"{target}.code", levels, data_type)
        zero = parts.typed_constant(f"{target}.zero", np.zeros(len(scale), np.float32), data_type)
    else:
        unit = integer_step(number_format)
        if unit is None:
            raise ExportError(f"weights in {number_format.name} have no ONNX form")
        scale = (scale * unit).astype(np.float32)
        code = parts.constant(f"{target}.code", np.rint(levels / unit).astype(np.int8))
        zero = parts.constant(f"{target}.zero", np.zeros(len(scale), np.int8))
    step = parts.constant(f"{target}.scale", scale)
    parts.node("DequantizeLinear", [code, step, zero], target, {"axis": 0})


def lower_bias(
    parts: GraphParts,
    target: str,
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> None:
    """Adds a bias stored as int32 and the node that writes its fp32 values to ``target``.

    Args:
        parts: Where nodes and constants go.
        target: Name of the fp32 tensor.
        values: (channels,) multiples of the scale.
        scale: (channels,) input scale times weight scale, of the integers that hold both.
    """
    code = parts.constant(f"{target}.code", np.rint(values / scale).astype(np.int32))
    zero = parts.constant(f"{target}.zero", np.zeros(len(scale), np.int32))
    step = parts.constant(f"{target}.scale", scale.astype(np.float32))
    parts.node("DequantizeLinear", [code, step, zero], target, {"axis": 0})


def _clip_levels(parts: GraphParts, code: str, target: str, number_format: NumberFormat) -> str:
    """Keeps 8-bit codes to the levels of a narrower integer.

    A Clip of codes lets the runtime fuse the layer before it into an integer kernel; one of fp32
    values would not.
    """
    zero = int(carrier_zero(signed=number_format.signed))
    low = parts.constant(f"{target}.low", np.uint8(zero + number_format.lowest_level))
    high = parts.constant(f"{target}.high", np.uint8(zero + number_format.highest_level))
    return parts.node("Clip", [code, low, high], f"{target}.clipped")


def _lower_fp4_activation(parts: GraphParts, source: str, target: str, step: str) -> None:
    """Rounds to 0 .5 1 1.5 2 3 4 6 with ties to even: steps of 1/2 below 2, 1 below 4, else 2."""

    def constant(name: str, value: float) -> str:
        return parts.constant(f"{target}.{name}", np.float32(value))

    half, two, four, six = (constant(n, v) for n, v in zip("htfs", (0.5, 2, 4, 6), strict=True))
    scaled = parts.node("Div", [source, step], f"{target}.scaled")
    sign = parts.node("Sign", [scaled], f"{target}.sign")
    magnitude = parts.node("Abs", [scaled], f"{target}.abs")
    capped = parts.node("Min", [magnitude, six], f"{target}.capped")
    doubled = parts.node("Mul", [capped, two], f"{target}.doubled")
    halved = parts.node("Mul", [capped, half], f"{target}.halved")
    fine = parts.node("Round", [doubled], f"{target}.fine_level")
    fine = parts.node("Mul", [fine, half], f"{target}.fine")
    middle = parts.node("Round", [capped], f"{target}.middle")
    coarse = parts.node("Round", [halved], f"{target}.coarse_level")
    coarse = parts.node("Mul", [coarse, two], f"{target}.coarse")
    below_four = parts.node("Less", [capped, four], f"{target}.below_four")
    below_two = parts.node("Less", [capped, two], f"{target}.below_two")
    upper = parts.node("Where", [below_four, middle, coarse], f"{target}.upper")
    level = parts.node("Where", [below_two, fine, upper], f"{target}.level")
    signed = parts.node("Mul", [level, sign], f"{target}.signed")
    parts.node("Mul", [signed, step], target)

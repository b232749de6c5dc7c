"""ONNX graphs that hold layers and conversions side by side, to be timed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from apqkit.cost.keys import CONVERSIONS, KEY_COLUMNS, TABLE_ACTIVATIONS, TABLE_OPS
from apqkit.cost.measure import BLOCK_PROBES
from apqkit.formats import FORMATS
from apqkit.quant.qdq import OPSET, GraphParts, carrier_zero, lower_bias, lower_weight
from apqkit.types import IntArray

__all__ = ["bench_graph", "block_probe"]

_STEP = np.float32(0.02)
_IR_VERSION = 10
_BLOCKS = "com.microsoft.nchwc"  # the runtime's own ops on channels in blocks
_IMAGE_CHANNELS = 4  # at most; tensors of more come from a convolution


@dataclass(frozen=True)
class _Bench:
    """One row of the graph.

    Attributes:
        parts: Nodes and constants of the graph.
        row: Its number, which its nodes are named by.
        key: Columns by name.
        batch: Images a run.
        inputs: Of the graph.
    """

    parts: GraphParts
    row: int
    key: Mapping[str, int]
    batch: int
    inputs: list[onnx.ValueInfoProto]

    @property
    def prefix(self) -> str:
        """What names of its nodes begin with."""
        return f"layer{self.row}"

    def is_integer(self, column: str) -> bool:
        """Whether a format column reads int8."""
        return list(FORMATS)[self.key[column]] == "int8"

    def image(self) -> list[int]:
        """Returns the shape of what the layer reads."""
        size = (self.key["in_height"], self.key["in_width"])
        return [self.batch, self.key["in_channels"], *size]

    def quantization(self, name: str, *, signed: bool) -> tuple[str, str]:
        """Adds step and zero point of a tensor."""
        name = f"{self.prefix}_{name}{len(self.parts.constants)}"
        step = self.parts.constant(f"{name}_step", _STEP)
        return step, self.parts.constant(f"{name}_zero", carrier_zero(signed=signed))

    def placeholder(self, name: str, shape: list[int], *, integer: bool) -> str:
        """Adds an input of the graph and returns its name."""
        kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
        name = f"{self.prefix}_{name}"
        self.inputs.append(helper.make_tensor_value_info(name, int(kind), shape))
        return name

    def source(self, name: str, shape: list[int]) -> str:
        """Adds an input in the format that the layer reads; returns an fp32 tensor."""
        if not self.is_integer("activation_format"):
            return self.placeholder(name, shape, integer=False)
        code = self.placeholder(name, shape, integer=True)
        step, zero = self.quantization(name, signed=bool(self.key["signed_input"]))
        return self.parts.node("DequantizeLinear", [code, step, zero], f"{self.prefix}_{name}_x")

    def output(self, name: str) -> onnx.ValueInfoProto:
        """Returns the output of the graph that a result becomes, in the format written."""
        if not self.is_integer("output_format"):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        signed = TABLE_ACTIVATIONS[self.key["activation"]] != "relu"
        step, zero = self.quantization("out", signed=signed)
        name = self.parts.node("QuantizeLinear", [name, step, zero], f"{self.prefix}_out")
        return helper.make_tensor_value_info(name, TensorProto.UINT8, None)


def bench_graph(keys: IntArray, batch: int) -> onnx.ModelProto:
    """Returns a model whose nodes named ``layerI_...`` compute row I, side by side.

    Pools of more channels than images have stand after a convolution, ``feedI_...``, so that they
    read the order that it writes; so does what a convolution adds to its output.

    Args:
        keys: (m, c) columns of :data:`apqkit.cost.keys.KEY_COLUMNS`, formats int8 or fp32.
        batch: Images a run.
    """
    parts = GraphParts()
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    for row, key in enumerate(keys.tolist()):
        bench = _Bench(parts, row, dict(zip(KEY_COLUMNS, key, strict=True)), batch, inputs)
        outputs += _row(bench)
    return _model(parts, inputs, outputs)


def block_probe() -> onnx.ModelProto:
    """Returns a model for :func:`apqkit.cost.measure.probed_block`."""
    parts = GraphParts()
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    for channels in BLOCK_PROBES:
        name = f"probe{channels}"
        shape = [1, channels, 4, 4]
        inputs.append(helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, shape))
        weight = parts.constant(f"{name}_w", np.ones((64, channels, 1, 1), np.float32))
        y = parts.node("Conv", [f"{name}_in", weight], f"{name}_y", {"kernel_shape": [1, 1]})
        outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, None))
    return _model(parts, inputs, outputs)


def _model(
    parts: GraphParts, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(parts.nodes, "layers", inputs, outputs, parts.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain == _BLOCKS for node in parts.nodes):
        opsets.append(helper.make_opsetid(_BLOCKS, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _row(bench: _Bench) -> list[onnx.ValueInfoProto]:
    """Adds a row and returns the graph's outputs that it makes."""
    op = TABLE_OPS[bench.key["op"]]
    if op in CONVERSIONS:
        return [_conversion(bench, op)]
    if op == "linear":
        x = bench.source("in0", bench.image()[:2])
        return [bench.output(_activated(bench, _linear(bench, x)))]
    if op == "conv":
        x = bench.source("in0", bench.image())
        y = _conv(bench, bench.prefix, x, bench.key)
        y = _plus_residual(bench, y) if bench.key["residual"] else y
        return [bench.output(_activated(bench, y))]
    if op == "add":
        terms = [bench.source(each, bench.image()) for each in ("in0", "in1")]
        y = bench.parts.node("Add", terms, f"{bench.prefix}_y")
        return [bench.output(_activated(bench, y))]
    is_image = bench.key["in_channels"] <= _IMAGE_CHANNELS
    x = bench.source("in0", bench.image()) if is_image else _fed(bench)
    window = {"kernel_shape": [bench.key["kernel"]] * 2, "strides": [bench.key["stride"]] * 2}
    if op == "pool":
        return [bench.output(bench.parts.node("AveragePool", [x], f"{bench.prefix}_y", window))]
    return [bench.output(bench.parts.node("GlobalAveragePool", [x], f"{bench.prefix}_y"))]


def _plus_residual(bench: _Bench, y: str) -> str:
    """Adds a sum that runtimes compute inside the convolution that writes y."""
    stride, channels = max(bench.key["stride"], 1), bench.key["out_channels"]
    size = [(bench.key[name] - 1) // stride + 1 for name in ("in_height", "in_width")]
    x = bench.placeholder("in1", [bench.batch, channels, *size], integer=False)
    # With an activation, so that there is but one convolution that the sum can go into.
    other = bench.parts.node("Relu", [_pointwise(bench, x, channels)], f"feed{bench.row}_relu")
    return bench.parts.node("Add", [y, other], f"{bench.prefix}_sum")


def _fed(bench: _Bench) -> str:
    """Adds a convolution whose output the row reads, in the format that it reads."""
    x = bench.source("in0", bench.image())
    y = _pointwise(bench, x, bench.key["in_channels"])
    if not bench.is_integer("activation_format"):
        return y
    step, zero = bench.quantization("fed", signed=bool(bench.key["signed_input"]))
    code = bench.parts.node("QuantizeLinear", [y, step, zero], f"feed{bench.row}_code")
    return bench.parts.node("DequantizeLinear", [code, step, zero], f"feed{bench.row}_x")


def _pointwise(bench: _Bench, x: str, channels: int) -> str:
    sizes = {"in_channels": channels, "out_channels": channels, "kernel": 1}
    return _conv(bench, f"feed{bench.row}", x, {**sizes, "stride": 1, "groups": 1})


def _conv(bench: _Bench, name: str, x: str, shape: Mapping[str, int]) -> str:
    kernel, groups = shape["kernel"], max(shape["groups"], 1)
    window = {
        "kernel_shape": [kernel] * 2,
        "pads": [kernel // 2] * 4,
        "strides": [shape["stride"]] * 2,
        "group": groups,
    }
    weight = (shape["out_channels"], shape["in_channels"] // groups, kernel, kernel)
    constants = _weights(bench, name, weight)
    return bench.parts.node("Conv", [x, *constants], f"{name}_y", window)


def _linear(bench: _Bench, x: str) -> str:
    shape = (bench.key["out_channels"], bench.key["in_channels"])
    constants = _weights(bench, bench.prefix, shape)
    return bench.parts.node("Gemm", [x, *constants], f"{bench.prefix}_y", {"transB": 1})


def _weights(bench: _Bench, name: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """Adds random weights and a bias and returns their names."""
    rng = np.random.default_rng(len(bench.parts.constants))
    weight, bias = f"{name}_w", f"{name}_b"
    zeros = np.zeros(shape[0], np.float32)
    if bench.is_integer("activation_format"):
        scale = np.full(shape[0], _STEP)
        levels = rng.integers(-127, 128, shape).astype(np.float32)
        lower_weight(bench.parts, weight, FORMATS["int8"], levels * _STEP, scale)
        lower_bias(bench.parts, bias, zeros, scale * _STEP)
    else:
        bench.parts.constant(weight, rng.standard_normal(shape).astype(np.float32))
        bench.parts.constant(bias, zeros)
    return weight, bias


def _activated(bench: _Bench, y: str) -> str:
    if TABLE_ACTIVATIONS[bench.key["activation"]] == "relu":
        return bench.parts.node("Relu", [y], f"{bench.prefix}_relu")
    return y


def _conversion(bench: _Bench, op: str) -> onnx.ValueInfoProto:
    name, shape = f"{bench.prefix}_y", bench.image()
    integer = bench.is_integer("activation_format")
    written = bench.is_integer("output_format")
    if op == "layout_out" and integer:
        shape = [shape[0], *shape[2:], shape[1]]
    x = bench.placeholder("in0", shape, integer=integer)
    if op in ("quantize", "dequantize"):
        node = "QuantizeLinear" if op == "quantize" else "DequantizeLinear"
        bench.parts.node(node, [x, *bench.quantization("in", signed=False)], name)
    elif op == "requantize":
        ends = [bench.parts.constant(f"{name}_{each}", np.uint8(each)) for each in (0, 15)]
        bench.parts.node("Clip", [x, *ends], name)
    elif integer:
        order = [0, 2, 3, 1] if op == "layout_in" else [0, 3, 1, 2]
        bench.parts.node("Transpose", [x], name, {"perm": order})
    else:
        bench.parts.nodes.append(_reorder(bench, op, x, name))
    kind = TensorProto.UINT8 if written else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, int(kind), None)


def _reorder(bench: _Bench, op: str, x: str, y: str) -> onnx.NodeProto:
    if op == "layout_in":
        return helper.make_node("ReorderInput", [x], [y], name=y, domain=_BLOCKS)
    feed = f"feed{bench.row}_x"  # only the runtime itself knows how wide its blocks are
    bench.parts.nodes.append(
        helper.make_node("ReorderInput", [x], [feed], name=feed, domain=_BLOCKS)
    )
    x = feed
    channels: dict[str, Any] = {"channels": bench.key["in_channels"]}
    return helper.make_node("ReorderOutput", [x], [y], name=y, domain=_BLOCKS, **channels)

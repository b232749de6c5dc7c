"""ONNX graphs that hold layers side by side, to be timed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from apqkit.cost.keys import KEY_COLUMNS
from apqkit.formats import FORMATS
from apqkit.quant.qdq import OPSET, GraphParts, carrier_zero, lower_bias, lower_weight
from apqkit.types import ACTIVATIONS, OPS, IntArray

__all__ = ["bench_feeds", "bench_graph"]

_STEP = np.float32(0.02)
_IR_VERSION = 10


@dataclass(frozen=True)
class _Bench:
    """One layer of the graph."""

    parts: GraphParts
    prefix: str
    key: dict[str, int]
    batch: int

    @property
    def integer(self) -> bool:
        return list(FORMATS)[self.key["activation_format"]] == "int8"

    @property
    def tensor_type(self) -> int:
        if not self.integer:
            return int(TensorProto.FLOAT)
        return int(TensorProto.UINT8)

    def quantization(self) -> tuple[str, str]:
        zero = carrier_zero(signed=bool(self.key["signed_input"]))
        step = self.parts.constant(self._fresh("step"), _STEP)
        return step, self.parts.constant(self._fresh("zero"), zero)

    def input(self, index: int, shape: list[int]) -> tuple[onnx.ValueInfoProto, str]:
        name = f"{self.prefix}_in{index}"
        info = helper.make_tensor_value_info(name, self.tensor_type, shape)
        if not self.integer:
            return info, name
        return info, self.parts.node("DequantizeLinear", [name, *self.quantization()], f"{name}_x")

    def output(self, name: str) -> onnx.ValueInfoProto:
        if self.integer:
            signed = ACTIVATIONS[self.key["activation"]] != "relu"
            step = self.parts.constant(self._fresh("out_step"), _STEP)
            zero = self.parts.constant(self._fresh("out_zero"), carrier_zero(signed=signed))
            name = self.parts.node("QuantizeLinear", [name, step, zero], f"{self.prefix}_out")
            return helper.make_tensor_value_info(name, TensorProto.UINT8, None)
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    def weighted(
        self, op: str, x: str, shape: tuple[int, ...], attributes: Mapping[str, Any]
    ) -> str:
        rng = np.random.default_rng(len(self.parts.constants))
        channels = shape[0]
        if self.integer:
            scale = np.full(channels, _STEP)
            levels = rng.integers(-127, 128, shape).astype(np.float32)
            lower_weight(self.parts, f"{self.prefix}_w", FORMATS["int8"], levels * _STEP, scale)
            lower_bias(
                self.parts, f"{self.prefix}_b", np.zeros(channels, np.float32), scale * _STEP
            )
        else:
            values = rng.standard_normal(shape).astype(np.float32)
            self.parts.constant(f"{self.prefix}_w", values)
            self.parts.constant(f"{self.prefix}_b", np.zeros(channels, np.float32))
        return self.timed(op, [x, f"{self.prefix}_w", f"{self.prefix}_b"], attributes)

    def timed(self, op: str, inputs: list[str], attributes: Mapping[str, Any]) -> str:
        output = f"{self.prefix}_y"
        name = f"{self.prefix}_{op}"
        self.parts.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        if ACTIVATIONS[self.key["activation"]] == "relu":
            return self.parts.node("Relu", [output], f"{self.prefix}_relu")
        return output

    def _fresh(self, name: str) -> str:
        return f"{self.prefix}_{name}{len(self.parts.constants)}"


def bench_graph(keys: IntArray, batch: int) -> onnx.ModelProto:
    """Returns a model whose nodes named ``layerI_...`` compute the layers, side by side.

    Args:
        keys: (m, c) columns of :data:`apqkit.cost.keys.KEY_COLUMNS`, formats by carrier.
        batch: Images a run.
    """
    parts = GraphParts()
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    for row, key in enumerate(keys.tolist()):
        named = dict(zip(KEY_COLUMNS, key, strict=True))
        bench = _Bench(parts, f"layer{row}", named, batch)
        infos, result = _add_layer(bench)
        inputs += infos
        outputs.append(result)
    graph = helper.make_graph(parts.nodes, "layers", inputs, outputs, parts.constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)


def bench_feeds(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    """Returns random inputs for a model of :func:`bench_graph`."""
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[np.generic]] = {}
    for info in model.graph.input:
        tensor = info.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        if tensor.elem_type == TensorProto.FLOAT:
            feeds[info.name] = rng.random(shape, dtype=np.float32)
        else:
            feeds[info.name] = rng.integers(0, 256, shape).astype(np.uint8)
    return feeds


def _add_layer(bench: _Bench) -> tuple[list[onnx.ValueInfoProto], onnx.ValueInfoProto]:
    key, op = bench.key, OPS[bench.key["op"]]
    channels, out = key["in_channels"], key["out_channels"]
    image = [bench.batch, channels, key["in_height"], key["in_width"]]
    if op == "input":
        return _add_input(bench, image)
    if op == "linear":
        info, x = bench.input(0, [bench.batch, channels])
        return [info], bench.output(bench.weighted("Gemm", x, (out, channels), {"transB": 1}))
    info, x = bench.input(0, image)
    if op == "add":
        other, y = bench.input(1, image)
        return [info, other], bench.output(bench.timed("Add", [x, y], {}))
    if op == "conv":
        kernel, stride, groups = key["kernel"], key["stride"], key["groups"]
        window = {
            "kernel_shape": [kernel] * 2,
            "pads": [kernel // 2] * 4,
            "strides": [stride] * 2,
            "group": groups,
        }
        y = bench.weighted("Conv", x, (out, channels // groups, kernel, kernel), window)
        return [info], bench.output(y)
    if op == "pool":
        window = {"kernel_shape": [key["kernel"]] * 2, "strides": [key["stride"]] * 2}
        return [info], bench.output(bench.timed("AveragePool", [x], window))
    return [info], bench.output(bench.timed("GlobalAveragePool", [x], {}))


def _add_input(
    bench: _Bench, image: list[int]
) -> tuple[list[onnx.ValueInfoProto], onnx.ValueInfoProto]:
    """The input row costs nothing by itself; a copy of the image stands in for it."""
    name = f"{bench.prefix}_in0"
    info = helper.make_tensor_value_info(name, TensorProto.FLOAT, image)
    result = bench.timed("Identity", [name], {})
    return [info], helper.make_tensor_value_info(result, TensorProto.FLOAT, None)

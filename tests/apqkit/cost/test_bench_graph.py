import re
from collections import defaultdict

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper

from apqkit.cost.bench_graph import bench_graph, block_probe
from apqkit.cost.keys import KEY_COLUMNS, key_of, named_key
from apqkit.cost.lut_cost import wanted_keys
from apqkit.cost.measure import BLOCK_PROBES, probed_block, profile

STEP = 0.02  # of every activation and weight
BLOCKS = "com.microsoft.nchwc"


def layer(op, computed, written=None, **changes):
    """A key whose kernel computes in a format, and writes it if no other is named."""
    columns = {
        "in_channels": 6, "out_channels": 6, "kernel": 0, "stride": 1, "groups": 1,
        "in_height": 7, "in_width": 5, "activation_format": computed,
        "weight_format": computed if op in ("conv", "linear") else "none",
        "output_format": written or computed,
    }  # fmt: skip
    return key_of(op, columns | changes)


LAYERS = {
    "conv": ("conv", {"kernel": 3, "out_channels": 4}),
    "conv-relu-stride": ("conv", {"kernel": 5, "stride": 2, "activation": "relu"}),
    "depthwise": ("conv", {"kernel": 3, "groups": 6, "activation": "relu"}),
    "pointwise": ("conv", {"kernel": 1, "out_channels": 9}),
    "linear": ("linear", {"kernel": 1, "out_channels": 5, "in_height": 1, "in_width": 1}),
    "add": ("add", {}),
    "add-image": ("add", {"in_channels": 3, "out_channels": 3}),
    "add-relu": ("add", {"activation": "relu"}),
    "conv-plus": ("conv", {"kernel": 1, "out_channels": 9, "residual": 1}),
    "conv-plus-stride": ("conv", {"kernel": 3, "stride": 2, "residual": 1}),
    "pool": ("pool", {"kernel": 2, "stride": 2}),
    "pool-image": ("pool", {"kernel": 2, "stride": 2, "in_channels": 3, "out_channels": 3}),
    "global_pool": ("global_pool", {}),
}


class Built:
    """The graph of one key: its numbers, its inputs, and what it computes unoptimised."""

    def __init__(self, key, batch):
        self.named = dict(zip(KEY_COLUMNS, named_key(key), strict=True))
        self.model = bench_graph(np.array([key]), batch)
        self.constants = {
            each.name: numpy_helper.to_array(each).copy() for each in self.model.graph.initializer
        }
        rng = np.random.default_rng(0)
        self.feeds = {}
        for each in self.model.graph.input:
            shape = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
            assert shape[0] == batch
            self.feeds[each.name] = (
                rng.random(shape, dtype=np.float32)
                if each.type.tensor_type.elem_type == TensorProto.FLOAT
                else rng.integers(0, 256, shape).astype(np.uint8)
            )

    def run(self):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        outputs = [each.name for each in session.get_outputs()]
        return dict(zip(outputs, session.run(None, self.feeds), strict=True))

    def read(self, name):
        """An input by number, as real values."""
        value = torch.from_numpy(self.feeds[f"layer0_{name}"])
        zero = 128 if self.named["signed_input"] else 0
        return (value.float() - zero) * STEP if value.dtype == torch.uint8 else value

    def weights(self, name):
        if f"{name}_w" in self.constants:
            weight, bias = self.constants[f"{name}_w"], self.constants[f"{name}_b"]
        else:
            weight = self.constants[f"{name}_w.code"].astype(np.float32) * np.float32(STEP)
            bias = self.constants[f"{name}_b.code"].astype(np.float32)
        return torch.from_numpy(weight), torch.from_numpy(bias)

    def fed(self, source):
        """What a convolution before the row makes of an input."""
        y = F.conv2d(self.read(source), *self.weights("feed0"))
        if self.named["activation_format"] == "fp32":
            return y
        zero = 128 if self.named["signed_input"] else 0
        return (torch.clamp(torch.round(y / STEP) + zero, 0, 255) - zero) * STEP

    def expected(self):
        """What torch computes from the same numbers."""
        op, kernel, stride = (self.named[name] for name in ("op", "kernel", "stride"))
        image = self.named["in_channels"] <= 3
        if op == "conv":
            y = F.conv2d(
                self.read("in0"), *self.weights("layer0"), stride, kernel // 2, 1,
                self.named["groups"],
            )  # fmt: skip
            if self.named["residual"]:
                y = y + F.relu(self.fed("in1"))
        elif op == "linear":
            y = F.linear(self.read("in0"), *self.weights("layer0"))
        elif op == "add":
            y = self.read("in0") + self.read("in1")
        elif op == "pool":
            x = self.read("in0") if image else self.fed("in0")
            y = F.avg_pool2d(x, kernel, stride)
        else:
            y = self.fed("in0").mean(dim=(2, 3), keepdim=True)
        return (F.relu(y) if self.named["activation"] == "relu" else y).numpy()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_fp32_computes_what_its_key_says(name, batch):
    op, changes = LAYERS[name]
    built = Built(layer(op, "fp32", **changes), batch)
    wanted = built.expected()
    (found,) = built.run().values()
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("name", [each for each in LAYERS if "plus" not in each])
def test_a_layer_in_int8_computes_on_the_levels(name, signed):
    op, changes = LAYERS[name]
    built = Built(layer(op, "int8", **changes, signed_input=signed), 2)
    assert {each.dtype for each in built.feeds.values()} == {np.dtype("uint8")}
    (found,) = built.run().values()
    assert found.dtype == np.dtype("uint8")
    zero = 0 if changes.get("activation") == "relu" else 128
    wanted = np.clip(np.rint(built.expected() / STEP) + zero, 0, 255)
    assert np.abs(found - wanted).max() <= 1  # ties may fall to either side
    assert (found != wanted).mean() < 0.05
    assert len(np.unique(found)) > 1


@pytest.mark.parametrize("name", ["linear", "pointwise"])
def test_integer_layers_may_write_fp32(name):
    op, changes = LAYERS[name]
    built = Built(layer(op, "int8", "fp32", **changes), 2)
    (found,) = built.run().values()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, built.expected(), rtol=1e-4, atol=1e-4)


def conversion(op, read, written, **changes):
    columns = {
        "in_channels": 16, "out_channels": 16, "in_height": 3, "in_width": 4,
        "activation_format": read, "output_format": written,
    }  # fmt: skip
    return key_of(op, columns | changes)


@pytest.mark.parametrize(
    ("op", "read", "written", "expected"),
    [
        ("quantize", "fp32", "int8", lambda x: np.clip(np.rint(x / np.float32(STEP)), 0, 255)),
        ("dequantize", "int8", "fp32", lambda x: x.astype(np.float32) * np.float32(STEP)),
        ("requantize", "int8", "int8", lambda x: np.minimum(x, 15)),
        ("layout_in", "int8", "int8", lambda x: x.transpose(0, 2, 3, 1)),
        ("layout_out", "int8", "int8", lambda x: x.transpose(0, 3, 1, 2)),
    ],
)
def test_a_conversion_does_what_its_key_says(op, read, written, expected):
    built = Built(conversion(op, read, written), 2)
    (feed,) = built.feeds.values()
    plain, last = (2, 16, 3, 4), (2, 3, 4, 16)
    assert feed.shape == (last if op == "layout_out" else plain)
    (found,) = built.run().values()
    assert found.dtype == (np.float32 if written == "fp32" else np.uint8)
    assert np.array_equal(found, expected(feed))


def test_orders_of_fp32_are_the_runtimes_own_ops():
    model = bench_graph(np.array([conversion(f"layout_{each}", "fp32", "fp32")
                                  for each in ("in", "out")]), 1)  # fmt: skip
    nodes = [(node.domain, node.op_type, node.name) for node in model.graph.node]
    assert nodes == [
        (BLOCKS, "ReorderInput", "layer0_y"),
        (BLOCKS, "ReorderInput", "feed1_x"),  # fills the blocks that are reordered back
        (BLOCKS, "ReorderOutput", "layer1_y"),
    ]
    assert {each.domain for each in model.opset_import} == {"", BLOCKS}
    plain = bench_graph(np.array([conversion("quantize", "fp32", "int8")]), 1)
    assert {each.domain for each in plain.opset_import} == {""}


KERNELS = {
    ("conv", "int8"): "QLinearConv", ("linear", "int8"): "QGemm", ("add", "int8"): "QLinearAdd",
    ("add", "fp32"): "Add",
    ("pool", "int8"): "QLinearAveragePool", ("conv", "fp32"): "Conv", ("linear", "fp32"): "Gemm",
    ("pool", "fp32"): "AveragePool", ("global_pool", "fp32"): "GlobalAveragePool",
    ("quantize", "fp32"): "QuantizeLinear", ("dequantize", "int8"): "DequantizeLinear",
    ("requantize", "int8"): "Clip", ("layout_in", "int8"): "Transpose",
    ("layout_out", "int8"): "Transpose", ("layout_in", "fp32"): "ReorderInput",
    ("layout_out", "fp32"): "ReorderOutput",
}  # fmt: skip


def test_the_runtime_runs_one_kernel_for_each_row_that_networks_need(tiny_networks):
    block = probed_block(block_probe().SerializeToString())
    tables = [tiny_networks, tiny_networks.in_fp32(), tiny_networks.with_formats("int4", "int8")]
    keys = np.concatenate([wanted_keys(each, block=block).keys for each in tables])
    ran = defaultdict(dict)
    for event in profile(bench_graph(keys, 1).SerializeToString()):
        op = event["args"]["op_name"]
        ran[event["name"].split("_")[0]][event["name"]] = "Conv" if op == "FusedConv" else op
    seen = set()
    for row, key in enumerate(keys):
        named = dict(zip(KEY_COLUMNS, named_key(key), strict=True))
        kernel = KERNELS[named["op"], named["activation_format"]]
        assert list(ran[f"layer{row}"].values()) == [kernel], named
        seen.add((named["op"], named["activation_format"], named["residual"]))
    residual = {("conv", "fp32", 1)} if block else set()  # a sum inside a convolution
    assert seen > {("add", "int8", 0), ("add", "fp32", 0), ("pool", "int8", 0)} | residual


def test_weights_of_int8_layers_are_stored_in_eight_bits():
    constants = Built(layer("conv", "int8", kernel=3), 1).constants
    assert constants["layer0_w.code"].dtype == np.int8
    assert constants["layer0_w.code"].shape == (6, 6, 3, 3)
    assert np.abs(constants["layer0_w.code"]).max() > 100
    assert constants["layer0_b.code"].dtype == np.int32


def test_rows_stand_side_by_side_under_their_numbers(tiny_networks):
    keys = wanted_keys(tiny_networks, block=16).keys[:40]
    graph = bench_graph(keys, 1).graph
    parts = [re.fullmatch(r"(layer|feed)(\d+)_.*", node.name) for node in graph.node]
    assert {int(each[2]) for each in parts} == set(range(len(keys)))
    names = [each.name for each in (*graph.input, *graph.output)]
    assert len(set(names)) == len(names)


def test_the_same_keys_give_the_same_bytes():
    keys = np.array([layer("conv", "int8", kernel=3), layer("linear", "fp32", kernel=1)])
    first, second = (bench_graph(keys, 4).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_the_probe_holds_a_convolution_for_each_number_of_channels():
    graph = block_probe().graph
    channels = [each.type.tensor_type.shape.dim[1].dim_value for each in graph.input]
    assert tuple(channels) == BLOCK_PROBES
    assert [node.op_type for node in graph.node] == ["Conv"] * len(BLOCK_PROBES)

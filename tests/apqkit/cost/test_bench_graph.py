import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper

from apqkit.cost.bench_graph import bench_feeds, bench_graph
from apqkit.cost.keys import KEY_COLUMNS, distinct_keys
from apqkit.cost.lut import carrier_columns, named_key
from apqkit.formats import format_code
from apqkit.types import ACTIVATIONS, OPS

STEP = 0.02  # of every activation and weight


def key(op, carrier, **changes):
    weighted = op in ("conv", "linear")
    columns = {
        "op": OPS.index(op), "in_channels": 6, "out_channels": 6, "kernel": 0, "stride": 1,
        "groups": 1, "in_height": 7, "in_width": 5, "activation": 0,
        "weight_format": format_code(carrier) if weighted else -1,
        "activation_format": format_code(carrier), "signed_input": 0,
    } | changes  # fmt: skip
    return [columns[name] for name in KEY_COLUMNS]


RELU = ACTIVATIONS.index("relu")
LAYERS = {
    "conv": ("conv", {"kernel": 3, "out_channels": 4}),
    "conv-relu-stride": ("conv", {"kernel": 5, "stride": 2, "activation": RELU}),
    "depthwise": ("conv", {"kernel": 3, "groups": 6, "activation": RELU}),
    "pointwise": ("conv", {"kernel": 1, "out_channels": 9}),
    "linear": ("linear", {"kernel": 1, "out_channels": 5, "in_height": 1, "in_width": 1}),
    "add": ("add", {}),
    "pool": ("pool", {"kernel": 2, "stride": 2}),
    "global_pool": ("global_pool", {}),
}


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def expected(layer, inputs, constants):
    """What torch computes from the same numbers."""
    named = dict(zip(KEY_COLUMNS, layer, strict=True))
    op = OPS[named["op"]]
    if "layer0_w" in constants:
        weight, bias = constants["layer0_w"], constants["layer0_b"]
    elif "layer0_w.code" in constants:
        weight = constants["layer0_w.code"].astype(np.float32) * np.float32(STEP)
        bias = constants["layer0_b.code"].astype(np.float32)
    else:
        weight = bias = np.zeros(1, np.float32)
    weight, bias = torch.from_numpy(weight), torch.from_numpy(bias)
    if op == "conv":
        y = F.conv2d(
            inputs[0], weight, bias, named["stride"], named["kernel"] // 2, 1, named["groups"]
        )
    elif op == "linear":
        y = F.linear(inputs[0], weight, bias)
    elif op == "add":
        y = inputs[0] + inputs[1]
    elif op == "pool":
        y = F.avg_pool2d(inputs[0], named["kernel"], named["stride"])
    else:
        y = inputs[0].mean(dim=(2, 3), keepdim=True)
    return F.relu(y) if named["activation"] == RELU else y


def built(layer, batch):
    model = bench_graph(np.array([layer]), batch)
    constants = {each.name: numpy_helper.to_array(each).copy() for each in model.graph.initializer}
    return model, bench_feeds(model), constants


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_fp32_computes_what_its_key_says(name, batch):
    op, changes = LAYERS[name]
    layer = key(op, "fp32", **changes)
    model, feeds, constants = built(layer, batch)
    wanted = expected(layer, [torch.from_numpy(each) for each in feeds.values()], constants)
    (found,) = run(model, feeds)
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_int8_computes_on_the_levels(name, signed):
    op, changes = LAYERS[name]
    layer = key(op, "int8", **changes, signed_input=signed)
    model, feeds, constants = built(layer, 2)
    assert {each.dtype for each in feeds.values()} == {np.dtype("uint8")}
    inputs = [(torch.from_numpy(each).float() - 128 * signed) * STEP for each in feeds.values()]
    levels = expected(layer, inputs, constants).numpy() / STEP
    (found,) = run(model, feeds)
    assert found.dtype == np.dtype("uint8")
    zero = 0 if changes.get("activation") == RELU else 128
    wanted = np.clip(np.rint(levels) + zero, 0, 255)
    assert np.abs(found - wanted).max() <= 1  # ties may fall to either side
    assert (found != wanted).mean() < 0.05
    assert len(np.unique(found)) > 1


def test_the_input_row_is_a_copy_of_the_image():
    layer = key("input", "fp32", in_channels=3, out_channels=3)
    model, feeds, _ = built(layer, 2)
    (found,) = run(model, feeds)
    assert found.shape == (2, 3, 7, 5)
    assert np.array_equal(found, feeds["layer0_in0"])


def test_weights_of_int8_layers_are_stored_in_eight_bits():
    _, _, constants = built(key("conv", "int8", kernel=3), 1)
    assert constants["layer0_w.code"].dtype == np.int8
    assert constants["layer0_w.code"].shape == (6, 6, 3, 3)
    assert np.abs(constants["layer0_w.code"]).max() > 100
    assert constants["layer0_b.code"].dtype == np.int32


def test_layers_stand_side_by_side_under_their_numbers(tiny_networks):
    table = tiny_networks.with_formats("int8", "int8")
    columns, _ = carrier_columns(table)
    keys = distinct_keys(table, columns).keys[:12]
    model = bench_graph(keys, 1)
    assert len(model.graph.output) == 12
    feeds = bench_feeds(model)
    together = run(model, feeds)
    operators = {
        "input": "Identity", "conv": "Conv", "linear": "Gemm", "add": "Add",
        "pool": "AveragePool", "global_pool": "GlobalAveragePool",
    }  # fmt: skip
    names = {each.name for each in model.graph.node}
    for row, each in enumerate(keys):
        assert f"layer{row}_{operators[named_key(each)[0]]}" in names
        assert together[row].shape[1] == each[KEY_COLUMNS.index("out_channels")]
    assert all(name.startswith("layer") for name in names)


def test_the_same_keys_give_the_same_bytes():
    keys = np.array([key("conv", "int8", kernel=3), key("linear", "fp32", kernel=1)])
    first, second = (bench_graph(keys, 4).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    feeds = [bench_feeds(onnx.load_from_string(each)) for each in (first, second)]
    assert all(np.array_equal(feeds[0][name], feeds[1][name]) for name in feeds[0])

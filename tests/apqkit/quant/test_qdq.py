import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from apqkit.errors import ExportError
from apqkit.formats import FORMATS, NumberFormat, format_named
from apqkit.quant.fake_quantize import fake_quantize, quantize_weight
from apqkit.quant.qdq import OPSET, GraphParts, lower_activation, lower_bias, lower_weight
from apqkit.quant.ranges import weight_scale

QUANTIZED = [name for name in FORMATS if name != "fp32"]
WEIGHTS = [name for name in QUANTIZED if not name.startswith("uint")]
FLOAT_GRIDS = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}


def run_parts(parts, feeds, outputs):
    """What the nodes write in ONNX Runtime without optimisation."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(each.shape))
        for name, each in feeds.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(parts.nodes, "parts", inputs, results, parts.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(list(outputs), feeds)


def grid_of(number_format):
    """Every value of a format before scaling, ascending."""
    if number_format.family == "int":
        levels = np.arange(number_format.lowest_level, number_format.highest_level + 1)
        return levels.astype(np.float64)
    codes = np.arange(2**number_format.bits, dtype=np.uint8).view(FLOAT_GRIDS[number_format.name])
    values = codes.astype(np.float64)
    return np.unique(values[np.isfinite(values)])


def hard_values(number_format, scale):
    """All values of a format, all ties with their neighbours, values beyond, random ones, inf."""
    grid = grid_of(number_format)
    ties = ((grid[1:] + grid[:-1]) / 2 * scale).astype(np.float32)
    around = [ties, np.nextafter(ties, np.float32(-1e9)), np.nextafter(ties, np.float32(1e9))]
    rng = np.random.default_rng(0)
    reach = 1.5 * float(np.abs(grid).max()) * scale
    drawn = rng.uniform(-reach, reach, 20_000)
    small = rng.normal(0, 2.0**-8 * reach, 5_000)
    ends = [0.0, -0.0, np.inf, -np.inf, 3e38, -3e38]
    return np.concatenate([grid * scale, *around, drawn, small, ends]).astype(np.float32)


@pytest.mark.parametrize("scale", [0.25, 0.0371], ids=["exact-ties", "any-scale"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_activation_nodes_equal_the_fake_quantizer(name, scale):
    number_format = format_named(name)
    x = hard_values(number_format, scale)
    parts = GraphParts()
    lower_activation(parts, "x", "y", number_format, scale)
    (found,) = run_parts(parts, {"x": x}, ["y"])
    step = torch.tensor(scale)
    expected = fake_quantize(torch.from_numpy(x), number_format, scale=step).numpy()
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) == len(grid_of(number_format))  # each level was met


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_nodes_equal_the_stored_weights(name):
    number_format = format_named(name)
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    weight *= torch.tensor([1e-4, 0.1, 1.0, 7.0, 300.0, 0.0]).view(-1, 1, 1, 1)
    stored = quantize_weight(weight, number_format).numpy()
    parts = GraphParts()
    scale = weight_scale(weight, number_format).flatten().numpy()
    lower_weight(parts, "w", number_format, stored, scale)
    (found,) = run_parts(parts, {}, ["w"])
    assert np.array_equal(found, stored)


@pytest.mark.parametrize("name", [name for name in WEIGHTS if not name.startswith("fp8")])
def test_weights_of_eight_bits_or_less_are_stored_as_int8(name):
    number_format = format_named(name)
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    parts = GraphParts()
    scale = weight_scale(weight, number_format).flatten().numpy()
    lower_weight(parts, "w", number_format, quantize_weight(weight, number_format).numpy(), scale)
    code = next(each for each in parts.constants if each.name == "w.code")
    assert code.data_type == TensorProto.INT8
    levels = numpy_helper.to_array(code)
    top = 12 if name == "fp4_e2m1" else number_format.highest_level
    assert np.abs(levels).max() == top  # symmetric: the lowest level of all is not used
    assert len(np.unique(levels)) <= 2**number_format.bits


def test_floats_in_no_table_ride_in_int8_too():
    number_format = NumberFormat("fp6_e2m3", "float", 6, exponent_bits=2, max_value=7.5)
    weight = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    stored = quantize_weight(weight, number_format).numpy()
    parts = GraphParts()
    scale = weight_scale(weight, number_format).flatten().numpy()
    lower_weight(parts, "w", number_format, stored, scale)
    assert np.array_equal(run_parts(parts, {}, ["w"])[0], stored)


def test_every_fp8_weight_code_survives():
    for name in ("fp8_e4m3", "fp8_e5m2"):
        number_format = format_named(name)
        grid = grid_of(number_format).astype(np.float32)
        for scale in (0.0371, 1e-8, 3.0):
            stored = np.stack([grid * np.float32(scale)])
            parts = GraphParts()
            lower_weight(parts, "w", number_format, stored, np.array([scale], np.float32))
            assert np.array_equal(run_parts(parts, {}, ["w"])[0], stored)


def test_biases_are_int32_multiples_of_their_scales():
    rng = np.random.default_rng(0)
    scale = rng.uniform(1e-6, 1e-2, 200).astype(np.float32)
    levels = np.concatenate([rng.integers(-(2**22), 2**22, 196), [2**30, -(2**30), 0, 1]])
    values = (levels.astype(np.float32) * scale).astype(np.float32)
    parts = GraphParts()
    lower_bias(parts, "b", values, scale)
    code = next(each for each in parts.constants if each.name == "b.code")
    assert code.data_type == TensorProto.INT32
    assert numpy_helper.to_array(code)[:196].tolist() == levels[:196].tolist()
    assert np.array_equal(run_parts(parts, {}, ["b"])[0], values)


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint7"])
def test_narrow_integers_are_clipped_as_codes(name):
    parts = GraphParts()
    lower_activation(parts, "x", "y", format_named(name), 0.1)
    assert [node.op_type for node in parts.nodes] == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    number_format = format_named(name)
    codes = {each.name: numpy_helper.to_array(each) for each in parts.constants}
    zero, low, high = (codes[f"y.{each}"] for each in ("zero", "low", "high"))
    assert {each.dtype for each in (zero, low, high)} == {np.dtype("uint8")}
    assert int(low) - int(zero) == number_format.lowest_level
    assert int(high) - int(zero) == number_format.highest_level


def test_signed_and_unsigned_tensors_share_one_carrier_type():
    """The runtime fuses a layer only where its input and output have one type."""
    zeros = {}
    for name in ("int8", "uint8"):
        parts = GraphParts()
        lower_activation(parts, "x", "y", format_named(name), 0.1)
        zeros[name] = next(numpy_helper.to_array(c) for c in parts.constants if c.name == "y.zero")
    assert {each.dtype for each in zeros.values()} == {np.dtype("uint8")}
    assert [int(each) for each in zeros.values()] == [128, 0]


@pytest.mark.parametrize("name", ["int8", "uint8", "fp8_e4m3", "fp8_e5m2"])
def test_eight_bit_formats_need_no_clip(name):
    parts = GraphParts()
    lower_activation(parts, "x", "y", format_named(name), 0.1)
    assert [node.op_type for node in parts.nodes] == ["QuantizeLinear", "DequantizeLinear"]


def test_two_tensors_share_no_names():
    parts = GraphParts()
    lower_activation(parts, "x", "y", format_named("fp4_e2m1"), 0.1)
    lower_activation(parts, "y", "z", format_named("int4"), 0.2)
    names = [each.name for each in [*parts.nodes, *parts.constants]]
    assert len(names) == len(set(names))
    x = np.linspace(-1, 1, 50, dtype=np.float32)
    (found,) = run_parts(parts, {"x": x}, ["z"])
    inner = fake_quantize(torch.from_numpy(x), "fp4_e2m1", scale=torch.tensor(0.1))
    assert np.array_equal(found, fake_quantize(inner, "int4", scale=torch.tensor(0.2)).numpy())


@pytest.mark.parametrize(
    "number_format",
    [
        NumberFormat("int12", "int", 12, max_value=2047.0),
        NumberFormat("fp8_e3m4", "float", 8, exponent_bits=3, max_value=15.5),
    ],
)
def test_formats_without_an_onnx_form_are_refused(number_format):
    with pytest.raises(ExportError) as caught:
        lower_activation(GraphParts(), "x", "y", number_format, 0.1)
    assert str(caught.value) == f"activations in {number_format.name} have no ONNX form"
    with pytest.raises(ExportError) as caught:
        lower_weight(
            GraphParts(), "w", number_format, np.ones((1, 2), np.float32), np.ones(1, np.float32)
        )
    assert str(caught.value) == f"weights in {number_format.name} have no ONNX form"

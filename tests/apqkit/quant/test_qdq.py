import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from apqkit.errors import ExportError
from apqkit.formats import FORMATS, NumberFormat, format_named
from apqkit.quant.qdq import (
    OPSET,
    GraphParts,
    check_carrier,
    lower_activation,
    lower_bias,
    lower_weight,
)
from apqkit.quant.quantize import fake_quantize, unchecked_fake_quantize
from apqkit.quant.ranges import weight_scale
from apqkit.quant.weights import QuantScheme, quantize_weight, scales_of_weight

SCALED = [name for name, each in FORMATS.items() if each.is_scaled]
WEIGHTS = [name for name in SCALED if not name.startswith("uint")]
BLOCKS = [name for name, each in FORMATS.items() if each.block_size]
FLOAT_GRIDS = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e3m4": ml_dtypes.float8_e3m4,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}


def run_parts(parts, feeds, outputs, opset=OPSET):
    """What the nodes write in ONNX Runtime without optimisation."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(each.shape))
        for name, each in feeds.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(parts.nodes, "parts", inputs, results, parts.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
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
@pytest.mark.parametrize("name", SCALED)
def test_activation_nodes_equal_the_fake_quantizer(name, scale):
    number_format = format_named(name)
    x = hard_values(number_format, scale)
    parts = GraphParts()
    lower_activation(parts, "x", "y", number_format, scale)
    (found,) = run_parts(parts, {"x": x}, ["y"])
    expected = unchecked_fake_quantize(torch.from_numpy(x), number_format, torch.tensor(scale))
    assert np.array_equal(found, expected.numpy())
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


TOPS = {"fp4_e2m1": 12, "fp6_e2m3": 60, "fp6_e3m2": 448, "fp8_e3m4": 992}


@pytest.mark.parametrize(
    "name", [name for name in WEIGHTS if name not in ("fp8_e4m3", "fp8_e5m2")]
)
def test_weights_are_stored_in_the_least_integers_that_hold_them(name):
    number_format = format_named(name)
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    parts = GraphParts()
    scale = weight_scale(weight, number_format).flatten().numpy()
    lower_weight(parts, "w", number_format, quantize_weight(weight, number_format).numpy(), scale)
    code = next(each for each in parts.constants if each.name == "w.code")
    top = TOPS.get(name, number_format.highest_level)
    assert code.data_type == (TensorProto.INT8 if top <= 127 else TensorProto.INT16)
    levels = numpy_helper.to_array(code)
    assert np.abs(levels).max() == top  # symmetric: the lowest level of all is not used
    assert len(np.unique(levels)) <= 2**number_format.bits


@pytest.mark.parametrize(
    ("name", "stored", "opset"),
    [
        ("int2", TensorProto.INT2, 25),
        ("int3", TensorProto.INT4, 21),
        ("int4", TensorProto.INT4, 21),
    ],
)
def test_packed_weights_are_the_same_numbers_in_fewer_bits(name, stored, opset):
    number_format = format_named(name)
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    values = quantize_weight(weight, number_format).numpy()
    scale = weight_scale(weight, number_format).flatten().numpy()
    parts = GraphParts()
    lower_weight(parts, "w", number_format, values, scale, carrier="packed")
    code = next(each for each in parts.constants if each.name == "w.packed")
    assert code.data_type == stored
    bits = 2 if stored == TensorProto.INT2 else 4
    assert len(code.SerializeToString()) < values.size * bits / 8 + 40
    assert parts.needs == {f"packed {name} weights": opset}
    assert np.array_equal(run_parts(parts, {}, ["w"], opset=opset)[0], values)


def test_what_does_not_pack_stays_in_int8():
    for name in ("int5", "int8", "fp4_e2m1"):
        number_format = format_named(name)
        weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
        parts = GraphParts()
        scale = weight_scale(weight, number_format).flatten().numpy()
        values = quantize_weight(weight, number_format).numpy()
        lower_weight(parts, "w", number_format, values, scale, carrier="packed")
        assert parts.constants[0].data_type == TensorProto.INT8
        assert np.array_equal(run_parts(parts, {}, ["w"])[0], values)


@pytest.mark.parametrize("name", ["int4", "int8", "fp4_e2m1", "fp8_e4m3", "fp8_e3m4"])
@pytest.mark.parametrize("size", [4, 3])
@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3, 3)])
@pytest.mark.parametrize("carrier", ["int8", "packed"])
def test_groups_of_weights_have_scales_of_their_own(name, size, shape, carrier):
    number_format = format_named(name)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scheme = QuantScheme(weight_granularity="group", weight_group_size=size)
    scale = scales_of_weight(weight, number_format, scheme).numpy()
    values = quantize_weight(weight, number_format, scheme).numpy()
    parts = GraphParts()
    lower_weight(parts, "w", number_format, values, scale, group_size=size, carrier=carrier)
    assert scale.shape == (5, -(-8 // size), *shape[2:])
    assert np.array_equal(run_parts(parts, {}, ["w"])[0], values)


@pytest.mark.parametrize(
    ("name", "zero_point"), [("uint8", 77), ("uint4", 5), ("int8", -3), ("uint16", 9)]
)
def test_zero_points_shift_the_codes(name, zero_point):
    number_format = format_named(name)
    x = hard_values(number_format, 0.25)
    parts = GraphParts()
    lower_activation(parts, "x", "y", number_format, 0.25, zero_point)
    (found,) = run_parts(parts, {"x": x}, ["y"])
    expected = unchecked_fake_quantize(
        torch.from_numpy(x), number_format, torch.tensor(0.25), zero_point
    )
    assert np.array_equal(found, expected.numpy())
    assert found.min() == (number_format.lowest_level - zero_point) * 0.25


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "int16"])
def test_tokens_find_their_scales_as_they_come(name):
    number_format = format_named(name)
    x = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-3, 3, 5).view(1, 5, 1)
    x[1, 2] = 0.0
    parts = GraphParts()
    lower_activation(parts, "x", "y", number_format, None)
    (found,) = run_parts(parts, {"x": x.numpy()}, ["y"])
    scale = (x.abs().amax(dim=-1, keepdim=True) / number_format.max_value).clamp(min=1e-8)
    assert np.array_equal(found, unchecked_fake_quantize(x, number_format, scale).numpy())


def test_bf16_is_a_cast_there_and_back():
    x = hard_values(format_named("fp8_e5m2"), 0.37)
    parts = GraphParts()
    lower_activation(parts, "x", "y", format_named("bf16"), None)
    (found,) = run_parts(parts, {"x": x[np.isfinite(x)]}, ["y"])
    assert np.array_equal(found, x[np.isfinite(x)].astype(ml_dtypes.bfloat16).astype(np.float32))
    weight = torch.randn(6, 5)
    values = quantize_weight(weight, format_named("bf16")).numpy()
    parts = GraphParts()
    lower_weight(parts, "w", format_named("bf16"), values, np.ones(6, np.float32))
    assert parts.constants[0].data_type == TensorProto.BFLOAT16
    assert np.array_equal(run_parts(parts, {}, ["w"])[0], values)


def test_an_unknown_carrier_is_refused():
    with pytest.raises(ExportError) as caught:
        check_carrier("int4")
    assert str(caught.value) == "carrier must be int8 or packed, got 'int4'"


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


@pytest.mark.parametrize("name", BLOCKS)
def test_block_formats_are_refused_with_the_reason(name):
    why = "blocks with scales of their own are emulated in torch only"
    with pytest.raises(ExportError) as caught:
        lower_activation(GraphParts(), "x", "y", format_named(name), 0.1)
    assert str(caught.value) == f"activations in {name} have no ONNX form: {why}"
    with pytest.raises(ExportError) as caught:
        lower_weight(
            GraphParts(), "w", format_named(name), np.ones((1, 2), np.float32), np.ones(1)
        )
    assert str(caught.value) == f"weights in {name} have no ONNX form: {why}"


def test_floats_that_span_too_much_are_refused_as_weights():
    wide = NumberFormat("fp8_e5m2x", "float", 8, exponent_bits=5, max_value=57344.0)
    with pytest.raises(ExportError) as caught:
        lower_weight(GraphParts(), "w", wide, np.ones((1, 2), np.float32), np.ones(1))
    assert str(caught.value) == "weights in fp8_e5m2x have no ONNX form"

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import norm

from apqkit.errors import FormatError, UnknownNameError
from apqkit.formats import FORMATS, NumberFormat, format_named
from apqkit.quant.fake_quantize import fake_quantize, gaussian_noise, quantize_weight
from apqkit.quant.integer import fake_quantize_integer
from apqkit.quant.minifloat import fake_quantize_minifloat
from apqkit.quant.ranges import weight_scale

X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 3
SCALE = torch.tensor(0.25)


def test_a_format_may_be_named():
    named = fake_quantize(X, "int4", scale=SCALE)
    assert torch.equal(named, fake_quantize(X, format_named("int4"), scale=SCALE))


@pytest.mark.parametrize("name", [name for name in FORMATS if "int" in name])
def test_integers_use_all_their_levels(name):
    number_format = format_named(name)
    low, high = number_format.lowest_level, number_format.highest_level
    expected = fake_quantize_integer(X * 100, SCALE, 3, low, high)
    assert torch.equal(fake_quantize(X * 100, name, scale=SCALE, zero_point=3), expected)
    assert expected.min() == (low - 3) * SCALE
    assert expected.max() == (high - 3) * SCALE


def test_narrow_range_drops_the_lowest_level_of_signed_integers_alone():
    x = torch.tensor([-100.0, 100.0])
    signed = fake_quantize(x, "int4", scale=torch.tensor(1.0), narrow_range=True)
    unsigned = fake_quantize(x, "uint4", scale=torch.tensor(1.0), narrow_range=True)
    assert signed.tolist() == [-7, 7]
    assert unsigned.tolist() == [0, 15]


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "fp4_e2m1"])
def test_floats_are_rounded_as_minifloats(name):
    expected = fake_quantize_minifloat(X, SCALE, format_named(name))
    assert torch.equal(fake_quantize(X, name, scale=SCALE), expected)


def test_fp32_leaves_a_tensor_alone():
    assert fake_quantize(X, "fp32", scale=SCALE) is X


@pytest.mark.parametrize("axis", [0, 1, -3, -1])
@pytest.mark.parametrize("name", ["int4", "fp8_e4m3"])
def test_scales_run_along_the_axis(axis, name):
    scale = torch.linspace(0.1, 1.0, X.shape[axis])
    slices = [
        fake_quantize(X.select(axis, index), name, scale=each) for index, each in enumerate(scale)
    ]
    found = fake_quantize(X, name, scale=scale, axis=axis)
    assert torch.equal(found, torch.stack(slices, dim=axis))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_other_types_than_fp32_are_refused(kind):
    with pytest.raises(FormatError) as caught:
        fake_quantize(X.to(kind), "int8", scale=SCALE)
    assert str(caught.value) == f"fake_quantize takes a float32 tensor, got {kind}"


def test_a_family_without_quantizer_is_refused():
    blocks = NumberFormat("mxfp4", "mx", 4, exponent_bits=2, max_value=6.0, block_size=32)
    with pytest.raises(FormatError) as caught:
        fake_quantize(X, blocks, scale=SCALE)
    assert str(caught.value) == "format 'mxfp4' has no fake quantizer"


def test_an_unknown_format_is_named():
    with pytest.raises(UnknownNameError) as caught:
        fake_quantize(X, "int44", scale=SCALE)
    assert str(caught.value) == (
        f"no format named 'int44' (did you mean 'int4'?); there are: {', '.join(sorted(FORMATS))}"
    )


@pytest.mark.parametrize("name", ["int8", "int4", "int2", "fp8_e4m3", "fp4_e2m1"])
def test_weights_are_symmetric_with_a_scale_a_channel(name):
    number_format = format_named(name)
    found = quantize_weight(X, number_format)
    assert torch.equal(quantize_weight(-X, number_format), -found)
    levels = found / weight_scale(X, number_format)
    assert float(levels.abs().max()) <= number_format.max_value * (1 + 1e-6)
    for channel in range(len(X)):
        alone = quantize_weight(X[channel : channel + 1], number_format)
        assert torch.equal(found[channel : channel + 1], alone)


def test_int8_weights_equal_the_runtime_channel_by_channel():
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    scale = weight_scale(weight, format_named("int8")).flatten().numpy()
    constants = [
        numpy_helper.from_array(scale, "scale"),
        numpy_helper.from_array(np.zeros(6, np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=0),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [6, 5, 3, 3]) for n in "xy"]
    graph = helper.make_graph(nodes, "weights", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = session.run(None, {"x": weight.numpy()})[0]
    assert np.array_equal(quantize_weight(weight, format_named("int8")).numpy(), expected)


def test_weights_in_fp32_are_the_weights():
    assert quantize_weight(X, format_named("fp32")) is X


def test_the_range_of_weights_takes_no_gradient():
    weight = torch.tensor([[0.1, -0.6, 2.0, 0.3]], requires_grad=True)
    quantize_weight(weight, format_named("int8")).sum().backward()
    assert weight.grad.tolist() == [[1, 1, 1, 1]]  # the largest too, whose scale it sets


def squared_error(low, high, level):
    """Integral of (x - level)^2 times the normal density from low to high."""
    mass = norm.cdf(high) - norm.cdf(low)
    ends = [0.0 if np.isinf(each) else each * norm.pdf(each) for each in (low, high)]
    return (1 + level**2) * mass + ends[0] - ends[1] + 2 * level * (norm.pdf(high) - norm.pdf(low))


def noise_energy(levels, start, stop=np.inf):
    """The same for every x from ``start`` to ``stop``, each with the level next to it."""
    edges = [start, *(levels[1:] + levels[:-1]) / 2, stop]
    return sum(
        squared_error(low, high, level)
        for low, high, level in zip(edges[:-1], edges[1:], levels, strict=True)
    )


@pytest.mark.parametrize(("name", "reach"), [("int2", 1.22), ("int3", 1.95), ("int4", 2.6)])
def test_noise_equals_the_integral_over_the_gaussian(name, reach):
    top = format_named(name).highest_level
    levels = np.arange(-top, top + 1) * reach / top
    total = noise_energy(levels, -np.inf)
    assert gaussian_noise(name) == pytest.approx(np.sqrt(total), rel=5e-3)


@pytest.mark.parametrize(("name", "reach"), [("int2", 2.28), ("int4", 4.0)])
def test_unsigned_noise_equals_the_integral_over_the_rectified_gaussian(name, reach):
    top = 2 ** format_named(name).bits - 1
    levels = np.arange(top + 1) * reach * np.sqrt(0.5) / top
    total = noise_energy(levels, 0.0)
    found = gaussian_noise(name, signed=False)
    assert found == pytest.approx(np.sqrt(total / 0.5), rel=2e-2)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fp8_e4m3", ml_dtypes.float8_e4m3fn), ("fp8_e5m2", ml_dtypes.float8_e5m2)],
)
def test_noise_of_fp8_equals_the_integral_over_its_values(name, kind):
    codes = np.arange(256, dtype=np.uint8).view(kind).astype(np.float64)
    grid = np.unique(codes[np.isfinite(codes)])
    largest = norm.ppf(1 - 0.5 / 4095)
    total = noise_energy(grid * largest / grid[-1], -largest, largest)
    assert gaussian_noise(name) == pytest.approx(np.sqrt(total), rel=1e-2)


def test_noise_falls_with_bits_and_is_none_in_fp32():
    for signed in (True, False):
        noise = [gaussian_noise(f"int{bits}", signed=signed) for bits in range(2, 9)]
        assert noise == sorted(noise, reverse=True)
        assert gaussian_noise("fp32", signed=signed) == 0.0
    assert gaussian_noise("int4", signed=False) < gaussian_noise("int4")
    assert gaussian_noise("int4", signed=False) == gaussian_noise("uint4", signed=False)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apqkit.errors import CalibrationError
from apqkit.formats import format_named
from apqkit.quant.activations import ActivationQuantizer
from apqkit.quant.calibration import calibrate
from apqkit.quant.carriers import value_step
from apqkit.quant.layers import (
    BATCH_NORM_EPS,
    BatchNorm,
    QuantAdd,
    QuantConv,
    QuantGlobalPool,
    QuantLinear,
    QuantPool,
    conv_batch_norm,
    square_geometry,
)
from apqkit.quant.quantize import fake_quantize
from apqkit.quant.ranges import activation_scale
from apqkit.quant.weights import quantize_weight

FORMATS = ("int2", "int4", "int8", "fp8_e4m3", "fp4_e2m1", "fp32")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantizer(name, *, signed=False, of="c.input"):
    return ActivationQuantizer(format_named(name), signed=signed, name=of)


def conv(weights="int8", activations="int8", *, kernel=3, stride=1, groups=1, relu=True):
    channels = 4
    return QuantConv(
        quantizer(activations),
        draw(6 if groups == 1 else channels, channels // groups, kernel, kernel),
        BatchNorm(
            1.0 + 0.3 * draw(6 if groups == 1 else 4, seed=1), draw(6 if groups == 1 else 4)
        ),
        weight_format=format_named(weights),
        geometry=square_geometry(kernel, stride, groups),
        relu=relu,
        name="c",
    )


def linear(weights="int8", activations="int8"):
    weight, bias = draw(5, 4), draw(5, seed=1)
    weight_format = format_named(weights)
    return QuantLinear(quantizer(activations), weight, bias, weight_format=weight_format, name="c")


@pytest.fixture
def images():
    return torch.rand(8, 4, 7, 5, generator=torch.Generator().manual_seed(2))


SHAPES = [
    {"kernel": 1},
    {"kernel": 1, "stride": 2},
    {"kernel": 3},
    {"kernel": 5, "stride": 2},
    {"kernel": 3, "groups": 4},
    {"kernel": 3, "groups": 4, "stride": 2, "relu": False},
]


def batch_normalised(layer, x, weight):
    """The same layer from torch's own modules, in training mode."""
    padding = weight.shape[-1] // 2
    y = F.conv2d(x, weight, None, layer.geometry.stride, padding, 1, layer.geometry.groups)
    norm = nn.BatchNorm2d(len(weight), eps=BATCH_NORM_EPS)
    with torch.no_grad():
        norm.weight.copy_(layer.gamma)
        norm.bias.copy_(layer.beta)
    y = norm.train()(y)
    return y.relu() if layer.relu else y


@pytest.mark.parametrize("shape", SHAPES)
def test_in_training_a_convolution_is_that_of_torch_with_batch_statistics(images, shape):
    layer = conv("int4", "int8", **shape).train()
    scale = activation_scale(images, format_named("uint8"), signed=False)
    x = fake_quantize(images, "uint8", scale=scale)
    expected = batch_normalised(layer, x, quantize_weight(layer.weight, format_named("int4")))
    assert torch.allclose(layer(images), expected, rtol=1e-5, atol=1e-5)


def test_a_pointwise_convolution_equals_the_general_one(images):
    weight, gamma, beta = draw(6, 4, 1, 1), draw(6, seed=1), draw(6, seed=2)
    expected = F.batch_norm(F.conv2d(images, weight), None, None, gamma, beta, training=True)
    found = conv_batch_norm(images, weight, gamma, beta, 1, 1)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    strided = F.batch_norm(
        F.conv2d(images, weight, stride=2), None, None, gamma, beta, training=True
    )
    found = conv_batch_norm(images, weight, gamma, beta, 2, 1)
    assert torch.allclose(found, strided, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [conv, linear])
def test_gradients_reach_every_parameter_in_training(make, images):
    layer = make("int4", "int4").train()
    x = images if make is conv else draw(8, 4)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_in_training_ranges_follow_the_batch(images):
    layer = quantizer("int4").train()
    assert torch.allclose(layer(2 * images), 2 * layer(images))
    layer.scale.fill_(0.5)
    calibrate(layer, images)
    assert not torch.allclose(layer(2 * images), 2 * layer(images), rtol=1e-3)


def test_quantizers_use_the_unsigned_twin_where_nothing_is_negative():
    unsigned, signed, float8 = quantizer("int4"), quantizer("int4", signed=True), "fp8_e4m3"
    assert unsigned.number_format.name == "uint4"
    assert signed.number_format.name == "int4"
    assert quantizer(float8).number_format.name == float8
    x = torch.linspace(0, 1, 100)
    assert len(unsigned.train()(x).unique()) == 16
    assert len(signed.train()(x).unique()) <= 8


def test_fp32_quantizers_need_no_range(images):
    layer = quantizer("fp32").eval()
    assert layer(images) is images


@pytest.mark.parametrize("make", [conv, linear])
def test_a_layer_without_a_range_is_refused(make, images):
    layer = make().eval()
    with pytest.raises(CalibrationError) as caught:
        layer(images if make is conv else draw(8, 4))
    assert str(caught.value) == "c.input has no range yet: call calibrate(model, images)"


@pytest.mark.parametrize("make", [conv, linear])
def test_a_layer_without_frozen_weights_is_refused(make, images):
    layer = make("int8", "fp32").eval()
    with pytest.raises(CalibrationError) as caught:
        layer(images if make is conv else draw(8, 4))
    assert str(caught.value) == "c is not frozen: call calibrate(model, images)"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_fp32_convolution_is_the_one_with_batch_norm(images, shape):
    layer = conv("fp32", "fp32", **shape)
    expected = batch_normalised(layer, images, layer.weight)
    calibrate(layer, images)
    assert torch.allclose(layer(images), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(layer(images[:1]), expected[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["int2", "int4", "int8", "fp4_e2m1", "fp8_e4m3"])
def test_folding_a_batch_norm_changes_no_level(images, weights):
    layer = conv(weights, "int8")
    with torch.no_grad():
        layer.gamma[0] = -0.7  # a negative factor turns the signs
    calibrate(layer, images)
    before = layer.quantized_weight(layer.weight) / layer.weight.abs().amax(
        dim=(1, 2, 3), keepdim=True
    )
    after = layer.frozen_weight / layer.frozen_scale.view(-1, 1, 1, 1)
    sign = torch.sign(layer.gamma).view(-1, 1, 1, 1)
    largest = after.abs().amax(dim=(1, 2, 3), keepdim=True)
    expected = before / before.abs().amax(dim=(1, 2, 3), keepdim=True) * sign
    assert torch.allclose(after / largest, expected, atol=1e-5)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("activations", FORMATS)
@pytest.mark.parametrize("make", [conv, linear])
def test_a_frozen_layer_computes_on_what_its_formats_hold(make, weights, activations, images):
    layer = make(weights, activations)
    x = images if make is conv else torch.rand(8, 4)
    calibrate(layer, x)
    source = layer.quantizer()
    read = source(x)
    if activations != "fp32":
        number_format = source.number_format
        assert torch.equal(read, fake_quantize(x, number_format, scale=source.scale))
    arrays = (read, layer.frozen_weight, layer.frozen_bias)
    if make is conv:
        expected = F.conv2d(*arrays, layer.geometry.stride, layer.weight.shape[-1] // 2).relu()
    else:
        expected = F.linear(*arrays)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("weights", ["int2", "int4", "int8"])
@pytest.mark.parametrize("make", [conv, linear])
def test_frozen_weights_are_levels_times_scales(make, weights, images):
    layer = make(weights, "int8")
    calibrate(layer, images if make is conv else torch.rand(8, 4))
    stored = layer.stored_weight()
    levels = stored.values / stored.scale.view(-1, *[1] * (stored.values.dim() - 1))
    top = format_named(weights).highest_level
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert levels.abs().max().round() == top
    assert stored.number_format.name == weights


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("activations", FORMATS)
def test_biases_are_int32_where_kernels_are_integer(weights, activations, images):
    layer = conv(weights, activations)
    calibrate(layer, images)
    step = layer.bias_step(layer.frozen_scale)
    integer = activations.startswith("int") and weights in ("int2", "int4", "int8", "fp4_e2m1")
    assert (step is not None) == integer
    if step is None:
        return
    unit = value_step(format_named(weights))
    assert torch.equal(step, layer.quantizer().scale * layer.frozen_scale * unit)
    levels = layer.frozen_bias.double() / step.double()
    assert torch.allclose(levels, levels.round(), atol=0, rtol=1e-6)


def test_a_bias_moves_by_at_most_half_a_step():
    layer = linear("int4", "int4")
    calibrate(layer, torch.rand(8, 4))
    step = layer.bias_step(layer.frozen_scale)
    assert ((layer.frozen_bias - layer.bias).abs() <= step / 2 * (1 + 1e-5)).all()
    assert not torch.equal(layer.frozen_bias, layer.bias)


def test_a_bias_stays_as_it_is_where_kernels_are_not_integer():
    for formats in (("fp8_e4m3", "int8"), ("int8", "fp4_e2m1"), ("int8", "fp32")):
        layer = linear(*formats)
        calibrate(layer, torch.rand(8, 4))
        assert torch.equal(layer.frozen_bias, layer.bias)


@pytest.mark.parametrize("gamma", [0.0, 1e-12, 1e-7, 1e-4])
@pytest.mark.parametrize("weights", ["int8", "int2", "fp4_e2m1"])
def test_a_channel_of_tiny_weights_keeps_its_bias(images, gamma, weights):
    layer = conv(weights, "int8")
    with torch.no_grad():
        layer.gamma[2] = gamma
        layer.beta[2] = 3.0
    expected = batch_normalised(layer, images, layer.weight)[:, 2]
    calibrate(layer, images)
    assert torch.allclose(layer(images)[:, 2], expected, rtol=1e-3)
    levels = layer.frozen_bias / layer.bias_step(layer.frozen_scale)
    assert float(levels.abs().max()) <= 2.0**30 * (1 + 1e-6)


def test_calibration_hands_on_what_the_frozen_layer_writes(images):
    for weights in FORMATS:
        layer = conv(weights, "int8").eval()
        for each in (layer, layer.quantizer()):
            each.calibrating = True
        with torch.no_grad():
            passed_on = layer(images)
        for each in (layer, layer.quantizer()):
            each.calibrating = False
        assert torch.allclose(passed_on, layer(images), rtol=1e-4, atol=1e-4)


def test_training_goes_on_after_freezing(images):
    layer = conv("int4", "int4").train()
    before = layer(images)
    calibrate(layer, images)
    assert torch.equal(layer.train()(images), before)


def pair(name, *, signed=True):
    return [quantizer(name, signed=signed, of=f"add.input{index}") for index in range(2)]


def test_an_add_sums_its_quantized_inputs():
    x, y = draw(4, 3, 2, 2), 5 * draw(4, 3, 2, 2, seed=1)
    layer = QuantAdd(pair("int4")).train()
    parts = [
        fake_quantize(
            each, "int4", scale=activation_scale(each, format_named("int4"), signed=True)
        )
        for each in (x, y)
    ]
    assert torch.equal(layer(x, y), parts[0] + parts[1])
    assert torch.equal(layer.compute(x, y), x + y)
    assert layer.quantizer(1).name == "add.input1"


def test_pools_average_their_quantized_input():
    x = torch.rand(2, 3, 7, 5)
    read = quantizer("int4").train()(x)
    windows = QuantPool([quantizer("int4")], 2, 2).train()(x).numpy()
    everything = QuantGlobalPool([quantizer("int4")]).train()(x).numpy()
    assert windows.shape == (2, 3, 3, 2)
    for row in range(3):
        for column in range(2):
            window = read[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            mean = window.numpy().mean(axis=(2, 3))
            assert np.allclose(windows[:, :, row, column], mean, atol=1e-6)
    assert np.allclose(everything, read.numpy().mean(axis=(2, 3)), atol=1e-6)

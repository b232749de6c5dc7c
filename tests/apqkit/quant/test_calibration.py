import pytest
import torch
from torch import nn

from apqkit.errors import CalibrationError
from apqkit.formats import format_named
from apqkit.quant.activations import ActivationQuantizer
from apqkit.quant.calibration import calibrate
from apqkit.quant.layers import BatchNorm, QuantConv, QuantLinear, square_geometry
from apqkit.quant.ranges import activation_scale


def conv(name, channels, *, signed, formats):
    generator = torch.Generator().manual_seed(channels[0])
    out, inside = channels
    return QuantConv(
        ActivationQuantizer(format_named(formats[1]), signed=signed, name=f"{name}.input"),
        torch.randn(out, inside, 3, 3, generator=generator) * 0.4,
        BatchNorm(1 + torch.rand(out, generator=generator), torch.randn(out, generator=generator)),
        weight_format=format_named(formats[0]),
        geometry=square_geometry(3, 1, 1),
        relu=False,
        name=name,
    )


@pytest.fixture
def model():
    return nn.Sequential(
        conv("first", (4, 3), signed=False, formats=("int2", "int4")),
        conv("second", (5, 4), signed=True, formats=("int4", "int8")),
    )


@pytest.fixture
def images():
    return torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def states_of(model):
    return [each.calibrating for each in model.modules() if hasattr(each, "calibrating")]


def test_each_layer_is_frozen_on_what_the_frozen_layers_before_it_write(model, images):
    calibrate(model, images)
    first, second = model
    assert torch.equal(
        first.quantizer().scale, activation_scale(images, format_named("uint4"), signed=False)
    )
    written = first(images)
    expected = activation_scale(written, format_named("int8"), signed=True)
    assert float(second.quantizer().scale) == pytest.approx(float(expected), rel=1e-4)
    plain = conv("first", (4, 3), signed=False, formats=("fp32", "fp32"))
    calibrate(plain, images)
    in_fp32 = activation_scale(plain(images), format_named("int8"), signed=True)
    assert float(second.quantizer().scale) != pytest.approx(float(in_fp32), rel=1e-2)


def test_statistics_are_those_of_the_whole_batch(images):
    whole, *halves = (conv("c", (4, 3), signed=False, formats=("int4", "int4")) for _ in range(3))
    calibrate(whole, images)
    for half, part in zip(halves, images.chunk(2), strict=True):
        calibrate(half, part)
    biases = [each.frozen_bias for each in (whole, *halves)]
    assert not torch.allclose(biases[0], biases[1], rtol=1e-3)
    assert not torch.allclose(biases[0], biases[2], rtol=1e-3)


def test_what_is_frozen_does_not_follow_the_images_that_come_later(model, images):
    calibrate(model, images)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    first = model[0]
    alone, together = first(images[:1]), first(torch.cat([images[:1], 5 * images]))
    assert torch.allclose(alone, together[:1], rtol=1e-5, atol=1e-5)
    model(5 * images)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_freezing_again_forgets_what_was_frozen(model, images):
    calibrate(model, images)
    once = model(images)
    calibrate(model, images * 0.1)
    calibrate(model, images)
    assert torch.equal(model(images), once)


def test_leaves_a_model_in_evaluation_mode_without_gradients(model, images):
    model.train()
    calibrate(model, images)
    assert not model.training
    assert not any(states_of(model))
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(model, images, count):
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, images[:count])
    assert str(caught.value) == f"calibration needs at least 2 images, got {count}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pixel_that_is_not_finite_is_refused(model, images, value):
    images[2, 1, 3, 3] = value
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, images)
    assert str(caught.value) == "first.input holds 1 of 864 values that are not finite"
    assert not any(states_of(model))


def test_weights_that_are_not_finite_are_refused(model, images):
    with torch.no_grad():
        model[1].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, images)
    assert str(caught.value) == "second.weight holds 36 of 180 values that are not finite"


def test_values_that_are_not_finite_are_refused_in_fp32_too(images):
    plain = conv("plain", (4, 3), signed=False, formats=("fp32", "fp32"))
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError) as caught:
        calibrate(plain, images)
    assert str(caught.value) == "plain.weight holds 108 of 108 values that are not finite"


def test_a_bias_that_is_not_finite_is_refused():
    linear = QuantLinear(
        ActivationQuantizer(format_named("int8"), signed=True, name="c.input"),
        torch.randn(3, 4),
        torch.tensor([0.0, float("inf"), 0.0]),
        weight_format=format_named("int8"),
        name="c",
    )
    with pytest.raises(CalibrationError) as caught:
        calibrate(linear, torch.randn(2, 4))
    assert str(caught.value) == "c.bias holds 1 of 3 values that are not finite"

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from apqkit.formats import FORMATS, format_named
from apqkit.quant.quantize import fake_quantize
from apqkit.quant.ranges import (
    SMALLEST_SCALE,
    activation_scale,
    clip_multiple,
    params_of_range,
    weight_scale,
)

NARROW = ("int2", "int3", "int4", "int5", "int6", "fp4_e2m1")
WIDE = ("int7", "int8", "int16", "fp8_e4m3", "fp8_e5m2", "fp8_e3m4", "fp6_e2m3", "fp6_e3m2")
GAUSSIAN = torch.from_numpy(ndtri((np.arange(20_001) + 0.5) / 20_001)).float()


def error_of(values, number_format, reach, *, narrow):
    """Root mean squared error, relative, when the largest level is ``reach`` root mean squares."""
    rms = values.square().mean().sqrt()
    scale = reach * rms / number_format.max_value
    found = fake_quantize(values, number_format, scale=scale, narrow_range=narrow)
    return float((found - values).square().mean().sqrt() / rms)


def least_error(values, number_format, *, narrow):
    reaches = np.arange(0.8, 7.0, 0.04)
    return min(error_of(values, number_format, float(r), narrow=narrow) for r in reaches)


# How far each rule may be from the best clip of a (rectified) Gaussian, found by trying them all.
@pytest.mark.parametrize(
    ("name", "signed", "allowed"),
    [
        ("int2", True, 1.01),
        ("int3", True, 1.01),
        ("int4", True, 1.01),
        ("int5", True, 1.07),
        ("int6", True, 1.16),
        ("fp4_e2m1", True, 1.01),
        ("int2", False, 1.10),
        ("int3", False, 1.07),
        ("int4", False, 1.01),
        ("int5", False, 1.01),
        ("int6", False, 1.06),
        ("fp4_e2m1", False, 1.02),
    ],
)
def test_clips_lose_little_against_the_best_clip(name, signed, allowed):
    number_format = format_named(name).for_sign(signed=signed)
    values = GAUSSIAN if signed else GAUSSIAN.clamp(min=0.0)
    best = least_error(values, number_format, narrow=signed)
    scale = activation_scale(values, number_format, signed=signed)
    reach = float(scale * number_format.max_value / values.square().mean().sqrt())
    own = error_of(values, number_format, reach, narrow=signed)
    assert best * 0.999 < own < best * allowed
    largest = float(values.abs().max() / values.square().mean().sqrt())
    assert own < error_of(values, number_format, largest, narrow=signed)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("signed", [True, False])
def test_wide_formats_keep_the_largest_magnitude(name, signed):
    number_format = format_named(name).for_sign(signed=signed)
    values = torch.tensor([-3.0, 0.01, 2.0]) if signed else torch.tensor([0.0, 0.01, 2.0])
    scale = activation_scale(values, number_format, signed=signed)
    assert scale.shape == ()
    assert float(scale * number_format.max_value) == pytest.approx(3.0 if signed else 2.0)


@pytest.mark.parametrize("name", WIDE)
def test_wide_formats_lose_at_most_a_fifth_by_keeping_it(name):
    number_format = format_named(name)
    largest = float(GAUSSIAN.abs().max())
    own = error_of(GAUSSIAN, number_format, largest, narrow=True)
    assert own < 1.2 * least_error(GAUSSIAN, number_format, narrow=True)


@pytest.mark.parametrize("name", [*NARROW, *WIDE])
def test_weight_scales_are_those_of_each_channel_alone(name):
    number_format = format_named(name)
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight *= torch.tensor([0.01, 1.0, 5.0, 0.3, 2.0]).view(-1, 1, 1, 1)
    scale = weight_scale(weight, number_format)
    assert scale.shape == (5, 1, 1, 1)
    for row, own in zip(weight, scale, strict=True):
        alone = activation_scale(row, number_format, signed=True)
        assert float(own) == pytest.approx(float(alone), rel=1e-6)


def test_linear_weights_have_one_scale_a_row():
    assert weight_scale(torch.randn(7, 4), format_named("int4")).shape == (7, 1)


@pytest.mark.parametrize("name", NARROW)
def test_few_values_are_not_stretched_beyond_the_largest(name):
    values = torch.tensor([1.0, -1.0, 1.0])  # root mean square 1: every clip lies beyond
    scale = activation_scale(values, format_named(name), signed=True)
    assert float(scale * format_named(name).max_value) == pytest.approx(1.0)


def test_unsigned_ranges_ask_the_positive_side_alone():
    values = torch.tensor([0.5, 2.0])
    assert float(activation_scale(values, format_named("uint8"), signed=False)) == pytest.approx(
        2.0 / 255
    )
    signed = torch.tensor([-4.0, 2.0])
    assert float(activation_scale(signed, format_named("int8"), signed=True)) == pytest.approx(
        4.0 / 127
    )


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=20),
    st.integers(-8, 8),
    st.sampled_from([*NARROW, *WIDE]),
)
@settings(max_examples=80, deadline=None)
def test_scales_follow_the_tensor(values, power, name):
    number_format = format_named(name)
    weight = torch.tensor(values).view(1, -1)
    scale = weight_scale(weight, number_format)
    factor = 2.0**power
    if float(scale * min(factor, 1.0)) > 1e-7:  # above the floor
        assert torch.allclose(weight_scale(weight * factor, number_format), scale * factor)
        assert torch.equal(weight_scale(-weight, number_format), scale)


@pytest.mark.parametrize("name", ["int4", "int8", "fp8_e4m3", "fp4_e2m1"])
def test_an_all_zero_tensor_does_not_divide_by_zero(name):
    number_format = format_named(name)
    zeros = torch.zeros(2, 3)
    assert weight_scale(zeros, number_format).flatten().tolist() == pytest.approx([1e-8] * 2)
    scale = activation_scale(zeros, number_format, signed=True)
    assert torch.equal(fake_quantize(zeros, number_format, scale=scale), zeros)


@pytest.mark.parametrize("name", ["int4", "int8", "fp8_e4m3"])
def test_a_value_that_is_not_a_number_reaches_the_scale(name):
    values = torch.tensor([1.0, float("nan")])
    assert activation_scale(values, format_named(name), signed=True).isnan()


@pytest.mark.parametrize("signed", [True, False])
def test_these_formats_and_no_others_are_clipped(signed):
    clipped = {name for name in FORMATS if clip_multiple(FORMATS[name], signed=signed) is not None}
    narrow = {f"{prefix}{bits}" for prefix in ("int", "uint") for bits in range(2, 7)}
    assert {name for name in clipped if FORMATS[name].is_scaled} == {*narrow, "fp4_e2m1"}
    for bits in range(2, 6):
        fewer, more = (clip_multiple(FORMATS[f"int{b}"], signed=signed) for b in (bits, bits + 1))
        assert fewer < more


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].is_scaled])
def test_symmetric_ranges_take_the_larger_end_to_the_top(name):
    low, high = torch.tensor([-3.0, -1.0, 0.5, -2.0]), torch.tensor([1.0, 4.0, 2.0, -1.0])
    scale, zero = params_of_range(low, high, FORMATS[name], symmetric=True)
    reach = [1.0, 4.0, 2.0, 0.0] if name[0] == "u" else [3.0, 4.0, 2.0, 2.0]
    wanted = [max(each / FORMATS[name].max_value, 1e-8) for each in reach]
    assert scale.tolist() == pytest.approx(wanted)
    assert zero.tolist() == [0, 0, 0, 0]


ends = st.floats(-1000, 1000, width=32)


@given(ends, ends, st.sampled_from([name for name in FORMATS if FORMATS[name].family == "int"]))
@settings(max_examples=200, deadline=None)
def test_affine_ranges_are_stretched_to_zero_and_held_by_the_levels(first, second, name):
    low, high = min(first, second), max(first, second)
    span = max(high, 0.0) - min(low, 0.0)
    assume(span > 0.001)  # above the floor
    number_format = FORMATS[name]
    scale, zero = (
        float(each[0])
        for each in params_of_range(
            torch.tensor([low]), torch.tensor([high]), number_format, symmetric=False
        )
    )
    lowest, highest = number_format.lowest_level, number_format.highest_level
    assert zero == int(zero)
    assert lowest <= zero <= highest
    assert scale == pytest.approx(span / (highest - lowest), rel=1e-5)
    # the ends of the levels lie within half a step of the ends of the range
    slack = scale * 0.5 + span * 1e-5
    assert abs((highest - zero) * scale - max(high, 0.0)) <= slack
    assert abs((lowest - zero) * scale - min(low, 0.0)) <= slack


def test_affine_parameters_on_known_ranges():
    low, high = torch.tensor([-1.0, 0.0, 2.0, -6.0, 0.0]), torch.tensor([3.0, 3.0, 6.0, -3.0, 0.0])
    scale, zero = params_of_range(low, high, FORMATS["uint2"], symmetric=False)
    assert scale.tolist() == pytest.approx([4 / 3, 1.0, 2.0, 2.0, 1e-8])
    assert zero.tolist() == [1, 0, 0, 3, 0]
    scale, zero = params_of_range(low, high, FORMATS["int2"], symmetric=False)
    assert zero.tolist() == [-1, -2, -2, 1, -2]


def test_affine_ranges_may_span_all_of_fp32():
    largest = torch.tensor([torch.finfo(torch.float32).max])
    scale, zero = params_of_range(-largest, largest, FORMATS["int8"], symmetric=False)
    assert float(scale) == pytest.approx(2 * float(largest) / 255)
    assert zero.tolist() in ([0.0], [-1.0])


def test_the_least_scale_is_the_documented_one():
    assert SMALLEST_SCALE == 1e-8
    for symmetric in (True, False):
        found = params_of_range(
            torch.zeros(2), torch.zeros(2), FORMATS["int8"], symmetric=symmetric
        )
        assert found[0].tolist() == pytest.approx([1e-8] * 2)

import ml_dtypes
import numpy as np
import pytest

from apqkit.formats import FORMATS, NumberFormat, format_named
from apqkit.quant.carriers import carrier_bits, value_step

TYPES = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e3m4": ml_dtypes.float8_e3m4,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
UNSCALED = [name for name in FORMATS if name in ("fp32", "bf16", "nvfp4") or name[:2] == "mx"]
INTEGERS = [name for name in FORMATS if name.lstrip("u").startswith("int")]


def values_of(name):
    """Every finite value, by enumerating all codes with the reference type."""
    codes = np.arange(2 ** FORMATS[name].bits, dtype=np.uint8).view(TYPES[name])
    values = codes.astype(np.float64)
    return values[np.isfinite(values)]


def test_every_format_is_of_one_of_three_kinds():
    assert {*TYPES, *UNSCALED, *INTEGERS} == set(FORMATS)


@pytest.mark.parametrize("name", TYPES)
def test_the_step_of_a_float_is_the_largest_that_divides_all_its_values(name):
    values, step = values_of(name), value_step(format_named(name))
    assert np.array_equal(values / step, np.rint(values / step))
    assert not np.array_equal(values / (2 * step), np.rint(values / (2 * step)))


@pytest.mark.parametrize("name", TYPES)
def test_the_carrier_is_the_narrowest_that_holds_all_steps_of_a_float(name):
    steps = values_of(name) / value_step(format_named(name))
    fitting = [b for b in (8, 16) if -(2 ** (b - 1)) <= steps.min() <= steps.max() < 2 ** (b - 1)]
    assert carrier_bits(format_named(name)) == (fitting[0] if fitting else None)


@pytest.mark.parametrize(
    ("name", "step", "bits"),
    [
        ("fp8_e4m3", 2.0**-9, None),  # 448 is 229,376 steps
        ("fp8_e5m2", 2.0**-16, None),
        ("fp8_e3m4", 2.0**-6, 16),  # 15.5 is 992 steps
        ("fp6_e2m3", 0.125, 8),  # 7.5 is 60
        ("fp6_e3m2", 0.0625, 16),  # 28 is 448
        ("fp4_e2m1", 0.5, 8),  # 6 is 12
        ("int2", 1.0, 8),
        ("uint7", 1.0, 8),
        ("int8", 1.0, 8),
        ("uint8", 1.0, 8),
        ("int16", 1.0, 16),
        ("uint16", 1.0, 16),
    ],
)
def test_steps_and_carriers_are_these(name, step, bits):
    assert value_step(format_named(name)) == step
    assert carrier_bits(format_named(name)) == bits


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_is_carried_by_the_next_wider_one(name):
    number_format = format_named(name)
    assert value_step(number_format) == 1.0
    assert carrier_bits(number_format) == (8 if number_format.bits <= 8 else 16)


@pytest.mark.parametrize("name", UNSCALED)
def test_formats_without_a_scale_of_their_own_have_no_carrier(name):
    assert value_step(format_named(name)) is None
    assert carrier_bits(format_named(name)) is None


def test_plug_in_widths_are_carried_while_there_is_a_carrier():
    assert carrier_bits(NumberFormat("int9", "int", 9, max_value=255.0)) == 16
    assert carrier_bits(NumberFormat("int17", "int", 17, max_value=65535.0)) is None
    wide = NumberFormat("fp8_e2m5", "float", 8, exponent_bits=2, max_value=7.875)
    assert (value_step(wide), carrier_bits(wide)) == (2.0**-5, 16)  # 252 steps, of either sign

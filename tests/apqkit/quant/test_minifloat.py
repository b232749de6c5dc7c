import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.formats import NumberFormat, format_named
from apqkit.quant.minifloat import fake_quantize_minifloat, round_to_minifloat

FORMATS = {
    "fp8_e4m3": (format_named("fp8_e4m3"), ml_dtypes.float8_e4m3fn),
    "fp8_e5m2": (format_named("fp8_e5m2"), ml_dtypes.float8_e5m2),
    "fp4_e2m1": (format_named("fp4_e2m1"), ml_dtypes.float4_e2m1fn),
    # in no table, but the one pass holds for all of them
    "e3m4": (
        NumberFormat("e3m4", "float", 8, exponent_bits=3, max_value=15.5),
        ml_dtypes.float8_e3m4,
    ),
    "e2m3": (
        NumberFormat("e2m3", "float", 6, exponent_bits=2, max_value=7.5),
        ml_dtypes.float6_e2m3fn,
    ),
    "e3m2": (
        NumberFormat("e3m2", "float", 6, exponent_bits=3, max_value=28.0),
        ml_dtypes.float6_e3m2fn,
    ),
}
TORCH_TYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@pytest.fixture(params=FORMATS)
def case(request):
    return FORMATS[request.param]


def grid_of(number_format, kind):
    """Every finite value, ascending, by enumerating all codes."""
    codes = np.arange(2**number_format.bits, dtype=np.uint8).view(kind).astype(np.float32)
    return np.unique(codes[np.isfinite(codes)])


def rounded(x, number_format):
    return round_to_minifloat(torch.from_numpy(x), number_format).numpy()


def expected(x, number_format, kind):
    """ml_dtypes after saturation; NaN stays NaN also where the type cannot hold it."""
    clipped = np.clip(x, -number_format.max_value, number_format.max_value)
    cast = np.where(np.isnan(x), np.float32(0), clipped).astype(kind).astype(np.float32)
    return np.where(np.isnan(x), x, cast)


def assert_same_bits(found, wanted):
    assert np.array_equal(found, wanted, equal_nan=True)
    numbers = ~np.isnan(wanted)
    assert np.array_equal(np.signbit(found)[numbers], np.signbit(wanted)[numbers])


def test_every_code_is_a_fixed_point(case):
    number_format, kind = case
    grid = grid_of(number_format, kind)
    assert grid[-1] == number_format.max_value
    assert_same_bits(rounded(grid, number_format), grid)


def test_midpoints_and_their_neighbours(case):
    number_format, kind = case
    grid = grid_of(number_format, kind).astype(np.float64)
    middle = ((grid[1:] + grid[:-1]) / 2).astype(np.float32)
    assert np.array_equal(middle.astype(np.float64), (grid[1:] + grid[:-1]) / 2)  # exact in fp32
    around = [
        middle,
        np.nextafter(middle, np.float32(-1e9)),
        np.nextafter(middle, np.float32(1e9)),
    ]
    x = np.concatenate(around)
    assert_same_bits(rounded(x, number_format), expected(x, number_format, kind))


def test_a_million_values_of_any_exponent(case):
    number_format, kind = case
    bits = np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint64)
    x = bits.astype(np.uint32).view(np.float32)
    assert_same_bits(rounded(x, number_format), expected(x, number_format, kind))


def test_a_million_values_around_the_grid(case):
    number_format, kind = case
    rng = np.random.default_rng(1)
    exponents = rng.uniform(
        number_format.min_exponent - number_format.mantissa_bits - 3, 20, 10**6
    )
    x = (rng.choice([-1.0, 1.0], 10**6) * 2.0**exponents).astype(np.float32)
    assert_same_bits(rounded(x, number_format), expected(x, number_format, kind))


def test_zeros_keep_their_sign_and_the_rest_saturates(case):
    number_format, _ = case
    top = number_format.max_value
    x = np.array([0.0, -0.0, 1e-30, -1e-30, np.inf, -np.inf, 3e38, -3e38], np.float32)
    wanted = np.array([0.0, -0.0, 0.0, -0.0, top, -top, top, -top], np.float32)
    assert_same_bits(rounded(x, number_format), wanted)


def test_not_a_number_stays(case):
    assert np.isnan(rounded(np.array([np.nan, -np.nan], np.float32), case[0])).all()


@pytest.mark.parametrize("name", TORCH_TYPES)
def test_equals_the_cast_of_torch(name):
    number_format = FORMATS[name][0]
    top = number_format.max_value
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * top / 2
    x = torch.cat([x, x * 2.0**-16])
    cast = x.clamp(-top, top).to(TORCH_TYPES[name]).float()
    assert torch.equal(round_to_minifloat(x, number_format), cast)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=30))
@settings(max_examples=80, deadline=None)
def test_is_odd_idempotent_and_keeps_order(values):
    for number_format, _ in FORMATS.values():
        x, _ = torch.sort(torch.tensor(values))
        once = round_to_minifloat(x, number_format)
        assert torch.equal(round_to_minifloat(once, number_format), once)
        assert torch.equal(round_to_minifloat(-x, number_format), -once)
        assert bool((once.diff() >= 0).all())


def test_leaves_its_input_alone_and_takes_any_layout():
    number_format = format_named("fp8_e4m3")
    x = torch.randn(4, 6, 5, 3)
    before = x.clone()
    whole = fake_quantize_minifloat(x, torch.tensor(0.1), number_format)
    assert torch.equal(x, before)
    turned = x.permute(0, 2, 3, 1)[:, ::2]
    part = fake_quantize_minifloat(turned, torch.tensor(0.1), number_format)
    assert torch.equal(part, whole.permute(0, 2, 3, 1)[:, ::2])
    spread = x[:1].expand(3, -1, -1, -1)
    assert torch.equal(
        round_to_minifloat(spread, number_format),
        round_to_minifloat(x[:1], number_format).expand(3, -1, -1, -1),
    )


def test_scale_multiplies_the_grid():
    number_format = format_named("fp4_e2m1")
    x = torch.tensor([0.3, 0.9, -1.7, 2.6, 100.0])
    scale = torch.tensor(0.7)
    grid = torch.tensor([0.5, 1.5, -2.0, 4.0, 6.0])  # .43, 1.29, -2.43, 3.71, 142.9
    assert torch.equal(fake_quantize_minifloat(x, scale, number_format), grid * scale)


def test_gradient_is_zero_where_the_value_saturates():
    number_format = format_named("fp8_e4m3")
    x = torch.tensor([448.0, 449.0, -448.0, -470.0, 0.0, float("nan")], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    (fake_quantize_minifloat(x, scale, number_format) * 2.0).nansum().backward()
    assert x.grad.tolist() == [2, 0, 2, 0, 2, 0]
    assert scale.grad is None

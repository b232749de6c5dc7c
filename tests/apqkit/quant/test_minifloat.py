import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.formats import format_named
from apqkit.quant.minifloat import (
    fake_quantize_minifloat,
    round_to_bfloat16,
    round_to_minifloat,
)

TYPES = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e3m4": ml_dtypes.float8_e3m4,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
FORMATS = {name: (format_named(name), kind) for name, kind in TYPES.items()}
BFLOAT16 = format_named("bf16")
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


def test_every_bfloat16_number(case):
    codes = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    x = codes.astype(np.float32)
    assert_same_bits(rounded(x, case[0]), expected(x, *case))


def midpoints_of(number_format, kind):
    """Every tie between neighbours, exact in fp32."""
    grid = grid_of(number_format, kind).astype(np.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    assert np.array_equal(middle.astype(np.float32), middle)
    return middle.astype(np.float32)


def test_midpoints_and_their_neighbours(case):
    middle = midpoints_of(*case)
    around = [
        middle,
        np.nextafter(middle, np.float32(-1e9)),
        np.nextafter(middle, np.float32(1e9)),
    ]
    x = np.concatenate(around)
    assert_same_bits(rounded(x, case[0]), expected(x, *case))
    assert bool((rounded(middle, case[0]) != middle).all())


def wide_values(number_format, kind):
    """Four million: any bit pattern, around the grid, close to ties, below the smallest normal."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    lowest = number_format.min_exponent - number_format.mantissa_bits - 3
    exponents = rng.uniform(lowest, np.log2(number_format.max_value) + 2, 1_500_000)
    around = rng.choice([-1.0, 1.0], len(exponents)) * 2.0**exponents
    ties = rng.choice(midpoints_of(number_format, kind), 1_000_000)
    close = (ties.view(np.int32) + rng.integers(-2, 3, len(ties), dtype=np.int32)).view(np.float32)
    subnormal = rng.uniform(-2, 2, 500_000) * 2.0**number_format.min_exponent
    drawn = np.concatenate([around, subnormal]).astype(np.float32)
    return np.concatenate([patterns, drawn, close])


def test_four_million_values(case):
    x = wide_values(*case)
    assert len(x) == 4_000_000
    assert_same_bits(rounded(x, case[0]), expected(x, *case))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_the_reference_type(case):
    x = wide_values(*case)
    found = round_to_minifloat(torch.from_numpy(x).cuda(), case[0]).cpu().numpy()
    assert_same_bits(found, expected(x, *case))


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
    x = torch.tensor([448.0, 449.0, -448.0, -470.0, 0.0, 1e30], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    (fake_quantize_minifloat(x, scale, number_format) * 2.0).sum().backward()
    assert x.grad.tolist() == [2, 0, 2, 0, 2, 0]
    assert scale.grad is None


def test_rounding_at_random_takes_one_of_the_two_neighbours(case):
    number_format, kind = case
    grid = grid_of(number_format, kind)
    rng = np.random.default_rng(2)
    x = rng.choice(wide_values(number_format, kind), 100_000)
    x = x[np.isfinite(x)]
    found = round_to_minifloat(
        torch.from_numpy(x), number_format, torch.Generator().manual_seed(0)
    ).numpy()
    clipped = np.clip(x, grid[0], grid[-1])
    above = grid[np.searchsorted(grid, clipped)]
    below = grid[np.searchsorted(grid, clipped, side="right") - 1]
    assert bool(((found == below) | (found == above)).all())
    between = below < above
    assert 0.4 < (found == above)[between & (np.abs(x) > grid[grid > 0][0])].mean() < 0.6


def test_rounding_at_random_is_right_on_average(case):
    number_format, kind = case
    grid = grid_of(number_format, kind).astype(np.float64)
    generator = torch.Generator().manual_seed(1)
    picked = np.random.default_rng(3).choice(len(grid) - 1, 4, replace=False)
    for low, high in zip(grid[picked], grid[picked + 1], strict=True):
        for share in (0.125, 0.5, 0.8125):
            value = np.float32(low + share * (high - low))
            assert value == low + share * (high - low)
            x = torch.full((50_000,), float(value))
            found = round_to_minifloat(x, number_format, generator).double()
            deviation = (high - low) * np.sqrt(share * (1 - share) / len(x))
            assert abs(float(found.mean()) - value) < 4.5 * deviation


def test_rounding_at_random_leaves_values_of_the_format_alone(case):
    grid = torch.from_numpy(grid_of(*case)).repeat(100)
    found = round_to_minifloat(grid, case[0], torch.Generator().manual_seed(0))
    assert torch.equal(found, grid)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,)])
def test_any_shape_is_taken(case, shape):
    x = torch.full(shape, 1.0)
    assert torch.equal(fake_quantize_minifloat(x, torch.tensor(0.5), case[0]), x)


def test_memory_layouts_do_not_matter(case):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    last = x.contiguous(memory_format=torch.channels_last)
    found = round_to_minifloat(last, case[0])
    assert torch.equal(found, round_to_minifloat(x, case[0]))
    assert found.is_contiguous(memory_format=torch.channels_last)


def bfloat16_expected(x):
    with np.errstate(invalid="ignore"):
        cast = np.clip(x, -BFLOAT16.max_value, BFLOAT16.max_value).astype(ml_dtypes.bfloat16)
    return cast.astype(np.float32)


def bfloat16_values():
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 3_000_000, dtype=np.uint32)
    ties = (patterns[:1_000_000] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    close = ties + rng.integers(-1, 2, len(ties)).astype(np.uint32)
    x = np.concatenate([patterns, ties, close]).view(np.float32)
    return np.concatenate([x, np.float32([0.0, -0.0, 3.4e38, -3.4e38, np.inf, -np.inf])])


def test_bfloat16_equals_the_reference_type_and_saturates():
    x = bfloat16_values()
    found = round_to_bfloat16(torch.from_numpy(x), BFLOAT16).numpy()
    assert_same_bits(found, bfloat16_expected(x))
    assert float(np.nanmax(found)) == BFLOAT16.max_value


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_bfloat16_on_cuda_equals_the_reference_type():
    x = bfloat16_values()
    found = round_to_bfloat16(torch.from_numpy(x).cuda(), BFLOAT16).cpu().numpy()
    assert_same_bits(found, bfloat16_expected(x))


def test_every_bfloat16_number_is_kept():
    codes = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    finite = codes[np.isfinite(codes)]
    assert_same_bits(round_to_bfloat16(torch.from_numpy(finite), BFLOAT16).numpy(), finite)


def test_bfloat16_passes_the_gradient_unchanged():
    x = torch.tensor([1.003, -2.7, 0.0, 3.4e38], requires_grad=True)
    (round_to_bfloat16(x, BFLOAT16) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [1, 2, 3, 4]

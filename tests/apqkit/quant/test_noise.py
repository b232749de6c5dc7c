import ml_dtypes
import numpy as np
import pytest
from scipy.stats import norm

from apqkit.errors import UnknownNameError
from apqkit.formats import FORMATS, format_named
from apqkit.quant.noise import gaussian_noise


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
    [
        ("fp8_e4m3", ml_dtypes.float8_e4m3fn),
        ("fp8_e5m2", ml_dtypes.float8_e5m2),
        ("fp8_e3m4", ml_dtypes.float8_e3m4),
        ("fp6_e2m3", ml_dtypes.float6_e2m3fn),
        ("fp6_e3m2", ml_dtypes.float6_e3m2fn),
    ],
)
def test_noise_of_floats_equals_the_integral_over_their_values(name, kind):
    codes = np.arange(2 ** FORMATS[name].bits, dtype=np.uint8).view(kind).astype(np.float64)
    grid = np.unique(codes[np.isfinite(codes)])
    largest = norm.ppf(1 - 0.5 / 4095)
    total = noise_energy(grid * largest / grid[-1], -largest, largest)
    assert gaussian_noise(name) == pytest.approx(np.sqrt(total), rel=1e-2)


# relative root mean squared error on a Gaussian, found with other implementations
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mxint8", 0.008),
        ("mxfp8_e4m3", 0.028),
        ("mxfp6_e2m3", 0.028),
        ("mxfp6_e3m2", 0.054),
        ("mxfp4_e2m1", 0.111),
    ],
)
def test_noise_of_blocks_is_the_known_one(name, expected):
    assert gaussian_noise(name) == pytest.approx(expected, rel=0.05)


def test_noise_of_bf16_is_that_of_eight_significant_bits():
    # uniform within half a step of 2^-7 at the foot of a binade, half of that at its top
    assert 2.0**-9 / 3**0.5 < gaussian_noise("bf16") < 2.0**-8 / 3**0.5


@pytest.mark.parametrize("signed", [True, False])
def test_noise_falls_with_bits_and_is_none_in_fp32(signed):
    noise = [gaussian_noise(f"int{bits}", signed=signed) for bits in (*range(2, 9), 16)]
    assert noise == sorted(noise, reverse=True)
    assert gaussian_noise("fp32", signed=signed) == 0.0


def test_the_unsigned_twin_makes_less_noise():
    assert gaussian_noise("int4", signed=False) < gaussian_noise("int4")
    assert gaussian_noise("int4", signed=False) == gaussian_noise("uint4", signed=False)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("signed", [True, False])
def test_noise_of_every_format_is_a_fraction_and_always_the_same(name, signed):
    found = gaussian_noise(name, signed=signed)
    assert (found == 0.0) == (name == "fp32")
    assert 0.0 <= found < 0.7
    gaussian_noise.cache_clear()
    assert gaussian_noise(name, signed=signed) == found


def test_an_unknown_format_is_named():
    with pytest.raises(UnknownNameError) as caught:
        gaussian_noise("int44")
    assert str(caught.value).startswith("no format named 'int44' (did you mean 'int4'?); ")

import math
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch

from apqkit.formats import FORMATS, format_named
from apqkit.quant.blocks import fake_quantize_blocks, tensor_scale

# element type, exponent of its largest value and that value, all as published
MX = {
    "mxint8": (None, 0, 127 / 64),
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 8, 448.0),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15, 57344.0),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 2, 7.5),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 4, 28.0),
    "mxfp4_e2m1": (ml_dtypes.float4_e2m1fn, 2, 6.0),
}
BLOCKED = [*MX, "nvfp4"]


def floor_of_log2(x):
    """Exact exponent of fp32 numbers from their bits; subnormals too. -200 for zeros."""
    bits = np.abs(x).view(np.int32)
    field, fraction = bits >> 23, bits & 0x7FFFFF
    below = np.array([int(each).bit_length() - 150 for each in fraction.flat])
    found = np.where(field > 0, field - 127, below.reshape(x.shape))
    return np.where(bits == 0, -200, found)


def published_mx(x, name, axis=-1):
    """The rule of the published standard in fp64, elements through the reference type."""
    kind, largest_exponent, largest = MX[name]
    rows = np.moveaxis(x, axis, -1)
    length = rows.shape[-1]
    padded = np.concatenate(
        [rows, np.zeros((*rows.shape[:-1], -length % 32), np.float32)], axis=-1
    )
    blocks = padded.reshape(*padded.shape[:-1], -1, 32)
    exponent = np.clip(floor_of_log2(np.abs(blocks).max(-1)) - largest_exponent, -127, 127)
    scaled = np.ldexp(blocks.astype(np.float64), -exponent[..., None])
    clipped = np.clip(scaled, -largest, largest)
    if kind is None:
        elements = np.clip(np.rint(scaled * 64), -127, 127) / 64
    else:
        elements = clipped.astype(kind).astype(np.float64)
    found = np.ldexp(elements, exponent[..., None]).reshape(padded.shape)[..., :length]
    return np.moveaxis(found, -1, axis)


def published_nvfp4(x, scale=None):
    """Two scales as in the recipe: fp32 of the tensor, fp8 of 16 values along the last axis."""
    if scale is None:
        scale = np.abs(x).max() / np.float32(6 * 448)
    found = np.zeros_like(x)
    for row, out in zip(x.reshape(-1, x.shape[-1]), found.reshape(-1, x.shape[-1]), strict=True):
        for start in range(0, len(row), 16):
            block = row[start : start + 16]
            ideal = np.abs(block).max() / np.float32(6) / scale
            stored = np.minimum(ideal, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
            step = stored.astype(np.float32) * scale
            if step > 0:
                elements = np.clip(block / step, -6, 6).astype(ml_dtypes.float4_e2m1fn)
                out[start : start + 16] = elements.astype(np.float32) * step
    return found


def seeded(seed=0):
    return np.random.default_rng(seed)


def scaled_rows(count, length, seed=0):
    """Gaussian rows times 2^-8 to 2^8, a few values larger and some of them zero or a tie."""
    rng = seeded(seed)
    x = rng.normal(size=(count, length)) * 2.0 ** rng.uniform(-8, 8, (count, 1))
    x[rng.random(x.shape) < 0.02] *= 30
    x[rng.random(x.shape) < 0.05] = 0.0
    ties = rng.integers(-31, 32, x.shape) * 0.25
    return np.where(rng.random(x.shape) < 0.2, ties, x).astype(np.float32)


def blocked(x, name, axis=-1, **options):
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    return fake_quantize_blocks(tensor, format_named(name), axis=axis, **options).numpy()


def assert_equal(found, wanted):
    assert found.shape == wanted.shape
    assert np.array_equal(found.astype(np.float64), wanted)


def test_these_are_all_the_block_formats():
    assert [name for name in FORMATS if FORMATS[name].block_size] == BLOCKED


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 64, 1000])
@pytest.mark.parametrize("name", MX)
def test_mx_equals_the_published_rule_on_any_tail(name, length):
    x = scaled_rows(300, length)
    assert_equal(blocked(x, name), published_mx(x, name))


@pytest.mark.parametrize("name", MX)
def test_mx_equals_the_published_rule_on_many_values(name):
    x = scaled_rows(2048, 512, seed=1)
    assert_equal(blocked(x, name), published_mx(x, name))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("name", MX)
def test_mx_blocks_run_along_any_axis(name, axis):
    x = scaled_rows(40 * 3 * 33, 7).reshape(40, 3, 33, 7)
    assert_equal(blocked(x, name, axis), published_mx(x, name, axis))


def extreme_rows():
    rng = seeded(2)
    mantissas = rng.uniform(-1, 1, (276, 32))
    exponents = np.arange(-148, 128)[:, None]
    rows = np.ldexp(mantissas, exponents).astype(np.float32)
    largest = np.finfo(np.float32).max
    edges = np.float32([largest, -largest, 2.0**127, 2.0**-126, 1e-45, -1e-45, 0.0, -0.0])
    corners = np.stack([np.roll(np.pad(edges[i:], (0, 24 + i)), i) for i in range(8)])
    return np.concatenate([rows, corners, np.zeros((1, 32), np.float32)])


@pytest.mark.parametrize("name", MX)
def test_mx_equals_the_published_rule_from_the_smallest_to_the_largest_numbers(name):
    x = extreme_rows()
    wanted = published_mx(x, name)
    assert np.abs(x).max() == np.finfo(np.float32).max
    assert np.abs(x[x != 0]).min() == np.float32(1e-45)
    assert_equal(blocked(x, name), wanted)


@pytest.mark.parametrize("name", MX)
def test_scales_are_exact_beside_every_power_of_two(name):
    # a logarithm in floating point takes the number just below 2^k for 2^k
    powers = np.ldexp(np.float32(1), np.arange(-126, 128)).astype(np.float32)
    peaks = np.concatenate([powers, np.nextafter(powers, np.float32(0))])
    x = (peaks[:, None] * np.float32([1, 0.7, -0.3, 0.11])).astype(np.float32)
    assert_equal(blocked(x, name), published_mx(x, name))


def torchao_to_mx():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")


PEER_ELEMENTS = {
    "mxfp8_e4m3": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp6_e2m3": "fp6_e2m3",
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp4_e2m1": torch.float4_e2m1fn_x2,
}


@pytest.mark.parametrize("name", PEER_ELEMENTS)
def test_mx_equals_torchao_with_floor_scaling(name):
    peer = torchao_to_mx()
    x = torch.from_numpy(scaled_rows(1024, 256, seed=3))
    scale, data = peer.to_mx(
        x, PEER_ELEMENTS[name], 32, scaling_mode=peer.ScaleCalculationMode.FLOOR
    )
    codes = data.view(torch.uint8).numpy()
    if name == "mxfp4_e2m1":
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(x.shape)
    elements = codes.view(MX[name][0]).astype(np.float64)
    exponents = scale.view(torch.uint8).numpy().astype(np.int64) - 127
    assert_equal(blocked(x.numpy(), name), np.ldexp(elements, np.repeat(exponents, 32, axis=-1)))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
def test_nvfp4_equals_the_recipe(length):
    x = scaled_rows(200, length, seed=4)
    assert_equal(blocked(x, "nvfp4"), published_nvfp4(x))


def test_nvfp4_takes_the_scale_of_the_whole_tensor():
    x = scaled_rows(50, 48, seed=5)
    for scale in (2.0**-6, 0.37, 40.0):  # blocks beyond 448 scales saturate
        found = blocked(x, "nvfp4", scale=torch.tensor(scale))
        assert_equal(found, published_nvfp4(x, np.float32(scale)))


@pytest.mark.parametrize("axis", [0, 1, -3, -2])
def test_nvfp4_blocks_run_along_any_axis(axis):
    x = scaled_rows(20 * 18, 5).reshape(20, 18, 5)
    wanted = np.moveaxis(published_nvfp4(np.moveaxis(x, axis, -1).copy()), -1, axis)
    assert_equal(blocked(x, "nvfp4", axis), wanted)


def test_the_tensor_scale_of_nvfp4_is_its_largest_magnitude_over_2688():
    nvfp4 = format_named("nvfp4")
    assert float(tensor_scale(torch.tensor([1.0, -26.88]), nvfp4)) == pytest.approx(0.01)
    assert tensor_scale(torch.zeros(3), nvfp4).shape == ()
    assert float(tensor_scale(torch.zeros(3), nvfp4)) == pytest.approx(1e-30)
    assert float(tensor_scale(torch.zeros(0, 4), nvfp4)) == pytest.approx(1e-30)


@pytest.mark.parametrize("largest", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 3.4028234663852886e38])
def test_nvfp4_stays_finite_from_the_smallest_to_the_largest_numbers(largest):
    x = (scaled_rows(4, 40, seed=6) / 2000 * np.float64(largest)).astype(np.float32)
    x[0, 0] = largest
    found = blocked(x, "nvfp4")
    assert np.isfinite(found).all()
    if largest >= 1e-25:
        assert float(np.abs(found).max()) <= largest * (1 + 1e-6)
        assert found[0, 0] == pytest.approx(largest, rel=1e-6)
    else:  # the scale of the tensor is at its floor, so block scales round by up to a sixteenth
        assert float(np.abs(found).max()) <= largest * (1 + 1 / 16)


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
def test_the_error_on_a_gaussian_is_the_known_one(name, expected):
    x = seeded(7).normal(size=(4096, 256)).astype(np.float32)
    error = np.sqrt(np.square(blocked(x, name) - x).mean() / np.square(x).mean())
    assert error == pytest.approx(expected, rel=0.05)


def test_nvfp4_loses_less_than_mxfp4_on_a_gaussian():
    x = seeded(8).normal(size=(2048, 256)).astype(np.float32)
    errors = {
        name: np.sqrt(np.square(blocked(x, name) - x).mean())
        for name in ("nvfp4", "mxfp4_e2m1", "mxfp6_e3m2")
    }
    assert errors["mxfp6_e3m2"] < errors["nvfp4"] < 0.9 * errors["mxfp4_e2m1"]


@pytest.mark.parametrize("name", BLOCKED)
def test_blocks_do_not_sway_each_other(name):
    size = format_named(name).block_size
    scale = torch.tensor(0.01) if name == "nvfp4" else None
    x = scaled_rows(3, 2 * size + 5)
    whole = blocked(x, name, scale=scale)
    for start in range(0, x.shape[1], size):
        part = blocked(x[:, start : start + size], name, scale=scale)
        assert np.array_equal(whole[:, start : start + size], part)


@pytest.mark.parametrize("name", BLOCKED)
def test_a_block_holds_at_most_as_many_values_as_bit_patterns(name):
    number_format = format_named(name)
    x = seeded(11).uniform(-3, 3, (4000, number_format.block_size)).astype(np.float32)
    x[:, 0] = 3.0  # one scale for all
    found = np.unique(blocked(x, name))
    assert 2**number_format.bits * 0.4 < len(found) <= 2**number_format.bits


@pytest.mark.parametrize("name", BLOCKED)
def test_the_gradient_is_zero_where_a_value_saturates(name):
    number_format = format_named(name)
    top = number_format.max_value
    peak = 2.0 ** (math.floor(math.log2(top)) + 1) * 0.999  # within the binade of the largest
    x = torch.tensor([[top, peak, -top, -peak, 0.1, 0.0]], requires_grad=True)
    scale = torch.tensor(0.9 * peak / top / 448) if name == "nvfp4" else None
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    found = fake_quantize_blocks(x, number_format, scale=scale)
    (found * weights).sum().backward()
    if name == "nvfp4":  # blocks scale to 448 * 0.9 * peak / 6 / 448
        inside = [float(abs(v) <= 6 * 0.9 * peak / top) for v in x[0].tolist()]
        assert inside == [1, 0, 1, 0, 1, 1]
    else:
        assert found[0, 1] == top
        inside = [1, 0, 1, 0, 1, 1]
    assert x.grad.tolist() == [[a * b for a, b in zip(inside, weights[0].tolist(), strict=True)]]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_gradients_come_back_along_the_axis_they_went(axis):
    x = torch.from_numpy(scaled_rows(40 * 33, 35).reshape(40, 33, 35)).requires_grad_()
    weights = torch.randn(40, 33, 35, generator=torch.Generator().manual_seed(0))
    found = fake_quantize_blocks(x, format_named("mxfp4_e2m1"), axis=axis)
    (found * weights).sum().backward()
    largest = 1.5 * torch.from_numpy(
        np.exp2(np.floor(np.log2(block_peaks(x.detach().numpy(), axis))))
    )
    assert torch.equal(x.grad, weights * (x.detach().abs() <= largest))
    assert bool((x.grad == 0).any())


def block_peaks(x, axis):
    """Largest magnitude of the block of 32 that each value is in; 1 for blocks of zeros."""
    rows = np.abs(np.moveaxis(x, axis, 0)).astype(np.float64)
    peaks = np.empty_like(rows)
    for start in range(0, len(rows), 32):
        peaks[start : start + 32] = rows[start : start + 32].max(axis=0)
    return np.moveaxis(np.where(peaks == 0, 1, peaks), 0, axis)


@pytest.mark.parametrize("name", BLOCKED)
def test_rounding_at_random_takes_a_neighbour_and_is_right_on_average(name):
    generator = torch.Generator().manual_seed(0)
    number_format = format_named(name)
    block = seeded(9).normal(size=number_format.block_size).astype(np.float32)
    block[0] = number_format.max_value  # a scale of 1, by which nothing saturates
    x = torch.from_numpy(block).repeat(20_000, 1)
    scale = torch.tensor(1.0 / 256) if name == "nvfp4" else None  # block scale 256 / 256
    found = fake_quantize_blocks(x, number_format, scale=scale, generator=generator)
    deviations = found.double().std(dim=0) / len(x) ** 0.5
    off = (found.double().mean(dim=0) - x[0].double()).abs()
    assert bool((off <= 5 * deviations).all())
    assert max(len(column.unique()) for column in found.T) == 2
    steps = torch.stack([column.unique()[[0, -1]] for column in found.T])
    assert bool(((steps[:, 0] <= x[0]) & (x[0] <= steps[:, 1])).all())


@pytest.mark.parametrize("name", BLOCKED)
def test_layouts_empty_tensors_and_single_values(name):
    number_format = format_named(name)
    x = torch.from_numpy(scaled_rows(4 * 6 * 5, 3).reshape(4, 6, 5, 3))
    before = x.clone()
    whole = fake_quantize_blocks(x, number_format, axis=1)
    assert torch.equal(x, before)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(fake_quantize_blocks(last, number_format, axis=1), whole)
    turned = x.permute(3, 1, 0, 2)
    assert torch.equal(
        fake_quantize_blocks(turned, number_format, axis=1), whole.permute(3, 1, 0, 2)
    )
    for shape in [(0,), (0, 3), (3, 0), (2, 0, 5)]:
        assert fake_quantize_blocks(torch.zeros(shape), number_format, axis=-1).shape == shape
    assert fake_quantize_blocks(torch.ones(1), number_format).tolist() == pytest.approx([1.0])
    assert torch.equal(fake_quantize_blocks(torch.zeros(2, 40), number_format), torch.zeros(2, 40))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", BLOCKED)
def test_cuda_equals_the_published_rule(name):
    for x in (scaled_rows(1024, 77, seed=10), extreme_rows()):
        if name == "nvfp4":
            x = scaled_rows(100, 77, seed=10)
        wanted = published_nvfp4(x) if name == "nvfp4" else published_mx(x, name)
        found = fake_quantize_blocks(torch.from_numpy(x).cuda(), format_named(name))
        assert_equal(found.cpu().numpy(), wanted)

import numpy as np
import pytest
import torch

from apqkit.errors import FormatError, UnknownNameError
from apqkit.formats import FORMATS, format_named
from apqkit.quant.learned import dorefa_weight, lsq, lsq_gradient_scale, lsq_step, pact
from apqkit.quant.quantize import fake_quantize

INTEGERS = ["int2", "int3", "int4", "int8", "uint2", "uint4", "uint8"]
NOT_INTEGERS = [name for name in FORMATS if FORMATS[name].family != "int"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def levels_of(name):
    bits = int(name.lstrip("uint"))
    return (0, 2**bits - 1) if name[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def gradients_of(quantize, upstream, *inputs):
    leaves = [each.clone().requires_grad_() for each in inputs]
    found = quantize(*leaves)
    return found.detach(), *torch.autograd.grad(found, leaves, upstream)


def relative_error(found, wanted, like=None):
    like = wanted if like is None else like
    return float((found - wanted).abs().max() / like.abs().max().clamp(min=1e-12))


# LSQ


def test_lsq_on_the_known_vector():
    # value and gradients found with torch's own learnable quantizer
    x = torch.tensor([0.2, 0.749, 0.76, -0.84, -0.86, 3.0], requires_grad=True)
    step = torch.tensor(0.1, requires_grad=True)
    zero = torch.tensor(0.0, requires_grad=True)
    y = lsq(x, step, "int4", zero_point=zero, gradient_scale=0.5)
    y.sum().backward()
    assert y.tolist() == pytest.approx([0.2, 0.7, 0.7, -0.8, -0.8, 0.7])
    assert x.grad.tolist() == [1, 1, 0, 1, 0, 0]
    assert float(step.grad) == pytest.approx(2.955, rel=1e-6)
    assert float(zero.grad) == pytest.approx(-0.15, rel=1e-6)


@pytest.mark.parametrize("zero", [0.0, 1.0])
@pytest.mark.parametrize("step", [0.25, 0.0371])
@pytest.mark.parametrize("name", INTEGERS)
def test_lsq_equals_torch_for_one_step(name, step, zero):
    low, high = levels_of(name)
    generator = seeded(1)
    x = (torch.rand(20_000, generator=generator) * 1.6 - 0.3) * (high - low) + low
    x = (x - zero) * step
    upstream = torch.randn(20_000, generator=generator)
    own = gradients_of(
        lambda x, s, z: lsq(x, s, name, zero_point=z, gradient_scale=0.3),
        upstream,
        *(x, torch.tensor(step), torch.tensor(zero)),
    )
    peer = gradients_of(
        lambda x, s, z: torch._fake_quantize_learnable_per_tensor_affine(x, s, z, low, high, 0.3),
        upstream,
        *(x, torch.tensor([step]), torch.tensor([zero])),
    )
    # torch multiplies by 1 / step, which moves a few values beside a tie; none here
    assert relative_error(own[0], peer[0]) <= 1e-6
    assert torch.equal(own[1], peer[1])
    sizes = upstream.abs().sum() * 0.3  # what the sums are made of
    assert float((own[2] - peer[2]).abs()) <= 1e-6 * float(sizes) * max(abs(low), high)
    assert float((own[3] - peer[3]).abs()) <= 1e-6 * float(sizes) * step


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", INTEGERS)
def test_lsq_equals_torch_for_a_step_a_channel(name, axis):
    low, high = levels_of(name)
    generator = seeded(2)
    x = torch.randn(6, 7, 50, generator=generator) * (high - low) * 0.1
    count = x.shape[axis]
    step = torch.rand(count, generator=generator) * 0.3 + 0.05
    zero = (torch.arange(count) % 2).float()
    upstream = torch.randn(x.shape, generator=generator)
    own = gradients_of(
        lambda x, s, z: lsq(x, s, name, zero_point=z, axis=axis, gradient_scale=0.7),
        upstream,
        *(x, step, zero),
    )
    peer = gradients_of(
        lambda x, s, z: torch._fake_quantize_learnable_per_channel_affine(
            x, s, z, axis, low, high, 0.7
        ),
        upstream,
        *(x, step, zero),
    )
    assert relative_error(own[0], peer[0]) <= 1e-6
    assert torch.equal(own[1], peer[1])
    assert own[2].shape == own[3].shape == (count,)
    assert relative_error(own[2], peer[2]) <= 2e-5  # sums of 300 values in another order
    assert relative_error(own[3], peer[3]) <= 2e-6


def lsq_in_numpy(x, step, zero, low, high, upstream):
    """Value and gradients in fp64, by the published rule with torch's reading of inside."""
    rounded = np.rint(x / step) + zero
    level = np.clip(rounded, low, high)
    inside = rounded == level
    slope = np.where(inside, level - zero - x / step, level - zero)
    return (
        (level - zero) * step,
        upstream * inside,
        (upstream * slope).sum(),
        (upstream * ~inside * -step).sum(),
    )


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", INTEGERS)
def test_lsq_equals_an_independent_writing(name, narrow):
    low, high = levels_of(name)
    if narrow and low < 0:
        low = -high
    step, zero = 0.25, 1.0  # exact, so that ties stay ties in both
    rng = np.random.default_rng(3)
    x = (rng.integers(4 * low - 12, 4 * high + 12, 3000) / 4 * step).astype(np.float32)
    upstream = rng.integers(-8, 9, 3000).astype(np.float32)
    wanted = lsq_in_numpy(x.astype(np.float64), step, zero, low, high, upstream)
    own = gradients_of(
        lambda x, s, z: lsq(x, s, name, zero_point=z, narrow_range=narrow),
        torch.from_numpy(upstream),
        *(torch.from_numpy(x), torch.tensor(step), torch.tensor(zero)),
    )
    for found, want in zip(own, wanted, strict=True):
        assert found.numpy() == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_the_gradient_of_the_step_is_a_finite_difference_with_rounding_held():
    # Rounding itself has no useful derivative. Straight-through holds what rounding adds,
    # rint(v) - v, fixed inside the levels; where clipped, the level is fixed and nothing is held.
    x = np.array([0.31, -0.58, 0.07, 1.9, -2.5])  # away from ties
    step, change = 0.1, 1e-7
    level = np.clip(np.rint(x / step), -8, 7)
    added = np.rint(x / step) - x / step
    inside = np.rint(x / step) == level

    def held(at):
        return np.where(inside, (x / at + added) * at, level * at)

    wanted = (held(step + change) - held(step - change)) / (2 * change)
    for value, want in zip(x, wanted, strict=True):
        _, _, found = gradients_of(
            lambda x, s: lsq(x, s, "int4"),
            torch.ones(1),
            *(torch.tensor([value], dtype=torch.float32), torch.tensor(step)),
        )
        assert float(found) == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_where_clipped_the_gradients_are_finite_differences_of_the_value():
    x = torch.tensor([3.0, 2.2, -5.0])
    upstream = torch.tensor([1.0, -2.0, 0.5])
    step, zero = torch.tensor(0.1), torch.tensor(1.0)
    _, of_x, of_step, of_zero = gradients_of(
        lambda x, s, z: lsq(x, s, "int4", zero_point=z), upstream, x, step, zero
    )

    def value(at_step, at_zero):
        # levels 7 and -8 are the ends; the zero point moves what they stand for
        level = torch.tensor([7.0, 7.0, -8.0]).double()
        return float((upstream.double() * (level - at_zero) * at_step).sum())

    assert of_x.tolist() == [0, 0, 0]
    change = 1e-3
    difference = (value(0.1 + change, 1.0) - value(0.1 - change, 1.0)) / (2 * change)
    assert float(of_step) == pytest.approx(difference, rel=1e-6)
    difference = (value(0.1, 1.0 + change) - value(0.1, 1.0 - change)) / (2 * change)
    assert float(of_zero) == pytest.approx(difference, rel=1e-6)
    own = float((lsq(x, step, "int4", zero_point=zero) * upstream).sum())
    assert own == pytest.approx(value(0.1, 1.0), rel=1e-6)


@pytest.mark.parametrize("name", INTEGERS)
def test_lsq_holds_the_values_of_the_one_quantizer(name):
    x = torch.randn(4, 300, generator=seeded(4)) * 3
    steps = torch.tensor([0.1, 0.33, 0.5, 1.7])
    zeros = torch.tensor([0.0, 1.0, 0.0, 1.0])
    found = lsq(x, steps, name, zero_point=zeros, axis=0)
    assert torch.equal(found, fake_quantize(x, name, scale=steps, zero_point=zeros, axis=0))
    assert torch.equal(
        lsq(x, steps[0], name, narrow_range=True),
        fake_quantize(x, name, scale=0.1, narrow_range=True),
    )


def test_the_gradient_scale_reaches_step_and_zero_point_alone():
    x, upstream = torch.randn(50, generator=seeded(5)), torch.ones(50)
    once, half = (
        gradients_of(
            lambda x, s, z, g=scale: lsq(x, s, "int2", zero_point=z, gradient_scale=g),
            upstream,
            *(x, torch.tensor(0.4), torch.tensor(0.0)),
        )
        for scale in (1.0, 0.5)
    )
    assert torch.equal(once[0], half[0])
    assert torch.equal(once[1], half[1])
    assert float(half[2]) == pytest.approx(0.5 * float(once[2]))
    assert float(half[3]) == pytest.approx(0.5 * float(once[3]))
    assert float(once[3]) < 0


def test_a_value_that_is_not_a_number_stays_and_sends_no_gradient_to_x():
    x = torch.tensor([float("nan"), 0.3], requires_grad=True)
    found = lsq(x, torch.tensor(0.1), "int4")
    found[0].backward()
    assert found[0].isnan()
    assert x.grad.tolist() == [0, 0]


@pytest.mark.parametrize("name", INTEGERS)
def test_a_trained_step_comes_near_the_best_there_is(name):
    x = torch.randn(2000, generator=seeded(6)).abs() + 0.05
    tried = float(lsq_step(x, name)) * np.geomspace(0.05, 8, 400)
    least = min(float((fake_quantize(x, name, scale=s) - x).square().mean()) for s in tried)
    for start in (0.25, 4.0):
        step = torch.tensor(start * float(lsq_step(x, name)), requires_grad=True)
        errors = []
        for _ in range(250):
            error = (lsq(x, step, name) - x).square().mean()
            errors.append(float(error.detach()))
            (gradient,) = torch.autograd.grad(error, step)
            with torch.no_grad():
                step *= 1 - 0.02 * torch.sign(gradient)
        assert errors[-1] < 0.6 * errors[0]
        assert errors[-1] < 1.25 * least


def test_steps_to_begin_with_are_twice_the_mean_magnitude_over_the_root_of_the_top_level():
    x = torch.randn(4, 5, 6, generator=seeded(7))
    values = x.numpy().astype(np.float64)
    for name, top in (("int4", 7), ("uint4", 15), ("int8", 127)):
        assert float(lsq_step(x, name)) == pytest.approx(
            2 * np.abs(values).mean() / np.sqrt(top), rel=1e-6
        )
        wanted = 2 * np.abs(values).mean(axis=(0, 2)) / np.sqrt(top)
        for axis in (1, -2):
            assert lsq_step(x, name, axis=axis).numpy() == pytest.approx(wanted, rel=1e-6)


def test_steps_to_begin_with_are_positive_for_any_tensor():
    assert float(lsq_step(torch.zeros(3, 3), "int4")) == pytest.approx(1e-8)
    assert lsq_step(torch.zeros(3, 0), "int4", axis=0).tolist() == pytest.approx([1e-8] * 3)
    assert float(lsq_step(torch.zeros(0), "int4")) == pytest.approx(1e-8)
    assert lsq_step(torch.tensor([1.0, -3.0]), "int2", axis=0).tolist() == [2.0, 6.0]
    assert not lsq_step(torch.ones(2, requires_grad=True), "int4").requires_grad
    assert lsq_step(torch.zeros(0, 3), "int4", axis=0).shape == (0,)


@pytest.mark.parametrize(
    ("count", "name", "wanted"), [(7, "int4", 1 / 7), (60, "uint4", 1 / 30), (0, "int2", 1.0)]
)
def test_the_gradient_scale_falls_with_count_and_levels(count, name, wanted):
    assert lsq_gradient_scale(count, name) == pytest.approx(wanted)


@pytest.mark.parametrize("name", NOT_INTEGERS)
def test_lsq_and_pact_take_integers_alone(name):
    x, one = torch.ones(3), torch.tensor(1.0)
    for call in (
        lambda: lsq(x, one, name),
        lambda: lsq_step(x, name),
        lambda: lsq_gradient_scale(3, name),
    ):
        with pytest.raises(FormatError) as caught:
            call()
        assert str(caught.value) == f"lsq takes an integer format, got {name}"
    with pytest.raises(FormatError) as caught:
        pact(x, one, name)
    assert str(caught.value) == f"pact takes an integer format, got {name}"


def test_steps_that_do_not_fit_the_axis_are_refused():
    x = torch.ones(3, 4)
    with pytest.raises(FormatError) as caught:
        lsq(x, torch.ones(3), "int4", axis=1)
    assert str(caught.value) == "one scale an index of axis 1 makes 4, got 3"
    for call in (
        lambda: lsq(x, torch.ones(3), "int4", axis=2),
        lambda: lsq_step(x, "int4", axis=2),
    ):
        with pytest.raises(FormatError) as caught:
            call()
        assert str(caught.value) == "axis must be -2 to 1 for 2 axes, got 2"


# PACT


def pact_in_numpy(x, clip, bits, upstream):
    step = clip / (2**bits - 1)
    value = np.rint(np.clip(x, 0, clip) / step) * step
    return value, upstream * ((x >= 0) & (x < clip)), (upstream * (x >= clip)).sum()


@pytest.mark.parametrize("clip", [0.75, 2.0, 10.0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pact_equals_an_independent_writing(bits, clip):
    rng = np.random.default_rng(bits)
    x = rng.normal(0, clip, 20_000).astype(np.float32)
    x[:4] = [clip, 0.0, -0.0, np.nextafter(np.float32(clip), np.float32(0))]
    upstream = rng.normal(size=len(x)).astype(np.float32)
    wanted = pact_in_numpy(x.astype(np.float64), clip, bits, upstream.astype(np.float64))
    own = gradients_of(
        lambda x, a: pact(x, a, f"uint{bits}"),
        torch.from_numpy(upstream),
        *(torch.from_numpy(x), torch.tensor(clip)),
    )
    off = np.abs(own[0].numpy() - wanted[0])
    assert (off > 1e-6 * clip).sum() <= 3  # fp32 may fall on the other side of a tie
    assert off.max() <= clip / (2**bits - 1) * 1.001
    assert np.array_equal(own[1].numpy(), wanted[1].astype(np.float32))
    assert float(own[2]) == pytest.approx(wanted[2], rel=1e-5)


def test_the_clip_learns_from_what_it_clips_alone():
    x = torch.tensor([-1.0, 0.0, 1.0, 3.9, 4.0, 9.0], requires_grad=True)
    clip = torch.tensor(4.0, requires_grad=True)
    found = pact(x, clip, "uint4")
    (found * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])).sum().backward()
    assert found.tolist() == pytest.approx([0, 0, 4 * 4 / 15, 4, 4, 4])
    assert x.grad.tolist() == [0, 2, 4, 8, 0, 0]
    assert float(clip.grad) == 48


def test_where_clipped_the_gradient_of_the_clip_is_a_finite_difference():
    x = torch.tensor([5.0, 7.0, 40.0])
    above, below = (pact(x, torch.tensor(c), "uint8").double().sum() for c in (4.01, 3.99))
    _, _, of_clip = gradients_of(
        lambda x, a: pact(x, a, "uint8"), torch.ones(3), x, torch.tensor(4.0)
    )
    assert float(of_clip) == pytest.approx(float(above - below) / 0.02, rel=1e-3)


def test_pact_takes_unsigned_integers_alone():
    with pytest.raises(FormatError) as caught:
        pact(torch.ones(2), torch.tensor(1.0), "int4")
    assert str(caught.value) == "pact takes an unsigned integer format, got int4"


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3)])
def test_pact_and_lsq_take_any_shape(shape):
    x = torch.full(shape, 2.0)
    assert torch.equal(pact(x, torch.tensor(3.0), "uint2"), x)
    assert torch.equal(lsq(x, torch.tensor(1.0), "uint2"), x)


# DoReFa


def dorefa_in_numpy(weight, bits, *, rounded=True):
    steps = 2**bits - 1
    squashed = np.tanh(weight)
    level = steps * (squashed / (2 * np.abs(squashed).max()) + 0.5)
    return 2 * (np.rint(level) if rounded else level) / steps - 1


@pytest.mark.parametrize("bits", range(2, 9))
def test_dorefa_equals_an_independent_writing(bits):
    weight = np.random.default_rng(bits).normal(0, 0.7, (30, 40)).astype(np.float32)
    wanted = dorefa_in_numpy(weight.astype(np.float64), bits)
    found = dorefa_weight(torch.from_numpy(weight), bits).numpy()
    off = np.abs(found - wanted)
    assert (off > 1e-6).sum() <= 1  # fp32 may fall on the other side of a tie
    assert off.max() <= 2 / (2**bits - 1) * 1.001
    assert len(np.unique(found)) <= 2**bits
    assert np.abs(found).max() == 1.0
    assert 0.0 not in found


@pytest.mark.parametrize("bits", [2, 4])
def test_the_gradient_of_dorefa_is_that_without_rounding(bits):
    # rounding passes straight through, the largest weight included
    rng = np.random.default_rng(bits)
    weight = rng.normal(0, 0.7, 12)
    upstream = rng.normal(size=12)
    change = 1e-6
    wanted = np.empty(12)
    for index in range(12):
        moved = change * (np.arange(12) == index)
        up, down = (
            dorefa_in_numpy(weight + sign * moved, bits, rounded=False) for sign in (1, -1)
        )
        wanted[index] = (upstream * (up - down)).sum() / (2 * change)
    _, found = gradients_of(
        lambda w: dorefa_weight(w, bits),
        torch.from_numpy(upstream).float(),
        torch.from_numpy(weight).float(),
    )
    assert found.numpy() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_dorefa_looks_at_the_whole_tensor():
    alone = dorefa_weight(torch.tensor([0.1, -0.2]), 2)
    beside = dorefa_weight(torch.tensor([0.1, -0.2, 3.0]), 2)
    assert alone.tolist() != beside[:2].tolist()


def test_dorefa_of_zeros_is_finite():
    # 0 lies between two of its values; the tie goes to level 2 of 3
    assert dorefa_weight(torch.zeros(3), 2).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("bits", [1, 9, 0, -2])
def test_dorefa_takes_two_to_eight_bits(bits):
    with pytest.raises(FormatError) as caught:
        dorefa_weight(torch.ones(2), bits)
    assert str(caught.value) == f"dorefa_weight takes 2 to 8 bits, got {bits}"


def test_an_unknown_format_is_named():
    with pytest.raises(UnknownNameError) as caught:
        lsq(torch.ones(2), torch.tensor(1.0), "int44")
    assert str(caught.value).startswith("no format named 'int44' (did you mean 'int4'?); ")


def test_formats_may_be_given_as_such():
    x = torch.randn(20, generator=seeded(8))
    step, uint4 = torch.tensor(0.2), format_named("uint4")
    assert torch.equal(lsq(x, step, uint4), lsq(x, step, "uint4"))
    assert torch.equal(pact(x, step, uint4), pact(x, step, "uint4"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", INTEGERS)
def test_cuda_equals_the_cpu(name):
    x = torch.randn(6, 400, generator=seeded(9)) * 4
    step, upstream = torch.rand(6, generator=seeded(10)) + 0.1, torch.randn(6, 400)
    arguments = (lambda x, s: lsq(x, s, name, axis=0), upstream, x, step)
    own = gradients_of(*arguments)
    peer = gradients_of(arguments[0], *(each.cuda() for each in arguments[1:]))
    assert torch.equal(own[0], peer[0].cpu())
    assert torch.equal(own[1], peer[1].cpu())
    assert relative_error(peer[2].cpu(), own[2]) <= 1e-5

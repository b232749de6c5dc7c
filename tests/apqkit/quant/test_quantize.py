import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from apqkit.errors import CalibrationError, FormatError, UnknownNameError
from apqkit.formats import FORMATS, NumberFormat, format_named
from apqkit.quant.blocks import fake_quantize_blocks
from apqkit.quant.integer import fake_quantize_integer
from apqkit.quant.minifloat import fake_quantize_minifloat, round_to_bfloat16
from apqkit.quant.qparams import qparams_for
from apqkit.quant.quantize import (
    check_finite,
    checked_axis,
    fake_quantize,
    spread,
    unchecked_fake_quantize,
)

X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 3
SCALE = torch.tensor(0.25)
INTEGERS = [name for name in FORMATS if FORMATS[name].family == "int"]
MINIFLOATS = [name for name in FORMATS if FORMATS[name].family == "float" and name[:2] == "fp"][1:]
BLOCKED = [name for name in FORMATS if FORMATS[name].family == "mx"]
SYMMETRIC = [name for name in FORMATS if not name.startswith("uint")]
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_format_is_of_one_family():
    assert {*INTEGERS, *MINIFLOATS, *BLOCKED, "fp32", "bf16"} == set(FORMATS)
    assert len(MINIFLOATS) == 6


# what the door leads to


def test_a_format_may_be_named():
    named = fake_quantize(X, "int4", scale=SCALE)
    assert torch.equal(named, fake_quantize(X, format_named("int4"), scale=SCALE))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_use_all_their_levels(name):
    number_format = format_named(name)
    low, high = number_format.lowest_level, number_format.highest_level
    x = X * 30_000
    zero = 3 if high > 2 else 1
    expected = fake_quantize_integer(x, SCALE, zero, (low, high))
    assert torch.equal(fake_quantize(x, name, scale=SCALE, zero_point=zero), expected)
    assert expected.min() == (low - zero) * SCALE
    assert expected.max() == (high - zero) * SCALE


def test_narrow_range_drops_the_lowest_level_of_signed_integers_alone():
    x = torch.tensor([-100.0, 100.0])
    signed = fake_quantize(x, "int4", scale=torch.tensor(1.0), narrow_range=True)
    unsigned = fake_quantize(x, "uint4", scale=torch.tensor(1.0), narrow_range=True)
    assert signed.tolist() == [-7, 7]
    assert unsigned.tolist() == [0, 15]


@pytest.mark.parametrize("name", MINIFLOATS)
def test_floats_are_rounded_as_minifloats(name):
    expected = fake_quantize_minifloat(X, SCALE, format_named(name))
    assert torch.equal(fake_quantize(X, name, scale=SCALE), expected)


@pytest.mark.parametrize("axis", [None, 0, 1, -2])
@pytest.mark.parametrize("name", BLOCKED)
def test_blocks_run_along_the_axis_and_else_the_last(name, axis):
    x = torch.randn(40, 35, 33, generator=seeded(1))
    along = -1 if axis is None else axis
    expected = fake_quantize_blocks(x, format_named(name), axis=along)
    assert torch.equal(fake_quantize(x, name, axis=axis), expected)


def test_the_size_of_blocks_may_be_said_if_right():
    assert torch.equal(fake_quantize(X, "mxint8", group_size=32), fake_quantize(X, "mxint8"))
    assert torch.equal(fake_quantize(X, "nvfp4", group_size=16), fake_quantize(X, "nvfp4"))


def test_nvfp4_takes_a_scale_for_the_whole_tensor():
    expected = fake_quantize_blocks(X, format_named("nvfp4"), scale=torch.tensor(0.01))
    assert torch.equal(fake_quantize(X, "nvfp4", scale=0.01), expected)
    assert not torch.equal(fake_quantize(X, "nvfp4"), expected)


def test_fp32_leaves_a_tensor_alone():
    assert fake_quantize(X, "fp32") is X


def test_bf16_is_rounded_without_a_scale():
    assert torch.equal(fake_quantize(X, "bf16"), X.to(torch.bfloat16).float())
    assert torch.equal(fake_quantize(X, "bf16"), round_to_bfloat16(X, format_named("bf16")))


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "bf16", "fp32"])
def test_the_unchecked_way_gives_the_same(name):
    scale = SCALE if FORMATS[name].is_scaled else None
    expected = fake_quantize(X, name, scale=scale)
    assert torch.equal(unchecked_fake_quantize(X, format_named(name), scale), expected)


@pytest.mark.parametrize("axis", [0, 1, -3, -1])
@pytest.mark.parametrize("name", ["int4", "fp8_e4m3"])
def test_scales_run_along_the_axis(axis, name):
    scale = torch.linspace(0.1, 1.0, X.shape[axis])
    slices = [
        fake_quantize(X.select(axis, index), name, scale=each) for index, each in enumerate(scale)
    ]
    found = fake_quantize(X, name, scale=scale, axis=axis)
    assert torch.equal(found, torch.stack(slices, dim=axis))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("name", ["int4", "fp6_e2m3"])
def test_every_group_along_the_axis_has_a_scale_of_its_own(axis, name):
    x = torch.randn(5, 7, 10, generator=seeded(2))
    shape = list(x.shape)
    shape[axis] = -(-shape[axis] // 3)
    scale = torch.rand(shape, generator=seeded(3)) + 0.05
    found = fake_quantize(x, name, scale=scale, axis=axis, group_size=3)
    for index in np.ndindex(*x.shape):
        group = list(index)
        group[axis] //= 3
        alone = fake_quantize(x[index], name, scale=scale[tuple(group)])
        assert found[index] == alone


def test_scales_that_broadcast_need_no_axis():
    scale = torch.tensor([0.1, 0.2, 0.4]).view(3, 1, 1)
    expected = fake_quantize(X, "int8", scale=scale.flatten(), axis=1)
    assert torch.equal(fake_quantize(X, "int8", scale=scale), expected)
    assert torch.equal(fake_quantize(X, "int8", scale=scale.view(1, 3, 1, 1), axis=0), expected)


# ONNX Runtime


def run_onnx(x, scale, zero, **attributes):
    """x through QuantizeLinear and DequantizeLinear with optimisations off, and the reference."""
    constants = [numpy_helper.from_array(each, name) for each, name in ((scale, "s"), (zero, "z"))]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(x.shape)) for n in "xy"]
    graph = helper.make_graph(nodes, "qdq", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"x": x})[0]
    assert np.array_equal(found, ReferenceEvaluator(model).run(None, {"x": x})[0])
    return found


def onnx_type(name):
    return helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, name.upper()))


def case_of(name, shape, scale_shape, *, symmetric, seed=0):
    """Values (a third exact ties), scales (some powers of two) and zero points, odd ones too."""
    number_format, rng = format_named(name), np.random.default_rng(seed)
    low, high = number_format.lowest_level, number_format.highest_level
    scale = np.where(
        rng.random(scale_shape) < 0.7,
        2.0 ** rng.integers(-6, 3, scale_shape),
        rng.uniform(0.01, 2.0, scale_shape),
    ).astype(np.float32)
    zero = rng.integers(low, high + 1, scale_shape) | (rng.random(scale_shape) < 0.8)
    zero = np.zeros_like(zero) if symmetric else np.clip(zero, low, high)
    reach = 1.3 * (high - low)
    steps = rng.uniform(low - reach / 8, high + reach / 8, shape)
    ties = np.floor(steps) + 0.5
    return np.where(rng.random(shape) < 0.3, ties, steps), scale, zero


CARRIED = ["int4", "uint4", "int8", "uint8", "int16", "uint16"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", CARRIED)
def test_one_scale_for_all_equals_the_runtime(name, symmetric):
    for seed in range(4):
        steps, scale, zero = case_of(name, (40, 50), (), symmetric=symmetric, seed=seed)
        x = ((steps - zero) * scale).astype(np.float32)
        expected = run_onnx(x, scale, np.asarray(zero).astype(onnx_type(name)))
        found = fake_quantize(
            torch.from_numpy(x), name, scale=torch.from_numpy(scale), zero_point=int(zero)
        )
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", CARRIED)
def test_a_scale_a_channel_equals_the_runtime(name, symmetric, axis):
    shape = (6, 7, 80)
    along = [1] * 3
    along[axis] = shape[axis]
    steps, scale, zero = case_of(name, shape, along, symmetric=symmetric)
    x = ((steps - zero) * scale).astype(np.float32)
    scale, zero = scale.flatten(), zero.flatten()
    expected = run_onnx(x, scale, zero.astype(onnx_type(name)), axis=axis)
    found = fake_quantize(
        torch.from_numpy(x),
        name,
        scale=torch.from_numpy(scale),
        zero_point=torch.from_numpy(zero),
        axis=axis,
    )
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(("axis", "size"), [(0, 4), (1, 32), (2, 5), (1, 64), (-1, 3)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", CARRIED)
def test_a_scale_a_group_with_a_shorter_tail_equals_the_runtime(name, symmetric, axis, size):
    shape = (6, 70, 11)
    groups = list(shape)
    groups[axis] = -(-shape[axis] // size)
    steps, scale, zero = case_of(name, shape, groups, symmetric=symmetric)
    every = np.arange(shape[axis]) // size
    x = (steps - zero.take(every, axis)) * scale.take(every, axis)
    x = x.astype(np.float32)
    expected = run_onnx(x, scale, zero.astype(onnx_type(name)), axis=axis, block_size=size)
    found = fake_quantize(
        torch.from_numpy(x),
        name,
        scale=torch.from_numpy(scale),
        zero_point=torch.from_numpy(zero),
        axis=axis,
        group_size=size,
    )
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", CARRIED)
def test_groups_on_cuda_equal_the_runtime(name):
    steps, scale, zero = case_of(name, (6, 70), (6, 3), symmetric=False)
    every = np.arange(70) // 32
    x = ((steps - zero.take(every, 1)) * scale.take(every, 1)).astype(np.float32)
    expected = run_onnx(x, scale, zero.astype(onnx_type(name)), axis=1, block_size=32)
    found = fake_quantize(
        torch.from_numpy(x).cuda(),
        name,
        scale=torch.from_numpy(scale).cuda(),
        zero_point=torch.from_numpy(zero).cuda(),
        axis=1,
        group_size=32,
    )
    assert np.array_equal(found.cpu().numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", FORMATS)
def test_cuda_equals_the_cpu(name):
    x = torch.randn(50, 77, generator=seeded(4)) * 10
    axis = 0 if FORMATS[name].is_scaled else None
    found = qparams_for(x, name, axis=axis)
    on_cuda = None if found.scale is None else found.scale.cuda()
    expected = fake_quantize(x, name, scale=found.scale, axis=axis)
    assert torch.equal(fake_quantize(x.cuda(), name, scale=on_cuda, axis=axis).cpu(), expected)


# properties of every format


# Block scales of nvfp4 lose bits 2^-12 below the largest, so values come in one binade of ten.
numbers = st.lists(
    st.tuples(st.floats(1.0, 2.0, width=32), st.integers(-5, 5), st.booleans())
    | st.just((0.0, 0, False)),
    min_size=1,
    max_size=40,
).map(lambda parts: torch.tensor([(-v if n else v) * 2.0**e for v, e, n in parts]))
names = st.sampled_from(list(FORMATS))
moderate = settings(max_examples=150, deadline=None)


def through(x, name, *, scale=None, narrow=True):
    """x through the door with its own scales, or those given; and the scales."""
    if scale is None:
        scale = qparams_for(x, name).scale
    return fake_quantize(x, name, scale=scale, narrow_range=narrow), scale


@given(numbers, names)
@moderate
def test_is_idempotent(x, name):
    once, scale = through(x, name)
    assert torch.equal(through(once, name, scale=scale)[0], once)


@given(numbers, st.sampled_from(INTEGERS))
@moderate
def test_affine_integers_are_idempotent_and_keep_order(x, name):
    found = qparams_for(x, name, symmetric=False)
    options = {"scale": found.scale, "zero_point": found.zero_point}
    ordered, _ = torch.sort(x)
    once = fake_quantize(ordered, name, **options)
    assert torch.equal(fake_quantize(once, name, **options), once)
    assert bool((once.diff() >= 0).all())


@given(numbers, names)
@moderate
def test_keeps_order_within_a_block(x, name):
    size = FORMATS[name].block_size or len(x)
    ordered, _ = torch.sort(x[:size])
    assert bool((through(ordered, name)[0].diff() >= 0).all())


@given(numbers, st.sampled_from(SYMMETRIC))
@moderate
def test_is_odd_in_narrow_range(x, name):
    once, scale = through(x, name)
    assert torch.equal(through(-x, name, scale=scale)[0], -once)
    assert torch.equal(through(-x, name)[0], -once)


@given(numbers, names, st.integers(-10, 10))
@moderate
def test_follows_the_tensor_by_powers_of_two(x, name, power):
    assume(float(x.abs().max()) > 0.01)  # scales stay above their floor of 1e-8
    if name.startswith("uint"):
        x = x.abs()
    once, _ = through(x, name)
    if FORMATS[name].bits == 16 and FORMATS[name].is_scaled:
        power = max(power, 0)
    assert torch.equal(through(x * 2.0**power, name)[0], once * 2.0**power)


@given(numbers, names)
@moderate
def test_zero_is_exactly_zero(x, name):
    x = torch.cat([x, torch.zeros(3)])
    assert through(x, name)[0][-3:].tolist() == [0, 0, 0]


@given(numbers, st.sampled_from(INTEGERS))
@moderate
def test_zero_is_exactly_zero_in_affine_integers(x, name):
    found = qparams_for(x, name, symmetric=False)
    zeros = fake_quantize(torch.zeros(2), name, scale=found.scale, zero_point=found.zero_point)
    assert zeros.tolist() == [0, 0]


@given(numbers, names)
@moderate
def test_is_never_farther_than_half_the_gap_of_the_format(x, name):
    if name.startswith("uint"):
        x = x.abs()
    found, scale = through(x, name)
    number_format = FORMATS[name]
    if number_format.family == "int":
        bound = 0.5 * float(scale) + x.abs() * 2.0**-22  # x / scale rounds too
    elif number_format.block_size == 0:
        gap = 2.0 ** -(number_format.mantissa_bits + 1)
        least = 2.0**number_format.min_exponent * gap * (1.0 if scale is None else float(scale))
        bound = torch.maximum(x.abs() * gap, torch.tensor(least))
    else:  # a block's largest may saturate by up to a fourth, its least is an element's step
        bound = x.abs() * 0.25 + float(x.abs().max()) * 0.15
    assert bool(((found - x).abs() <= bound * (1 + 1e-5)).all())


@pytest.mark.parametrize("name", [*INTEGERS, *MINIFLOATS])
def test_there_are_at_most_as_many_values_as_bit_patterns(name):
    x = torch.randn(300_000, generator=seeded(5))
    found, _ = through(x, name, narrow=False)
    assert len(found.unique()) <= 2 ** FORMATS[name].bits
    assert len(found.unique()) > 2 ** FORMATS[name].bits / 16


def narrow_grid(name):
    """All values of a format at scale 1, from what it does to a dense line."""
    top = FORMATS[name].max_value
    line = torch.cat([torch.linspace(-top, top, 200_001), torch.linspace(-2, 2, 200_001)])
    return fake_quantize(line, name, scale=1.0, narrow_range=True).unique()


@pytest.mark.parametrize("name", ["int2", "int4", "uint4", "int8", "fp8_e4m3", "fp8_e3m4"])
def test_rounding_at_random_takes_one_of_the_two_neighbours_and_is_unbiased(name):
    grid = narrow_grid(name)
    generator = seeded(6)
    middle = len(grid) // 2
    for low, high in [(grid[middle], grid[middle + 1]), (grid[0], grid[1])]:
        for share in (0.25, 0.6875):
            value = float(low + share * (high - low))
            x = torch.full((100_000,), value * 0.5)
            found = fake_quantize(
                x, name, scale=0.5, narrow_range=True, generator=generator
            ).double()
            assert set(found.unique().tolist()) == {float(low) / 2, float(high) / 2}
            deviation = float(high - low) / 2 * (share * (1 - share) / len(x)) ** 0.5
            assert abs(float(found.mean()) - value / 2) < 4.5 * deviation


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_at_random_follows_its_generator(name):
    x = torch.randn(3, 500, generator=seeded(7))
    scale = qparams_for(x, name).scale
    first, second, other = (
        fake_quantize(x, name, scale=scale, generator=seeded(seed)) for seed in (8, 8, 9)
    )
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (name in ("fp32", "bf16"))


# gradients


@pytest.mark.parametrize("name", [*INTEGERS, *MINIFLOATS])
def test_the_gradient_is_one_inside_and_zero_where_clipped(name):
    number_format = format_named(name)
    top = number_format.max_value * 0.25
    low = -top if number_format.signed else 0.0
    inside = torch.tensor([low, top, 0.25, 0.0, 0.3 * top])
    outside = torch.tensor([low * 1.3 - 1.0, top * 1.3 + 1.0, 1e30, -1e30])
    x = torch.cat([inside, outside]).requires_grad_()
    weights = torch.arange(1.0, 10.0)
    (fake_quantize(x, name, scale=0.25, narrow_range=True) * weights).sum().backward()
    assert x.grad.tolist() == [1, 2, 3, 4, 5, 0, 0, 0, 0]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_gradient_of_wide_floats_is_one(name):
    x = X.clone().requires_grad_()
    (fake_quantize(x, name) * X).sum().backward()
    assert torch.equal(x.grad, X)


@pytest.mark.parametrize("name", [name for name in BLOCKED if name != "nvfp4"])
def test_the_gradient_of_blocks_is_zero_where_a_value_saturates(name):
    top = FORMATS[name].max_value
    x = torch.tensor([top, -top, 0.5, top * 1.005, -top * 1.005, 0.0], requires_grad=True)
    (fake_quantize(x, name) * torch.arange(1.0, 7.0)).sum().backward()
    assert x.grad.tolist() == [1, 2, 3, 0, 0, 6]


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_pass_at_random_rounding_too_and_to_x_alone(name):
    x = torch.rand(4, 40, generator=seeded(8)).requires_grad_()
    found = qparams_for(x, name)
    scale = None if found.scale is None else (found.scale * 1.01).requires_grad_()
    fake_quantize(x, name, scale=scale, generator=seeded(9)).sum().backward()
    # in blocks the largest values may saturate
    assert set(x.grad.unique().tolist()) <= ({0.0, 1.0} if FORMATS[name].block_size else {1.0})
    assert float(x.grad.mean()) > 0.7
    assert scale is None or scale.grad is None


@pytest.mark.parametrize("name", FORMATS)
def test_no_gradient_is_kept_where_none_is_asked_for(name):
    scale = qparams_for(X, name).scale
    assert not fake_quantize(X, name, scale=scale).requires_grad


# tensors of all kinds


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_empty_tensors_stay_empty(name, shape):
    x = torch.zeros(shape)
    for axis in (None, 0) if FORMATS[name].is_scaled else (None,):
        scale = qparams_for(x, name, axis=axis).scale
        assert fake_quantize(x, name, scale=scale, axis=axis).shape == shape


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros(name):
    x = torch.zeros(3, 40)
    assert torch.equal(through(x, name)[0], x)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [1e-3, 0.75, 3.0, 1e6])
def test_a_constant_is_held_to_the_format_s_precision(name, value):
    for shape in [(1,), (5, 33)]:
        found = through(torch.full(shape, value), name)[0]
        assert len(found.unique()) == 1
        # in mx blocks a constant may lie a fourth beyond the largest value
        assert float(found.flatten()[0]) == pytest.approx(
            value, rel=0.26 if name in BLOCKED else 0.004
        )


@pytest.mark.parametrize("name", [*INTEGERS, *MINIFLOATS])
def test_subnormal_tensors_become_zeros_not_noise(name):
    x = torch.tensor([1e-45, -3e-42, 1e-39])
    assert torch.equal(through(x, name)[0], torch.zeros(3))


@pytest.mark.parametrize("name", FORMATS)
def test_memory_layout_does_not_matter(name):
    x = torch.randn(4, 6, 5, 3, generator=seeded(10))
    scale = qparams_for(x, name).scale
    expected = fake_quantize(x, name, scale=scale)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(fake_quantize(last, name, scale=scale), expected)
    turned = x.transpose(0, 3).contiguous().transpose(0, 3)
    assert not turned.is_contiguous()
    assert torch.equal(fake_quantize(turned, name, scale=scale), expected)
    assert torch.equal(
        fake_quantize(x[1:3, ::2], name, scale=scale),
        fake_quantize(x[1:3, ::2].contiguous(), name, scale=scale),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_the_input_is_left_alone(name):
    x = X.clone()
    through(x, name)
    assert torch.equal(x, X)


@pytest.mark.parametrize("name", [*INTEGERS, *MINIFLOATS, "fp32", "bf16"])
def test_a_tensor_without_axes_is_taken(name):
    found = through(torch.tensor(0.5), name)[0]
    assert found.shape == ()
    assert float(found) == pytest.approx(0.5)


# what is refused


def refusal(kind, *arguments, **options):
    with pytest.raises(kind) as caught:
        fake_quantize(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_other_types_than_fp32_are_refused(kind):
    for name in ("int8", "fp32", "mxint8"):
        assert refusal(FormatError, X.to(kind), name, scale=SCALE, name="conv1.weight") == (
            f"conv1.weight must be a float32 tensor to be quantized, got {kind}"
        )
    assert refusal(FormatError, X.to(kind), "int8").startswith("x must be a float32 tensor")


def test_an_unknown_format_is_named():
    assert refusal(UnknownNameError, X, "int44", scale=SCALE) == (
        f"no format named 'int44' (did you mean 'int4'?); there are: {', '.join(sorted(FORMATS))}"
    )


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", FORMATS)
def test_values_that_are_not_finite_are_refused(name, value):
    x = torch.tensor([[1.0, value, 2.0], [value, 0.0, 3.0]])
    scale = SCALE if FORMATS[name].is_scaled else None
    for check in (fake_quantize, qparams_for):
        options = {"scale": scale} if check is fake_quantize else {}
        with pytest.raises(CalibrationError) as caught:
            check(x, name, name="layer3.input", **options)
        assert str(caught.value) == "layer3.input holds 2 of 6 values that are not finite"


def test_values_at_both_ends_of_fp32_are_finite():
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([largest, -largest])
    check_finite(x, "x")
    assert fake_quantize(x, "int8", scale=1.0).tolist() == [127, -128]
    check_finite(torch.zeros(0, 3), "x")


@pytest.mark.parametrize("name", [*INTEGERS, *MINIFLOATS])
def test_a_missing_scale_is_refused(name):
    assert refusal(FormatError, X, name) == f"format {name} needs a scale, see qparams_for"


@pytest.mark.parametrize("name", ["fp32", "bf16", *[n for n in BLOCKED if n != "nvfp4"]])
def test_a_scale_for_a_format_that_takes_none_is_refused(name):
    assert refusal(FormatError, X, name, scale=SCALE) == f"format {name} takes no scale"


def test_more_than_one_scale_for_nvfp4_is_refused():
    assert refusal(FormatError, X, "nvfp4", scale=torch.ones(4)) == (
        "format nvfp4 takes one scale for the whole tensor, got (4,)"
    )


@pytest.mark.parametrize(
    ("scale", "got"),
    [
        (0.0, "0"),
        (-0.5, "-0.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (torch.tensor([1.0, 2.0, -3.0, 4.0]), "-3"),
    ],
)
@pytest.mark.parametrize("name", ["int4", "fp8_e4m3"])
def test_scales_that_are_not_positive_are_refused(name, scale, got):
    axis = 0 if isinstance(scale, torch.Tensor) else None
    assert refusal(FormatError, X, name, scale=scale, axis=axis) == (
        f"scales must be positive and finite, got {got}"
    )


def test_a_scale_of_nvfp4_that_is_not_positive_is_refused():
    assert refusal(FormatError, X, "nvfp4", scale=0.0) == (
        "scales must be positive and finite, got 0"
    )


@pytest.mark.parametrize("axis", [4, -5, 9])
@pytest.mark.parametrize(
    ("name", "scale"), [("int4", 0.1), ("fp8_e4m3", torch.ones(4)), ("mxint8", None)]
)
def test_an_axis_that_is_not_there_is_refused(name, scale, axis):
    wanted = f"axis must be -4 to 3 for 4 axes, got {axis}"
    assert refusal(FormatError, X, name, scale=scale, axis=axis) == wanted


def test_a_tensor_without_axes_has_no_blocks():
    wanted = "a tensor without axes has no axis -1"
    assert refusal(FormatError, torch.tensor(1.0), "mxint8") == wanted
    wanted = "a tensor without axes has no axis 0"
    assert refusal(FormatError, torch.tensor(1.0), "int8", scale=SCALE, axis=0) == wanted


def test_axes_are_counted_from_either_end():
    assert [checked_axis(axis, 3) for axis in (-3, -1, 0, 2)] == [0, 2, 0, 2]


def test_too_few_or_too_many_scales_are_refused():
    for count in (1, 2, 4):
        assert refusal(FormatError, X, "int4", scale=torch.ones(count), axis=1) == (
            f"one scale an index of axis 1 makes 3, got {count}"
        )


@pytest.mark.parametrize("shape", [(5,), (2, 4, 3, 2, 2), (3, 1, 3), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("name", ["int4", "fp8_e4m3"])
def test_scales_that_do_not_broadcast_are_refused(name, shape):
    wanted = f"scales must broadcast to the tensor's shape (4, 3, 2, 2), got {shape}"
    assert refusal(FormatError, X, name, scale=torch.ones(shape)) == wanted


def test_scales_never_make_a_tensor_larger():
    assert refusal(FormatError, torch.ones(1, 3), "int4", scale=torch.ones(2, 3)) == (
        "scales must broadcast to the tensor's shape (1, 3), got (2, 3)"
    )


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2, 2), (4, 1, 2, 2)])
def test_scales_of_groups_have_one_shape_alone(shape):
    assert refusal(FormatError, X, "int4", scale=torch.ones(shape), axis=1, group_size=2) == (
        f"scales of groups of 2 along axis 1 must have shape (4, 2, 2, 2), got {shape}"
    )


@pytest.mark.parametrize(("axis", "size"), [(None, 4), (None, 0), (1, 0), (1, -2)])
def test_a_group_size_needs_an_axis_and_is_positive(axis, size):
    assert refusal(FormatError, X, "int4", scale=SCALE, axis=axis, group_size=size) == (
        f"group_size must be positive and needs an axis, got {size}"
    )


@pytest.mark.parametrize(("name", "size", "other"), [("mxint8", 32, 16), ("nvfp4", 16, 32)])
def test_another_size_of_blocks_is_refused(name, size, other):
    wanted = f"format {name} has blocks of {size}, got group_size {other}"
    assert refusal(FormatError, X, name, group_size=other) == wanted


@pytest.mark.parametrize(
    ("name", "zero", "narrow", "ends", "got"),
    [
        ("int4", 8, False, "-8 to 7", "8"),
        ("int4", -9, False, "-8 to 7", "-9"),
        ("int4", -8, True, "-7 to 7", "-8"),
        ("uint4", -1, False, "0 to 15", "-1"),
        ("uint8", 256, True, "0 to 255", "256"),
        ("int8", torch.tensor([1, 2, 300, 4]), False, "-128 to 127", "300"),
        ("int8", torch.tensor([0.0, 1.0, 2.5, 0.0]), False, "-128 to 127", "2.5"),
        ("int8", torch.tensor([0.5, 1.0, 2.0, 0.0]), False, "-128 to 127", "0.5"),
        ("int8", torch.tensor(float("nan")), False, "-128 to 127", "nan"),
    ],
)
def test_zero_points_that_are_no_levels_are_refused(name, zero, narrow, ends, got):
    assert refusal(
        FormatError, X, name, scale=SCALE, zero_point=zero, axis=0, narrow_range=narrow
    ) == (f"zero points of {name} are levels from {ends}, got {got}")


@pytest.mark.parametrize("name", [*MINIFLOATS, *BLOCKED, "fp32", "bf16"])
@pytest.mark.parametrize("zero", [3, torch.tensor([0, 1])])
def test_a_zero_point_for_a_format_that_takes_none_is_refused(name, zero):
    scale = SCALE if FORMATS[name].is_scaled else None
    wanted = f"format {name} takes no zero point"
    assert refusal(FormatError, X, name, scale=scale, zero_point=zero) == wanted


def test_zero_points_of_zero_suit_every_format():
    for name in FORMATS:
        scale = SCALE if FORMATS[name].is_scaled else None
        expected = fake_quantize(X, name, scale=scale)
        for zero in (0, torch.tensor(0.0), torch.zeros(4), torch.zeros(0)):
            assert torch.equal(fake_quantize(X, name, scale=scale, zero_point=zero), expected)


def test_zero_points_of_the_wrong_shape_are_refused():
    zeros = torch.tensor([1, 2])
    assert refusal(FormatError, X, "int8", scale=torch.ones(3), zero_point=zeros, axis=1) == (
        "one scale an index of axis 1 makes 3, got 2"
    )


def test_a_plug_in_of_a_new_width_is_taken():
    wide = NumberFormat("int12", "int", 12, max_value=2047.0)
    x = torch.tensor([5000.0, -5000.0, 3.4])
    assert fake_quantize(x, wide, scale=1.0).tolist() == [2047, -2048, 3]


def test_spread_gives_what_broadcasts():
    shape = torch.Size([2, 5])
    assert spread(torch.tensor(3.0), shape, 1, 2).shape == ()
    assert spread(torch.arange(5.0), shape, -1, None).shape == (1, 5)
    assert spread(torch.arange(2.0), shape, 0, None).shape == (2, 1)
    groups = spread(torch.arange(6.0).view(2, 3), shape, 1, 2)
    assert groups.tolist() == [[0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]

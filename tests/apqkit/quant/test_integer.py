import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from apqkit.formats import FORMATS, format_named
from apqkit.quant.integer import fake_quantize_integer, integer_levels

CARRIERS = {
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
}
ODD_ZEROS = [("int4", -3), ("int4", 5), ("uint4", 7), ("int8", 3), ("int8", -127), ("uint8", 121)]
WIDE_ZEROS = [("int16", 1), ("int16", -1235), ("int16", 0), ("uint16", 0), ("uint16", 32767)]


def levels_of(name):
    bits = int(name.removeprefix("u").removeprefix("int"))
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def graph_of(name, scale, zero):
    """x -> QuantizeLinear -> DequantizeLinear -> y, in the runtime's own integer type."""
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("zero", CARRIERS[name], [], [zero]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None]) for n in "xy")
    graph = helper.make_graph(nodes, "qdq", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run_onnx(model: onnx.ModelProto, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def values_for(name, scale, zero, count=20_000):
    """Random values inside and beyond the range, and every exact tie where the scale allows it."""
    low, high = (each - zero for each in levels_of(name))
    rng = np.random.default_rng(abs(zero))
    spread = 1.5 * (high - low) * scale
    drawn = rng.uniform(
        (low + high) * scale / 2 - spread, (low + high) * scale / 2 + spread, count
    )
    ties = (np.arange(low - 3, high + 3) + 0.5) * scale
    return np.concatenate([drawn, ties]).astype(np.float32)


def quantized(x, name, scale, zero):
    tensor = torch.from_numpy(x)
    return fake_quantize_integer(tensor, torch.tensor(scale), zero, levels_of(name)).numpy()


@pytest.mark.parametrize(
    ("name", "zero"), [*ODD_ZEROS, *WIDE_ZEROS, ("int4", 0), ("int8", 0), ("uint8", 0)]
)
@pytest.mark.parametrize("scale", [0.25, 0.0371])
def test_equals_the_runtime_and_the_reference_evaluator(name, zero, scale):
    x = values_for(name, scale, zero)
    model = graph_of(name, scale, zero)
    own = quantized(x, name, scale, zero)
    assert np.array_equal(own, run_onnx(model, x))
    assert np.array_equal(own, ReferenceEvaluator(model).run(None, {"x": x})[0])


@pytest.mark.parametrize(("name", "zero"), ODD_ZEROS)
def test_equals_torch_on_every_tie(name, zero):
    low, high = levels_of(name)
    ties = torch.from_numpy((np.arange(low - zero - 3, high - zero + 3) + 0.5) * 0.25).float()
    own = fake_quantize_integer(ties, torch.tensor(0.25), zero, (low, high))
    assert torch.equal(own, torch.fake_quantize_per_tensor_affine(ties, 0.25, zero, low, high))


def test_is_at_most_one_level_from_torch_elsewhere():
    # torch multiplies by 1 / scale, which moves a few values beside a tie
    x = torch.from_numpy(values_for("int8", 0.0371, 3, 200_000)[:200_000])
    own = fake_quantize_integer(x, torch.tensor(0.0371), 3, (-128, 127))
    other = torch.fake_quantize_per_tensor_affine(x, 0.0371, 3, -128, 127)
    steps = ((own - other) / 0.0371).abs()
    assert steps.max() < 1.01
    assert (steps > 0.5).sum() < 20


@pytest.mark.parametrize("name", ["int2", "uint2", "int3", "uint3", "int5", "uint6", "int7"])
def test_narrow_integers_equal_plain_arithmetic(name):
    low, high = levels_of(name)
    scale = np.float32(0.3)
    x = values_for(name, 0.3, 1, 500)
    expected = [
        np.float32(min(max(round(float(each / scale)) + 1, low), high) - 1) * scale for each in x
    ]
    assert quantized(x, name, 0.3, 1).tolist() == [float(each) for each in expected]


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30),
    st.floats(2**-20, 2.0**10, width=32),
    st.integers(-8, 7),
)
@settings(max_examples=60, deadline=None)
def test_is_idempotent_and_keeps_order(values, scale, zero):
    x, _ = torch.sort(torch.tensor(values))
    once = fake_quantize_integer(x, torch.tensor(scale), zero, (-8, 7))
    assert torch.equal(once, fake_quantize_integer(once, torch.tensor(scale), zero, (-8, 7)))
    assert bool((once.diff() >= 0).all())
    assert len(once.unique()) <= 16


def test_zero_is_exact_for_every_zero_point():
    for zero in range(-128, 128):
        assert fake_quantize_integer(torch.zeros(1), torch.tensor(0.1), zero, (-128, 127)) == 0.0


def test_gradient_is_one_where_the_rounded_level_lies_inside():
    x = torch.tensor([0.2, 0.749, 0.76, -0.84, -0.86, 3.0], requires_grad=True)
    y = fake_quantize_integer(x, torch.tensor(0.1), 0, (-8, 7))
    y.sum().backward()
    assert torch.allclose(y, torch.tensor([0.2, 0.7, 0.7, -0.8, -0.8, 0.7]))
    assert x.grad.tolist() == [1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(("name", "zero"), ODD_ZEROS)
def test_gradient_equals_torch(name, zero):
    low, high = levels_of(name)
    values = torch.from_numpy(values_for(name, 0.25, zero))
    weights = torch.linspace(-2, 2, len(values))
    gradients = []
    for quantize in (
        lambda x: fake_quantize_integer(x, torch.tensor(0.25), zero, (low, high)),
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.25, zero, low, high),
    ):
        x = values.clone().requires_grad_()
        (quantize(x) * weights).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_gradient_passes_to_the_values_alone():
    x = torch.randn(5, requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    fake_quantize_integer(x, scale, 0, (-8, 7)).sum().backward()
    assert x.grad is not None
    assert scale.grad is None


def test_not_a_number_stays_and_infinities_saturate_without_gradient():
    x = torch.tensor([float("nan"), float("inf"), float("-inf")], requires_grad=True)
    y = fake_quantize_integer(x, torch.tensor(0.5), 0, (-8, 7))
    y[1:].sum().backward()
    assert y[0].isnan()
    assert y[1:].tolist() == [3.5, -4.0]
    assert x.grad[1:].tolist() == [0, 0]


@pytest.mark.parametrize("zero", [0, 3])
def test_leaves_its_input_alone(zero):
    x = torch.randn(4, 3)
    before = x.clone()
    fake_quantize_integer(x, torch.tensor(0.1), zero, (-8, 7))
    assert torch.equal(x, before)


def test_scale_broadcasts_over_channels():
    x = torch.randn(3, 4)
    scale = torch.tensor([[0.1], [0.2], [0.4]])
    rows = [fake_quantize_integer(row, s, 1, (-8, 7)) for row, s in zip(x, scale, strict=True)]
    assert torch.equal(fake_quantize_integer(x, scale, 1, (-8, 7)), torch.stack(rows))


NAMES = [name for name in FORMATS if name.lstrip("u").startswith("int")]


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_those_of_twos_complement(name):
    low, high = levels_of(name)
    assert integer_levels(format_named(name)) == (low, high)
    narrow = (-high, high) if low < 0 else (0, high)
    assert integer_levels(format_named(name), narrow_range=True) == narrow


def test_a_zero_point_may_be_a_tensor_that_broadcasts():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    scale, zero = torch.tensor([[0.1], [0.2], [0.4]]), torch.tensor([[1.0], [-3.0], [0.0]])
    rows = [
        fake_quantize_integer(row, s, int(z), (-8, 7))
        for row, s, z in zip(x, scale, zero, strict=True)
    ]
    assert torch.equal(fake_quantize_integer(x, scale, zero, (-8, 7)), torch.stack(rows))


def test_a_value_too_large_for_its_scale_is_clipped_not_lost():
    x = torch.tensor([3e38, -3e38])
    assert fake_quantize_integer(x, torch.tensor(1e-8), 0, (-8, 7)).tolist() == pytest.approx(
        [7e-8, -8e-8]
    )


@pytest.mark.parametrize("zero", [0, 3])
def test_rounding_at_random_takes_one_of_the_two_levels_around(zero):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=generator) * 2
    scale = torch.tensor(0.25)
    levels = ((x / scale).floor() + zero).clamp(-8, 7), ((x / scale).ceil() + zero).clamp(-8, 7)
    found = fake_quantize_integer(x, scale, zero, (-8, 7), generator) / scale + zero
    assert bool(((found == levels[0]) | (found == levels[1])).all())
    assert bool((found == levels[0])[levels[0] != levels[1]].any())
    assert bool((found == levels[1])[levels[0] != levels[1]].any())


def test_rounding_at_random_is_right_on_average_within_the_levels():
    generator = torch.Generator().manual_seed(1)
    for value in (0.03, -0.61, 1.0):
        found = fake_quantize_integer(
            torch.full((200_000,), value), torch.tensor(0.25), 1, (-8, 7), generator
        )
        # the deviation of a two-valued step is at most half a step
        assert abs(float(found.double().mean()) - value) < 4.5 * 0.125 / 200_000**0.5


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,)])
def test_any_shape_is_taken(shape):
    x = torch.full(shape, 0.3)
    found = fake_quantize_integer(x, torch.tensor(0.25), 1, (-8, 7))
    assert torch.equal(found, torch.full(shape, 0.25))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("name", "zero"), [*ODD_ZEROS, ("int16", 1), ("uint16", 0)])
def test_cuda_equals_the_reference_evaluator(name, zero):
    for scale in (0.25, 0.0371):
        x = values_for(name, scale, zero)
        expected = ReferenceEvaluator(graph_of(name, scale, zero)).run(None, {"x": x})[0]
        tensor = torch.from_numpy(x).cuda()
        found = fake_quantize_integer(tensor, torch.tensor(scale).cuda(), zero, levels_of(name))
        assert np.array_equal(found.cpu().numpy(), expected)

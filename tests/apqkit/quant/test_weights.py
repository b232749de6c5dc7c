import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from apqkit.errors import FormatError, UnknownNameError
from apqkit.formats import FORMATS, format_named
from apqkit.quant.blocks import fake_quantize_blocks
from apqkit.quant.quantize import fake_quantize
from apqkit.quant.ranges import weight_scale
from apqkit.quant.weights import (
    DEFAULT_SCHEME,
    QuantScheme,
    quantize_weight,
    quantized_with,
    scales_of_weight,
)

WEIGHT = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 3
SIGNED = [name for name in FORMATS if not name.startswith("uint")]
SCALED = [name for name in SIGNED if FORMATS[name].is_scaled]
BLOCKED = [name for name in FORMATS if FORMATS[name].block_size]


@pytest.mark.parametrize("name", SCALED)
def test_weights_are_symmetric_with_a_scale_a_channel(name):
    number_format = format_named(name)
    found = quantize_weight(WEIGHT, number_format)
    assert torch.equal(quantize_weight(-WEIGHT, number_format), -found)
    levels = found / weight_scale(WEIGHT, number_format)
    assert float(levels.abs().max()) <= number_format.max_value * (1 + 1e-6)
    for channel in range(len(WEIGHT)):
        alone = quantize_weight(WEIGHT[channel : channel + 1], number_format)
        assert torch.equal(found[channel : channel + 1], alone)


@pytest.mark.parametrize(("name", "kind"), [("int8", np.int8), ("int16", np.int16)])
def test_integer_weights_equal_the_runtime_channel_by_channel(name, kind):
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    scale = weight_scale(weight, format_named(name)).flatten().numpy()
    constants = [
        numpy_helper.from_array(scale, "scale"),
        numpy_helper.from_array(np.zeros(6, kind), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=0),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [6, 5, 3, 3]) for n in "xy"]
    graph = helper.make_graph(nodes, "weights", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    expected = session.run(None, {"x": weight.numpy()})[0]
    assert np.array_equal(quantize_weight(weight, format_named(name)).numpy(), expected)


def test_weights_in_fp32_are_the_weights():
    assert quantize_weight(WEIGHT, format_named("fp32")) is WEIGHT


def test_weights_in_bf16_are_rounded_without_scales():
    assert scales_of_weight(WEIGHT, format_named("bf16")) is None
    found = quantize_weight(WEIGHT, format_named("bf16"))
    assert torch.equal(found, WEIGHT.to(torch.bfloat16).float())


def test_the_range_of_weights_takes_no_gradient():
    weight = torch.tensor([[0.1, -0.6, 2.0, 0.3]], requires_grad=True)
    quantize_weight(weight, format_named("int8")).sum().backward()
    assert weight.grad.tolist() == [[1, 1, 1, 1]]  # the largest too, whose scale it sets


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group"])
@pytest.mark.parametrize("rule", ["minmax", "rms", "percentile", "mse"])
def test_scales_are_those_of_the_rule_for_the_weights_that_share_one(granularity, rule):
    weight = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(2))
    scheme = QuantScheme(weight_granularity=granularity, weight_rule=rule, weight_group_size=2)
    int4 = format_named("int4")
    found = scales_of_weight(weight, int4, scheme)
    filled = torch.cat([weight, torch.zeros(3, 1, 2)], dim=1)  # short groups count zeros

    def alone(values):
        whole = QuantScheme(weight_granularity="tensor", weight_rule=rule)
        return float(scales_of_weight(values.reshape(1, -1), int4, whole))

    if granularity == "group":
        assert found.shape == (3, 3, 2)
        wanted = [
            [[alone(filled[c, g * 2 : g * 2 + 2, tap]) for tap in range(2)] for g in range(3)]
            for c in range(3)
        ]
    else:
        assert found.shape == (3,)
        wanted = [alone(weight if granularity == "tensor" else each) for each in weight]
    assert found.numpy() == pytest.approx(np.array(wanted), rel=1e-5)


def test_largest_magnitudes_become_the_highest_level():
    weight = torch.tensor([[1.0, -7.0, 2.0], [0.5, 3.5, -0.1]])
    scheme = QuantScheme(weight_rule="minmax")
    assert scales_of_weight(weight, format_named("int4"), scheme).tolist() == [1.0, 0.5]
    scheme = QuantScheme(weight_rule="minmax", weight_granularity="tensor")
    assert scales_of_weight(weight, format_named("int4"), scheme).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("scheme", "axis", "size"),
    [
        (QuantScheme(), 0, None),
        (QuantScheme(weight_granularity="tensor"), 0, None),
        (QuantScheme(weight_granularity="group", weight_group_size=2), 1, 2),
        (QuantScheme(weight_granularity="group", weight_group_size=32), 1, 32),
    ],
)
@pytest.mark.parametrize("name", SCALED)
def test_weights_go_through_the_one_quantizer_in_narrow_range(name, scheme, axis, size):
    number_format = format_named(name)
    scale = scales_of_weight(WEIGHT, number_format, scheme)
    wanted = fake_quantize(
        WEIGHT, name, scale=scale, axis=axis, group_size=size, narrow_range=True
    )
    assert torch.equal(quantize_weight(WEIGHT, number_format, scheme), wanted)
    assert torch.equal(quantized_with(WEIGHT, number_format, scale, scheme), wanted)


@pytest.mark.parametrize("name", BLOCKED)
def test_blocks_of_weights_run_along_input_channels(name):
    number_format = format_named(name)
    weight = torch.randn(3, 40, 2, 2, generator=torch.Generator().manual_seed(3))
    assert scales_of_weight(weight, number_format) is None
    found = quantize_weight(weight, number_format)
    assert torch.equal(found, fake_quantize_blocks(weight, number_format, axis=1))


@pytest.mark.parametrize("name", BLOCKED)
def test_blocks_of_depthwise_weights_run_along_the_taps(name):
    number_format = format_named(name)
    weight = torch.randn(6, 1, 5, 5, generator=torch.Generator().manual_seed(4))
    found = quantize_weight(weight, number_format)
    assert found.shape == weight.shape
    wanted = fake_quantize_blocks(weight.flatten(1), number_format, axis=1)
    assert torch.equal(found.flatten(1), wanted)


@pytest.mark.parametrize("name", SIGNED)
def test_memory_layout_and_the_weight_itself_are_left_alone(name):
    number_format = format_named(name)
    before = WEIGHT.clone()
    expected = quantize_weight(WEIGHT, number_format)
    last = WEIGHT.contiguous(memory_format=torch.channels_last)
    # sums of squares in another order move a scale by its last bits
    assert torch.allclose(quantize_weight(last, number_format), expected, rtol=1e-6, atol=0)
    assert torch.equal(WEIGHT, before)


@pytest.mark.parametrize("name", BLOCKED)
def test_depthwise_weights_may_lie_channels_last(name):
    weight = torch.randn(6, 1, 5, 5, generator=torch.Generator().manual_seed(5))
    last = weight.contiguous(memory_format=torch.channels_last)
    odd = weight.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (last, odd):
        assert torch.equal(
            quantize_weight(other, format_named(name)), quantize_weight(weight, format_named(name))
        )


@pytest.mark.parametrize("name", SIGNED)
@pytest.mark.parametrize("granularity", ["channel", "tensor", "group"])
def test_zeros_and_no_channels_are_held(name, granularity):
    scheme = QuantScheme(weight_granularity=granularity, weight_group_size=2)
    for shape in [(3, 5, 2, 2), (0, 5), (1, 1)]:
        weight = torch.zeros(shape)
        if granularity == "tensor" and not weight.numel():
            continue  # a tensor without values has no range
        assert torch.equal(quantize_weight(weight, format_named(name), scheme), weight)


# schemes


def test_the_default_scheme_is_that_of_the_default_arguments():
    assert QuantScheme() == DEFAULT_SCHEME
    assert DEFAULT_SCHEME.weight_granularity == "channel"
    assert DEFAULT_SCHEME.activation_granularity == "tensor"
    assert DEFAULT_SCHEME.weight_rule == DEFAULT_SCHEME.activation_rule == "rms"
    assert DEFAULT_SCHEME.symmetric_activations


@pytest.mark.parametrize(
    ("field", "allowed"),
    [
        ("weight_granularity", "channel, tensor, group"),
        ("weight_training", "range, lsq"),
        ("activation_granularity", "tensor, token"),
        ("activation_training", "range, lsq, pact"),
    ],
)
def test_words_that_are_not_allowed_are_refused(field, allowed):
    with pytest.raises(FormatError) as caught:
        QuantScheme(**{field: "rows"})
    assert str(caught.value) == f"{field} must be one of {allowed}, got 'rows'"


@pytest.mark.parametrize("size", [0, -4])
def test_groups_hold_at_least_one(size):
    with pytest.raises(FormatError) as caught:
        QuantScheme(weight_group_size=size)
    assert str(caught.value) == f"weight_group_size must be positive, got {size}"


def test_learned_steps_have_no_groups():
    with pytest.raises(FormatError) as caught:
        QuantScheme(weight_granularity="group", weight_training="lsq")
    assert str(caught.value) == (
        "weight_training lsq learns a step a channel or one in all, no groups"
    )


@pytest.mark.parametrize("field", ["weight_rule", "activation_rule"])
def test_unknown_rules_are_named(field):
    with pytest.raises(UnknownNameError) as caught:
        QuantScheme(**{field: "mean"})
    assert str(caught.value).startswith("no rule for ranges named 'mean'")
    assert str(caught.value).endswith(
        "there are: kl, minmax, moving-average, mse, percentile, rms"
    )

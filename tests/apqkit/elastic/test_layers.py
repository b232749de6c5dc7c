from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from apqkit.elastic.layers import ELASTIC_UNITS, input_quantizers, weight_format_of
from apqkit.errors import FormatError
from apqkit.formats import format_named
from apqkit.quant.calibration import calibrate
from apqkit.quant.layers import QuantAdd, QuantConv, QuantGlobalPool, QuantLinear, QuantPool
from apqkit.quant.weights import quantize_weight
from apqkit.types import OPS, Layer

CONV = Layer(
    row=3,
    name="s0.b0.expand",
    op="conv",
    in_channels=8,
    out_channels=12,
    kernel=5,
    stride=1,
    groups=1,
    in_height=6,
    in_width=4,
    activation="relu",
    weight_format="fp32",
    activation_format="fp32",
    signed_input=False,
    producers=(2,),
)
DEPTHWISE = replace(CONV, in_channels=12, groups=12, stride=2)
LINEAR = replace(CONV, op="linear", kernel=1, out_channels=5, activation="none")
ADD = replace(CONV, op="add", kernel=0, weight_format=None, producers=(1, 2), signed_input=True)
POOL = replace(CONV, op="pool", kernel=2, stride=2, weight_format=None)


def unit_of(layer):
    torch.manual_seed(0)
    return ELASTIC_UNITS[layer.op](layer).train()


def images(channels, seed=0):
    return torch.rand(4, channels, 6, 4, generator=torch.Generator().manual_seed(seed))


def test_every_op_but_the_input_has_a_unit():
    assert set(ELASTIC_UNITS) == set(OPS) - {"input"}


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("formats", [("fp32", "fp32"), ("int4", "int8"), ("fp8_e4m3", "fp4_e2m1")])
@pytest.mark.parametrize("largest", [CONV, DEPTHWISE], ids=["dense", "depthwise"])
def test_a_convolution_computes_with_leading_channels_and_central_taps(largest, formats, kernel):
    unit = unit_of(largest)
    depthwise = largest.groups > 1
    weights, activations = formats
    small = replace(
        largest, kernel=kernel, in_channels=6, out_channels=6 if depthwise else 10,
        groups=6 if depthwise else 1, weight_format=weights, activation_format=activations,
    )  # fmt: skip
    unit.select(small)
    x = images(6)
    edge = (5 - kernel) // 2
    weight = unit.weight[: small.out_channels, : 1 if depthwise else 6]
    weight = weight[:, :, edge : 5 - edge, edge : 5 - edge]
    read = unit.quantizer()(x)
    expected = F.conv2d(
        read, quantize_weight(weight, format_named(weights)), None, small.stride, kernel // 2, 1,
        small.groups,
    )  # fmt: skip
    expected = F.batch_norm(expected, None, None, training=True).relu()
    assert torch.allclose(unit(x), expected, rtol=1e-4, atol=1e-5)
    assert unit.quantizer().number_format == format_named(activations).for_sign(signed=False)


def test_a_linear_layer_computes_with_leading_features():
    unit = unit_of(LINEAR)
    unit.select(replace(LINEAR, in_channels=6, weight_format="int4"))
    x = torch.rand(3, 6)
    weight = quantize_weight(unit.weight[:, :6], format_named("int4"))
    assert torch.equal(unit(x), F.linear(x, weight, unit.bias))


def test_an_add_and_pools_follow_the_row():
    x, y = images(8), images(8, seed=1)
    assert torch.equal(unit_of(ADD)(x, y), x + y)
    pool = unit_of(POOL)
    assert pool(x).shape[2:] == (3, 2)
    pool.select(replace(POOL, kernel=3, stride=1))
    assert torch.equal(pool(x), F.avg_pool2d(x, 3, 1))
    pool.select(POOL)
    assert torch.equal(pool(x), F.avg_pool2d(x, 2, 2))
    everything = unit_of(replace(POOL, op="global_pool", kernel=0))
    assert torch.allclose(everything(x), x.mean(dim=(2, 3)))


def test_selecting_changes_the_format_and_the_sign_of_every_input():
    unit = unit_of(ADD)
    unit.select(replace(ADD, activation_format="int4"))
    assert [each.number_format.name for each in unit.inputs] == ["int4", "int4"]
    unit.select(replace(ADD, activation_format="int4", signed_input=False))
    assert [each.number_format.name for each in unit.inputs] == ["uint4", "uint4"]
    assert not any(each.signed for each in unit.inputs)
    unit.select(ADD)
    assert unit(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)) == 2.0


def test_inputs_are_named_after_their_layer():
    assert [each.name for each in input_quantizers(CONV)] == ["s0.b0.expand.input"]
    assert [each.name for each in input_quantizers(ADD)] == [
        "s0.b0.expand.input0",
        "s0.b0.expand.input1",
    ]
    assert input_quantizers(replace(CONV, signed_input=True))[0].signed


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (CONV, QuantConv),
        (DEPTHWISE, QuantConv),
        (LINEAR, QuantLinear),
        (ADD, QuantAdd),
        (POOL, QuantPool),
        (replace(POOL, op="global_pool"), QuantGlobalPool),
    ],
)
def test_extraction_gives_the_plain_layer(layer, kind):
    unit = unit_of(layer)
    extracted = unit.extract(layer).train()
    assert type(extracted) is kind
    if layer.op == "linear":
        inputs = [torch.rand(4, layer.in_channels)]
    else:
        inputs = [images(layer.in_channels, seed) for seed in range(len(layer.producers))]
    assert torch.allclose(extracted(*inputs), unit(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [CONV, LINEAR])
def test_extraction_copies_weights(layer):
    unit = unit_of(layer)
    before = {name: each.clone() for name, each in unit.state_dict().items()}
    extracted = unit.extract(replace(layer, in_channels=6))
    with torch.no_grad():
        for parameter in extracted.parameters():
            parameter.fill_(7.0)
    x = images(6) if layer.op == "conv" else torch.rand(4, 6)
    calibrate(extracted, x)
    after = unit.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if "scale" not in name)
    assert all(after[name].isnan() for name in before if "scale" in name)


def test_a_row_without_weights_has_no_weight_format():
    with pytest.raises(FormatError) as caught:
        weight_format_of(ADD)
    assert str(caught.value) == "row s0.b0.expand has no weights"

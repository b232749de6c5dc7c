import numpy as np
import pytest
import torch
from torch import nn

from apqkit.errors import CalibrationError, FormatError, UnknownNameError
from apqkit.formats import format_named
from apqkit.quant import LayerFormats, QuantScheme, calibrate, fake_quantize, prepare
from apqkit.quant.layers import QuantConv, QuantLinear
from apqkit.quant.preparation import fold_batch_norms, keep_batch_norms
from apqkit.quant.ranges import weight_scale
from apqkit.quant.weights import quantize_weight


class Residual(nn.Module):
    """What people bring: batch norms, a depthwise convolution, a sum, functional activations."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.depthwise_norm(self.depthwise(x)))
        return self.head(nn.functional.silu(self.mix(x)).mean((2, 3)))


@pytest.fixture
def images():
    return torch.rand(32, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(images):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Residual().train()
    for _ in range(3):
        net(images)  # statistics that differ from those of the images
    with torch.no_grad():
        for norm in (net.norm, net.depthwise_norm):
            norm.weight.uniform_(-1.0, 2.0)
            norm.bias.uniform_(-0.5, 0.5)
    return net.eval()


def test_in_fp32_a_prepared_model_computes_what_it_did(model, images):
    prepared = prepare(model, LayerFormats("fp32", "bf16"))
    for each in prepared.modules():
        if isinstance(each, QuantConv | QuantLinear):
            each.quantizer().number_format = format_named("fp32")
    calibrate(prepared, images)
    assert torch.allclose(prepared(images), model(images), atol=1e-5)
    assert isinstance(prepared.norm, nn.Identity)


def test_the_model_itself_is_left_alone(model, images):
    before = {name: each.clone() for name, each in model.state_dict().items()}
    model.train()
    prepared = prepare(model, LayerFormats("int4", "int4"))
    calibrate(prepared, images)
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_int8_stays_close_and_fewer_bits_stray(model, images):
    exact = model(images).detach()
    errors = []
    for name in ("int8", "int4", "int2"):
        prepared = prepare(model, LayerFormats(name, name))
        calibrate(prepared, images)
        found = prepared(images).detach()
        errors.append(float((found - exact).square().mean().sqrt() / exact.std()))
    assert errors[0] < 0.05 < errors[1] < errors[2]


def test_weights_are_quantized_as_folded(model, images):
    prepared = prepare(model, LayerFormats("int4", "fp32"))
    calibrate(prepared, images)
    factor = model.norm.weight / torch.sqrt(model.norm.running_var + model.norm.eps)
    folded = model.stem.weight * factor.view(-1, 1, 1, 1)
    expected = quantize_weight(folded, format_named("int4"))
    assert torch.allclose(prepared.stem.frozen_weight, expected, atol=1e-6)
    bias = model.norm.bias - model.norm.running_mean * factor
    assert torch.allclose(prepared.stem.frozen_bias, bias, atol=1e-5)
    kept = prepare(model, {"depthwise": LayerFormats("int8", "fp32")})
    calibrate(kept, images)
    assert isinstance(kept.norm, nn.BatchNorm2d)  # its convolution stays in fp32


def test_weights_alone_are_quantized_where_activations_are_fp32(model, images):
    prepared = prepare(model, LayerFormats("int3", "fp32"))
    calibrate(prepared, images)
    found = []
    prepared.stem.register_forward_hook(lambda layer, inputs, output: found.append(inputs[0]))
    prepared(images)
    assert prepared.stem.quantizer()(images) is images
    assert len((prepared.stem.frozen_weight[0] / prepared.stem.frozen_scale[0]).unique()) <= 7


def test_names_and_patterns_choose_layers_and_the_last_counts(model):
    chosen = {
        "*": LayerFormats("int4", "int8"),
        "stem": LayerFormats("fp32", "fp32"),
        "depth*": LayerFormats("int8", "fp8_e4m3"),
    }
    prepared = prepare(model, chosen)
    assert isinstance(prepared.stem, nn.Conv2d)
    assert prepared.depthwise.weight_format.name == "int8"
    assert prepared.depthwise.quantizer().number_format.name == "fp8_e4m3"
    assert prepared.head.weight_format.name == "int4"


def test_calibration_finds_the_sign_of_inputs(model, images):
    prepared = prepare(model, LayerFormats("int8", "int8"))
    calibrate(prepared, images)
    names = {n: prepared.get_submodule(n).quantizer().number_format.name for n in
             ("stem", "depthwise", "mix", "head")}  # fmt: skip
    assert names == {"stem": "uint8", "depthwise": "uint8", "mix": "uint8", "head": "int8"}


def test_affine_inputs_span_from_lowest_to_highest(model, images):
    scheme = QuantScheme(symmetric_activations=False, activation_rule="minmax")
    prepared = prepare(model, LayerFormats("int8", "int8"), scheme=scheme)
    seen = []
    prepared.head.quantizer().register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    calibrate(prepared, images)
    source = prepared.head.quantizer()
    low, high = float(seen[0].min()), float(seen[0].max())
    assert low < 0
    assert float(source.scale) == pytest.approx((high - low) / 255, rel=1e-5)
    assert float(source.zero_point) == round(-low / ((high - low) / 255))
    assert source.number_format.name == "uint8"


def test_a_state_brings_signs_and_ranges_back(model, images):
    scheme = QuantScheme(symmetric_activations=False)
    for each in (QuantScheme(), scheme):
        prepared = prepare(model, LayerFormats("int4", "int6"), scheme=each)
        calibrate(prepared, images)
        again = prepare(model, LayerFormats("int4", "int6"), scheme=each)
        again.load_state_dict(prepared.state_dict())
        assert torch.equal(again.eval()(images), prepared(images))


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group"])
@pytest.mark.parametrize("rule", ["minmax", "mse", "percentile", "rms"])
def test_every_granularity_and_rule_prepares(model, images, granularity, rule):
    scheme = QuantScheme(
        weight_granularity=granularity, weight_group_size=4, weight_rule=rule, activation_rule=rule
    )
    prepared = prepare(model, LayerFormats("int4", "int6"), scheme=scheme)
    calibrate(prepared, images)
    scales = prepared.mix.frozen_scale
    assert scales.shape == ((12, 2, 1, 1) if granularity == "group" else (12,))
    assert len(scales.unique()) == (1 if granularity == "tensor" else scales.numel())
    error = (prepared(images) - model(images)).square().mean() / model(images).var()
    assert error < 0.5


def test_blocks_run_along_what_is_summed(images):
    net = nn.Sequential(nn.Conv2d(1, 40, 1), nn.ReLU(), nn.Conv2d(40, 3, 1))
    prepared = prepare(net, {"2": LayerFormats("mxfp4_e2m1", "mxfp8_e4m3")})
    calibrate(prepared, images)
    hidden = torch.relu(net[0](images))
    x = fake_quantize(hidden, "mxfp8_e4m3", axis=1)
    weight = fake_quantize(net[2].weight.detach(), "mxfp4_e2m1", axis=1)
    expected = nn.functional.conv2d(x, weight, net[2].bias)
    assert torch.allclose(prepared(images), expected, atol=1e-6)
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    prepared = prepare(nn.Sequential(depthwise), LayerFormats("mxint8", "fp32"))
    calibrate(prepared, torch.rand(2, 4, 5, 5))
    rows = fake_quantize(depthwise.weight.detach().flatten(1), "mxint8")
    assert torch.equal(prepared[0].frozen_weight, rows.view(4, 1, 3, 3))


@pytest.mark.parametrize("name", ["int4", "fp8_e4m3", "fp4_e2m1"])
def test_tokens_have_scales_of_their_own(name):
    net = nn.Sequential(nn.Linear(16, 8))
    tokens = torch.randn(4, 5, 16) * torch.logspace(-2, 2, 5).view(1, 5, 1)
    scheme = QuantScheme(activation_granularity="token")
    prepared = prepare(net, LayerFormats("fp32", name), scheme=scheme)
    calibrate(prepared, tokens)
    scale = tokens.abs().amax(dim=-1) / format_named(name).max_value
    rows = [
        fake_quantize(row, name, scale=each)
        for row, each in zip(tokens.flatten(0, 1), scale.flatten(), strict=True)
    ]
    expected = nn.functional.linear(torch.stack(rows).view_as(tokens), net[0].weight, net[0].bias)
    assert torch.allclose(prepared(tokens), expected, atol=1e-5)
    assert torch.equal(prepared(tokens[:1]), prepared(tokens)[:1])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, 3, padding="same", bias=False),
        nn.Conv2d(3, 4, (3, 1), stride=(2, 1), dilation=(1, 2)),
        nn.Conv3d(3, 4, 2),
        nn.Linear(6, 4, bias=False),
    ],
)
def test_every_kind_of_layer_keeps_its_geometry(layer):
    x = torch.rand(4, 3, *[6] * max(1, layer.weight.dim() - 2))
    prepared = prepare(nn.Sequential(layer), LayerFormats("int16", "int16"))
    calibrate(prepared, x)
    assert torch.allclose(prepared(x), layer(x), atol=1e-3)
    assert prepared(x).shape == layer(x).shape


def test_a_model_that_cannot_be_traced_keeps_its_batch_norms(images):
    class Wayward(Residual):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x.mean((2, 3))

    net = Wayward().eval()
    prepared = prepare(net, LayerFormats("int8", "int8"))
    calibrate(prepared, images)
    assert isinstance(prepared.norm, nn.BatchNorm2d)
    assert torch.allclose(prepared(images), net(images), atol=0.05)


def test_only_a_batch_norm_of_its_own_is_folded(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    net = Shared().eval()
    prepared = prepare(net, LayerFormats("int8", "int8"))
    calibrate(prepared, images)
    assert isinstance(prepared.norm, nn.BatchNorm2d)
    assert torch.allclose(prepared(images), net(images), atol=0.05)


@pytest.mark.parametrize("training", ["lsq", "pact", "range"])
def test_what_the_scheme_names_is_trained(images, training):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    scheme = QuantScheme(
        weight_training="lsq" if training == "lsq" else "range", activation_training=training
    )
    prepared = prepare(net.eval(), LayerFormats("int4", "int4"), scheme=scheme)
    calibrate(prepared, images)
    prepared.train()(images).square().sum().backward()
    names = {n for n, p in prepared.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"0.weight", "0.gamma", "0.beta", "3.weight"} <= names
    assert ("0.inputs.0.step" in names) == (training != "range")
    assert ("0.weight_step" in names) == (training == "lsq")


def test_learned_steps_are_what_calibration_freezes(images):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False))
    scheme = QuantScheme(weight_training="lsq", activation_training="lsq")
    prepared = prepare(net, LayerFormats("int4", "int4"), scheme=scheme)
    calibrate(prepared, images)
    with torch.no_grad():
        prepared[2].weight_step.mul_(1.5)
        prepared[2].quantizer().step.mul_(0.5)
    calibrate(prepared, images)
    assert torch.allclose(prepared[2].frozen_scale, prepared[2].weight_step)
    assert torch.equal(prepared[2].quantizer().scale, prepared[2].quantizer().step.detach())
    trained = prepared.train()(images)
    assert torch.allclose(prepared.eval()(images), trained, atol=1e-4)


def test_training_reads_the_frozen_model_where_statistics_stand_still(model, images):
    prepared = prepare(
        model, LayerFormats("int4", "int4"), scheme=QuantScheme(weight_rule="minmax")
    )
    calibrate(prepared, images)
    frozen = prepared(images)
    assert torch.allclose(prepared.train()(images), frozen, atol=1e-2)
    fold_batch_norms(prepared)
    assert torch.allclose(prepared.train()(images), frozen, atol=1e-2)
    keep_batch_norms(prepared)


def test_batches_of_calibration_add_up(model, images):
    whole, parts = (prepare(model, LayerFormats("int8", "int8")) for _ in range(2))
    calibrate(whole, images)
    calibrate(parts, list(images.split(8)))
    for name in ("stem", "depthwise"):
        found, expected = (net.get_submodule(name).quantizer().scale for net in (parts, whole))
        assert float(found) == pytest.approx(float(expected), rel=0.02)
    assert torch.equal(parts.stem.frozen_weight, whole.stem.frozen_weight)


def test_moving_averages_forget_the_first_batch(images):
    scheme = QuantScheme(activation_rule="moving-average")
    prepared = prepare(
        nn.Sequential(nn.Conv2d(1, 2, 1)), LayerFormats("int8", "int8"), scheme=scheme
    )
    calibrate(prepared, [images, images * 2])
    largest = float(images.max())
    assert float(prepared[0].quantizer().scale) == pytest.approx(1.1 * largest / 255, rel=1e-5)


def message(call, kind=FormatError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_wrong_names_and_formats_are_refused(model):
    formats = LayerFormats("int8", "int8")
    assert message(lambda: prepare(model, {"stam": formats})) == (
        "no layer is named 'stam' (did you mean 'stem'?); layers that take formats: "
        "stem, depthwise, mix, head"
    )
    assert message(lambda: prepare(model, {"norm": formats})) == (
        "layer 'norm' is a BatchNorm2d; formats are for Conv1d, Conv2d, Conv3d and Linear layers"
    )
    assert message(lambda: prepare(nn.Sequential(nn.ReLU()), formats)) == (
        "no layer is named '*'; layers that take formats: none"
    )
    assert message(lambda: prepare(model, LayerFormats("uint8", "int8"))) == (
        "formats of layers are named without sign, got 'uint8' for stem: calibration finds out "
        "whether an input can be negative"
    )
    unknown = message(lambda: prepare(model, LayerFormats("int9", "int8")), UnknownNameError)
    assert unknown.startswith("no format named 'int9'")
    mirrored = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    assert message(lambda: prepare(mirrored, formats)) == (
        "0 pads with 'reflect'; only zeros are supported"
    )
    tokens = QuantScheme(activation_granularity="token")
    assert message(lambda: prepare(model, formats, scheme=tokens)) == (
        "per-token activations are for Linear layers, stem is a Conv2d"
    )
    transposed = nn.Sequential(nn.ConvTranspose2d(1, 1, 3))
    assert message(lambda: prepare(transposed, {"0": formats})) == (
        "layer '0' is a ConvTranspose2d; formats are for Conv1d, Conv2d, Conv3d and Linear layers"
    )


def test_a_layer_that_was_not_calibrated_says_so(model, images):
    prepared = prepare(model, LayerFormats("int8", "int8"))
    assert message(lambda: prepared(images), CalibrationError) == (
        "stem.input has no range yet: call calibrate(model, images)"
    )
    assert message(lambda: prepared.train()(images), CalibrationError) == (
        "stem.input does not know its range yet: call calibrate before training"
    )


def test_pact_refuses_what_can_be_negative(images):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1))
    prepared = prepare(
        net, LayerFormats("int4", "int4"), scheme=QuantScheme(activation_training="pact")
    )
    assert message(lambda: calibrate(prepared, images)) == (
        "1.input can be negative: pact takes outputs of a ReLU"
    )


@pytest.mark.parametrize("state", ["frozen", "training"])
def test_values_that_are_not_finite_name_the_tensor(model, images, state):
    prepared = prepare(model, LayerFormats("int8", "int8"))
    calibrate(prepared, images)
    prepared.train(state == "training")
    images[3, 0, 2, 2] = float("inf")
    assert message(lambda: prepared(images), CalibrationError) == (
        "stem.input holds 1 of 4608 values that are not finite"
    )


def test_scales_of_weights_are_those_of_the_whitepaper_by_default(model, images):
    prepared = prepare(model, LayerFormats("int8", "int8"))
    calibrate(prepared, images)
    assert torch.allclose(
        prepared.mix.frozen_scale,
        weight_scale(model.mix.weight, format_named("int8")).flatten(),
        rtol=1e-3,
    )
    largest = model.mix.weight.detach().abs().amax(dim=(1, 2, 3)).numpy()
    assert np.allclose(prepared.mix.frozen_scale.numpy(), largest / 127, rtol=1e-3)

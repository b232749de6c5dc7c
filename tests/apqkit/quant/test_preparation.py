import numpy as np
import pytest
import torch
from torch import nn

from apqkit.errors import CalibrationError, FormatError, UnknownNameError
from apqkit.formats import format_named
from apqkit.quant import (
    LayerFormats,
    QuantScheme,
    calibrate,
    fake_quantize,
    prepare,
    qparams_for,
)
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
    assert errors[0] < 0.02 < errors[1] < errors[2]


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
    names = {n for n, p in prepared.named_parameters() if p.grad is not None}
    assert {"0.weight", "0.gamma", "0.beta", "3.weight"} <= names
    assert ("0.inputs.0.log_step" in names) == (training != "range")
    assert ("0.weight_log_step" in names) == (training == "lsq")


def test_learned_steps_are_what_calibration_freezes(images):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False))
    scheme = QuantScheme(weight_training="lsq", activation_training="lsq")
    prepared = prepare(net, LayerFormats("int4", "int4"), scheme=scheme)
    calibrate(prepared, images)
    with torch.no_grad():
        prepared.train()(images)
        prepared[2].weight_log_step.add_(0.4)
        prepared[2].quantizer().log_step.sub_(0.7)
    calibrate(prepared, images)
    assert torch.allclose(prepared[2].frozen_scale, prepared[2].weight_log_step.exp())
    assert torch.equal(
        prepared[2].quantizer().scale, prepared[2].quantizer().log_step.detach().exp()
    )
    trained = prepared.train()(images)
    assert torch.allclose(prepared.eval()(images), trained, atol=1e-4)


def test_training_reads_the_frozen_model_where_statistics_stand_still(model, images):
    prepared = prepare(
        model, LayerFormats("int8", "int8"), scheme=QuantScheme(weight_rule="minmax")
    )
    calibrate(prepared, images)
    frozen = prepared(images)
    assert torch.allclose(prepared.train()(images), frozen, atol=5e-3)
    fold_batch_norms(prepared)
    assert torch.allclose(prepared.train()(images), frozen, atol=5e-3)
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
    assert message(lambda: prepare(nn.Linear(2, 2), formats)) == (
        "the model is a single layer: wrap it in a Sequential"
    )
    assert message(lambda: prepare(prepare(model, formats), formats)) == (
        "the model has quantized layers already: prepare the plain one"
    )
    assert message(lambda: prepare(model, LayerFormats("fp32", "fp32"))) == (
        "there is nothing to quantize: every layer stays in fp32"
    )
    assert message(lambda: prepare(model, "int8")) == (
        "formats must be LayerFormats or a mapping of names to them, got 'int8'"
    )
    assert message(lambda: prepare(model, {"*": "int8"})) == (
        "formats of '*' must be LayerFormats, got 'int8'"
    )
    assert message(lambda: prepare(model.double(), formats)) == (
        "stem must have float32 weights to be quantized, got torch.float64"
    )
    model.float()
    assert message(lambda: prepare(nn.Sequential(nn.LazyLinear(3)), formats)) == (
        "0 must have float32 weights to be quantized, got no shape yet"
    )
    uneven = nn.Sequential(nn.Conv2d(1, 1, 2, padding="same"))
    assert message(lambda: prepare(uneven, formats)) == (
        "0 pads its two sides differently, which is not supported"
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


def test_a_layer_that_computes_in_its_own_way_is_refused():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    assert message(lambda: prepare(nn.Sequential(Standardised(1, 2, 3)), LayerFormats())) == (
        "0 is a Standardised, which computes in its own way: give it no formats"
    )


def test_layers_that_calibration_does_not_reach_are_named():
    """Fused attention reads weights without running the layers that hold them."""
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    prepared = prepare(block, {"linear*": LayerFormats("int2", "int2")})
    text = message(lambda: calibrate(prepared, torch.randn(4, 3, 8)), CalibrationError)
    assert text == (
        "linear1, linear2 did not run in calibration: the model leaves it out or reads its weight "
        "by another way; give it no formats"
    )


def test_a_module_with_two_names_stays_one_module(images):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    net = Tied()
    for name in ("*", "second"):
        prepared = prepare(net, {name: LayerFormats("int8", "int8")})
        calibrate(prepared, images)
        assert prepared.first is prepared.second
        assert isinstance(prepared.first, QuantConv)
        assert torch.allclose(prepared(images), net(images), atol=0.02)


def test_weights_that_were_frozen_stay_frozen(model):
    model.mix.weight.requires_grad_(False)
    prepared = prepare(model, LayerFormats("int8", "int8"))
    assert not prepared.mix.weight.requires_grad
    assert prepared.stem.weight.requires_grad


def test_preparing_leaves_no_trace_of_its_own_tracing(images):
    class Counting(Residual):
        calls = 0

        def forward(self, x):
            self.calls += 1
            self.last = x
            return super().forward(x)

    prepared = prepare(Counting().eval(), LayerFormats("int8", "int8"))
    assert prepared.calls == 0
    assert not hasattr(prepared, "last")


def test_a_step_that_nothing_trained_follows_calibration(images):
    scheme = QuantScheme(activation_training="lsq")
    net = nn.Sequential(nn.Conv2d(1, 2, 1))
    prepared = prepare(net, LayerFormats("int8", "int4"), scheme=scheme)
    calibrate(prepared, 0.01 * images)
    small = float(prepared[0].quantizer().scale)
    calibrate(prepared, images)
    assert float(prepared[0].quantizer().scale) == pytest.approx(100 * small, rel=1e-4)
    calibrate(prepared, [images, -4 * images])
    whole = prepare(net, LayerFormats("int8", "int4"), scheme=scheme)
    calibrate(whole, torch.cat([images, -4 * images]))
    found, expected = (float(each[0].quantizer().scale) for each in (prepared, whole))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("training", ["lsq", "pact"])
def test_learned_steps_stay_positive_and_near_what_they_were(images, training):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    scheme = QuantScheme(
        weight_training="lsq" if training == "lsq" else "range", activation_training=training
    )
    prepared = prepare(net, LayerFormats("int8", "int4"), scheme=scheme)
    calibrate(prepared, images)
    before = prepared[2].quantizer().scale.clone()
    optimizer = torch.optim.AdamW(prepared.train().parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        prepared(images).square().mean().backward()
        optimizer.step()
    calibrate(prepared, images)
    ratio = float(prepared[2].quantizer().scale / before)
    assert 0.9 < ratio < 1.1
    assert ratio != 1.0
    assert (prepared[2].frozen_scale > 0).all()


def test_contradictory_schemes_are_refused():
    for arguments, text in (
        (
            {"activation_granularity": "token", "activation_training": "lsq"},
            "activation_training lsq learns one range, no tokens'",
        ),
        (
            {"activation_granularity": "token", "symmetric_activations": False},
            "scales of tokens are symmetric: their zero points stay at 0",
        ),
        (
            {"activation_training": "pact", "symmetric_activations": False},
            "activation_training pact clips at 0: its zero point stays there",
        ),
    ):
        assert message(lambda arguments=arguments: QuantScheme(**arguments)) == text


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shape", [(64, 16, 3, 3), (8, 1, 3, 3)])
def test_searched_ranges_of_weights_never_lose_to_the_largest_magnitude(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    number_format = format_named(f"int{bits}")
    errors = {
        rule: (quantize_weight(weight, number_format, QuantScheme(weight_rule=rule)) - weight)
        .square()
        .mean(dim=(1, 2, 3))
        for rule in ("mse", "minmax", "rms")
    }
    assert (errors["mse"] <= errors["minmax"] * (1 + 1e-6)).all()
    assert errors["mse"].mean() <= errors["rms"].mean() * 1.01


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_affine_ranges_of_what_is_not_negative_are_those_of_unsigned_ones(bits):
    x = torch.relu(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    errors = []
    for symmetric in (True, False):
        found = qparams_for(x, f"uint{bits}", symmetric=symmetric, rule="rms")
        errors.append(float((found.fake_quantize(x, f"uint{bits}") - x).square().mean()))
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_images_of_another_kind_are_refused(model, images):
    prepared = prepare(model, LayerFormats("int8", "int8"))
    for wrong, got in (
        ((images * 255).byte(), "torch.uint8"),
        (images.double(), "torch.float64"),
        (images.numpy(), "ndarray"),
        ([(images, torch.zeros(32))], "tuple"),
    ):
        text = message(lambda wrong=wrong: calibrate(prepared, wrong), CalibrationError)
        assert text == f"calibration takes float32 tensors of images, got {got}"
    assert message(lambda: calibrate(model, images), CalibrationError) == (
        "the model has no quantized layers: call prepare first"
    )

"""What the exported file of a trained network computes, network and layer by layer."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from apqkit.config import Corruptions, DataConfig, load_config
from apqkit.data import load_splits
from apqkit.export import check_model, export_onnx
from apqkit.export.onnx_model import onnx_model
from apqkit.quant import LayerFormats, QuantScheme, calibrate, prepare
from apqkit.quant.layers import QuantConv, QuantLinear
from apqkit.training import finetune

SHAPE = (1, 8, 8)
MIXED = {
    "*": LayerFormats("int8", "int8"),
    "depthwise": LayerFormats("int8", "fp8_e4m3"),
    "mix": LayerFormats("fp8_e5m2", "int6"),
    "wide": LayerFormats("fp32", "fp32"),
    "head": LayerFormats("int4", "int8"),
}
NETWORKS = {
    "int8": LayerFormats("int8", "int8"),
    "int4": LayerFormats("int4", "int4"),
    "mixed": MIXED,
    "fp8": LayerFormats("fp8_e4m3", "fp8_e4m3"),
    "fp6": LayerFormats("fp6_e3m2", "fp6_e2m3"),
    "fp4": LayerFormats("fp4_e2m1", "fp4_e2m1"),
    "e3m4": LayerFormats("fp8_e3m4", "fp8_e3m4"),
    "int16": LayerFormats("int16", "int16"),
    "bf16": LayerFormats("bf16", "bf16"),
    "weights alone": LayerFormats("int3", "fp32"),
}


class Small(nn.Module):
    """Depthwise, residual, pointwise and linear layers with batch norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(16)
        self.mix, self.mix_norm = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.wide, self.wide_norm = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        y = torch.relu(self.depthwise_norm(self.depthwise(x)))
        x = x + self.mix_norm(self.mix(y))
        x = torch.relu(self.wide_norm(self.wide(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def digits():
    """Real digits with many corrupted copies in the test split: 4,041 images."""
    corruptions = Corruptions(shift=1, noise=0.2, copies=8)
    return load_splits(DataConfig(test=0.25, corruptions=corruptions, augment_noise=0.2), 0)


@pytest.fixture(scope="module")
def trained(digits):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small().to(memory_format=torch.channels_last)
    config = load_config("digits", ["finetune.epochs=25", "finetune.learning_rate=1e-2"])
    finetune(model, digits, config)
    return model.eval()


@pytest.fixture(scope="module")
def prepared(trained, digits):
    def make(formats, **scheme):
        model = prepare(trained, formats, scheme=QuantScheme(**scheme))
        calibrate(model, digits.calibration_images(256).images())
        return model

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_decides_as_torch_does(name, prepared, digits, tmp_path):
    model, images = prepared(NETWORKS[name]), digits.read_test()
    export_onnx(model, SHAPE, tmp_path / "m.onnx", {})
    report = check_model(tmp_path / "m.onnx", model, images)
    assert len(images) == 4041
    assert report["torch_accuracy"] > (0.15 if name in ("int4", "fp4", "weights alone") else 0.8)
    exact = report["unoptimised"]
    assert exact["beyond_one_step"] == 0
    assert exact["images_with_other_class"] <= 0.001 * len(images)


def test_int8_loses_nothing_in_the_fused_kernels_of_the_runtime(prepared, digits, tmp_path):
    model = prepared(NETWORKS["int8"])
    export_onnx(model, SHAPE, tmp_path / "m.onnx", {})
    report = check_model(tmp_path / "m.onnx", model, digits.read_test())
    assert report["optimised"]["accuracy"] == pytest.approx(report["torch_accuracy"], abs=0.001)


@pytest.mark.parametrize(
    "scheme",
    [
        {"weight_granularity": "tensor"},
        {"weight_granularity": "group", "weight_group_size": 8},
        {"symmetric_activations": False},
        {"weight_rule": "mse", "activation_rule": "percentile"},
        {"weight_training": "lsq", "activation_training": "lsq"},
    ],
    ids=lambda each: "-".join(str(value) for value in each.values()),
)
@pytest.mark.parametrize("carrier", ["int8", "packed"])
def test_every_scheme_exports(scheme, carrier, prepared, digits, tmp_path):
    model = prepared(LayerFormats("int4", "int8"), **scheme)
    images = digits.read_test()
    export_onnx(model, SHAPE, tmp_path / "m.onnx", {}, carrier=carrier)
    report = check_model(tmp_path / "m.onnx", model, images)
    assert report["torch_accuracy"] > 0.2
    assert report["unoptimised"]["beyond_one_step"] == 0
    assert report["unoptimised"]["images_with_other_class"] <= 0.001 * len(images)
    assert ("INT4" in report["constant_types"]) == (carrier == "packed")


def session_of(proto):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("name", ["int8", "int4", "mixed", "fp8"])
def test_layer_by_layer_only_values_beside_a_tie_move(name, prepared, digits):
    """Each layer gets torch's own input, so that nothing adds up."""
    model = prepared(NETWORKS[name])
    seen = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantConv | QuantLinear)}
    for each, layer in layers.items():
        layer.register_forward_hook(
            lambda layer, inputs, output, each=each: seen.update({each: (inputs[0], output)})
        )
    with torch.no_grad():
        model(digits.read_test().images(slice(0, 500)))
    assert len(seen) == (5 if name != "mixed" else 4)
    for each, (x, y) in seen.items():
        layer = layers[each]
        layer._forward_hooks.clear()
        proto = onnx_model(layer, tuple(x.shape[1:]), {})
        found = session_of(proto).run(None, {"images": x.contiguous().numpy()})[0]
        expected = y.numpy()
        step = np.abs(expected).max() / 127.0  # as an 8-bit reader would have it
        levels, wanted = np.rint(found / step), np.rint(expected / step)
        moved = levels != wanted
        assert np.abs(levels - wanted).max() <= 1
        distance = np.abs(expected[moved] / step - np.floor(expected[moved] / step) - 0.5)
        assert (distance < 1e-3).all()
        assert moved.mean() < 1e-3


def test_packed_files_are_smaller_and_compute_the_same(prepared, digits, tmp_path):
    model, images = prepared(LayerFormats("int4", "int8")), digits.read_test()
    reports = {}
    for carrier in ("int8", "packed"):
        path = tmp_path / f"{carrier}.onnx"
        export_onnx(model, SHAPE, path, {}, carrier=carrier)
        reports[carrier] = check_model(path, model, images)
    assert reports["packed"]["unoptimised"] == reports["int8"]["unoptimised"]
    parameters = sum(layer.weight.numel() for layer in model.modules()
                     if isinstance(layer, QuantConv | QuantLinear))  # fmt: skip
    saved = reports["int8"]["file_kib"] - reports["packed"]["file_kib"]
    assert saved > 0.35 * parameters / 1024
    assert "INT4" not in reports["int8"]["constant_types"]


@pytest.mark.parametrize("weights", ["int2", "int3", "int4"])
def test_packed_files_run_in_the_same_fused_kernels(weights, prepared, tmp_path):
    model = prepared(LayerFormats(weights, "int8"))
    kernels = {}
    for carrier in ("int8", "packed"):
        proto = onnx_model(model, SHAPE, {}, carrier=carrier)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
        kernels[carrier] = Counter(each.op_type for each in nodes)
    assert kernels["packed"] == kernels["int8"]
    assert kernels["packed"]["QLinearConv"] + kernels["packed"]["QGemm"] > 0
    assert "Cast" not in kernels["packed"]


@pytest.mark.parametrize("formats", [("int8", "int8"), ("int4", "fp8_e4m3"), ("fp32", "int8")])
@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_linear_layers_on_sequences_export(formats, granularity):
    net = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 3))
    tokens = torch.randn(6, 7, 12, generator=torch.Generator().manual_seed(0))
    scheme = QuantScheme(activation_granularity=granularity)
    model = prepare(net, LayerFormats(*formats), scheme=scheme)
    calibrate(model, tokens)
    found = session_of(onnx_model(model, (7, 12), {})).run(None, {"images": tokens.numpy()})[0]
    differs = np.abs(found - model(tokens).detach().numpy())
    assert np.median(differs) < 1e-5
    assert differs.max() < 0.05  # one level of one input, where GELU lands beside a tie


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 5, 3, padding=1), nn.Conv3d(4, 5, 2)])
def test_other_dimensions_export(layer):
    x = torch.rand(3, 4, *[6] * (layer.weight.dim() - 2))
    model = prepare(nn.Sequential(layer), LayerFormats("int4", "int8"))
    calibrate(model, x)
    found = session_of(onnx_model(model, tuple(x.shape[1:]), {})).run(None, {"images": x.numpy()})
    assert np.allclose(found[0], model(x).detach().numpy(), atol=1e-5)


def test_a_layer_that_runs_twice_is_stored_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    x = torch.rand(4, 2, 6, 6)
    model = prepare(Twice(), LayerFormats("int8", "int8"))
    calibrate(model, x)
    proto = onnx_model(model, (2, 6, 6), {})
    found = session_of(proto).run(None, {"images": x.numpy()})[0]
    assert np.allclose(found, model(x).detach().numpy(), atol=1e-5)
    biases = [each for each in proto.graph.initializer if each.data_type == onnx.TensorProto.INT32]
    assert len({each.name for each in biases}) == len(biases)


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("activations", ["int16", "int8", "fp6_e3m2"])
@pytest.mark.parametrize("weights", ["int16", "fp8_e3m4", "fp6_e3m2", "int8"])
def test_large_biases_survive_wide_carriers(weights, activations, optimised):
    """Runtimes quantize biases of integer layers themselves if the file does not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    with torch.no_grad():
        net[0].bias.add_(1.0)
        net[0].weight[2] = 0.0  # a dead channel
        net[3].bias.add_(3.0)
        net[3].weight[1] = 0.0
    x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    model = prepare(net, LayerFormats(weights, activations))
    calibrate(model, x)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = onnx_model(model, SHAPE, {})
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"images": x.numpy()})[0]
    expected = model(x).detach().numpy()
    assert np.abs(found - expected).max() < 0.01
    assert np.abs(expected - net(x).detach().numpy()).max() < (
        1.0 if "fp6" in activations else 0.5
    )

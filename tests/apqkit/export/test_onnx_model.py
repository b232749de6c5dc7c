import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import apqkit.export.onnx_model as onnx_model_module
import apqkit.quant.activations as activations_module
import apqkit.quant.weights as weights_module
from apqkit.errors import CalibrationError, ExportError
from apqkit.export.check import onnx_logits
from apqkit.export.onnx_model import INPUT_NAME, OUTPUT_NAME, export_onnx, onnx_model
from apqkit.formats import format_named
from apqkit.quant.activations import ActivationQuantizer
from apqkit.quant.calibration import calibrate
from apqkit.quant.layers import (
    BatchNorm,
    QuantAdd,
    QuantConv,
    QuantLinear,
    square_geometry,
)
from apqkit.quant.onnx_marker import MARKER_DOMAIN
from apqkit.quant.qdq import OPSET
from apqkit.quant.ranges import activation_scale, weight_scale
from apqkit.spaces.base import largest_picks
from apqkit.spaces.draws import draw_uniform

SHAPE = (1, 8, 8)
PAIRS = [
    ("int8", "int8"),
    ("int4", "int4"),
    ("int2", "int3"),
    ("fp8_e4m3", "fp8_e4m3"),
    ("fp8_e5m2", "fp8_e5m2"),
    ("fp4_e2m1", "fp4_e2m1"),
    ("fp4_e2m1", "int8"),
    ("fp8_e4m3", "int4"),
    ("int4", "fp8_e4m3"),
]


@pytest.fixture
def exact_scales(monkeypatch):
    """Powers of two for scales: sums of products are exact in fp32, in whatever order."""

    def rounded_up(rule):
        return lambda *args, **kwargs: torch.exp2(torch.log2(rule(*args, **kwargs)).ceil())

    monkeypatch.setattr(weights_module, "weight_scale", rounded_up(weight_scale))
    monkeypatch.setattr(activations_module, "activation_scale", rounded_up(activation_scale))


@pytest.fixture(scope="module")
def int8_model(frozen):
    return onnx_model(frozen(), SHAPE, {"candidate": {"depth": 2}, "note": "plain text"})


def logits_of(model, images):
    with torch.no_grad():
        return model(images.images()).numpy()


def exported_logits(model, images, path, *, optimised):
    export_onnx(model, SHAPE, path, {})
    return onnx_logits(path, images, optimised=optimised)


def optimised_ops(proto, folder):
    """What ONNX Runtime makes of a model by default."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return onnx.load(folder / "optimised.onnx").graph.node


@pytest.mark.usefixtures("exact_scales")
@pytest.mark.parametrize(("weights", "activations"), PAIRS)
def test_the_file_computes_exactly_what_torch_computes(
    frozen, splits, tmp_path, weights, activations
):
    model = frozen(weights, activations)
    expected = logits_of(model, splits.validation)
    assert len(np.unique(expected.argmax(axis=1))) > 3
    for optimised in (False, True):
        found = exported_logits(model, splits.validation, tmp_path / "m.onnx", optimised=optimised)
        assert np.array_equal(found, expected)


@pytest.mark.usefixtures("exact_scales")
@pytest.mark.parametrize("seed", range(6))
def test_mixtures_of_formats_compute_exactly_what_torch_computes(
    frozen, space, splits, tmp_path, seed
):
    layers = space.network(draw_uniform(space, 1, np.random.default_rng(seed))).layers()
    model = frozen(layers=layers)
    expected = logits_of(model, splits.validation)
    for optimised in (False, True):
        found = exported_logits(model, splits.validation, tmp_path / "m.onnx", optimised=optimised)
        assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize(("weights", "activations"), PAIRS)
@pytest.mark.parametrize("optimised", [False, True])
def test_with_any_scales_only_values_beside_a_tie_move(
    frozen, splits, tmp_path, weights, activations, optimised
):
    """fp32 sums differ in their last bit, so a value beside a tie may move by one level."""
    model = frozen(weights, activations)
    expected = logits_of(model, splits.validation)
    found = exported_logits(model, splits.validation, tmp_path / "m.onnx", optimised=optimised)
    differs = np.abs(found - expected).max(axis=1) > 1e-4
    assert differs.mean() < 0.3  # images with any such value
    assert np.abs(found - expected).mean() < 0.01
    assert (found.argmax(axis=1) != expected.argmax(axis=1)).sum() <= 3  # of 300


def test_fp32_stays_fp32(frozen, splits, tmp_path):
    model = frozen("fp32", "fp32")
    expected = logits_of(model, splits.validation)
    for optimised in (False, True):
        found = exported_logits(model, splits.validation, tmp_path / "m.onnx", optimised=optimised)
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)
    proto = onnx.load(tmp_path / "m.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {each.op_type for each in proto.graph.node}


def test_the_graph_has_one_input_and_one_output_for_any_batch(int8_model, splits):
    graph = int8_model.graph
    assert [each.name for each in graph.input] == [INPUT_NAME]
    assert [each.name for each in graph.output] == [OUTPUT_NAME]
    shape = graph.input[0].type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in shape] == ["batch", 1, 8, 8]
    session = onnxruntime.InferenceSession(int8_model.SerializeToString())
    for count in (1, 7):
        pixels = splits.validation.images(slice(0, count)).contiguous().numpy()
        assert session.run(None, {INPUT_NAME: pixels})[0].shape == (count, 10)


def test_the_file_says_its_versions_and_carries_metadata(int8_model):
    assert int8_model.producer_name == "apqkit"
    assert [(each.domain, each.version) for each in int8_model.opset_import] == [("", OPSET)]
    assert OPSET == 21
    props = {each.key: each.value for each in int8_model.metadata_props}
    assert json.loads(props["candidate"]) == {"depth": 2}
    assert props["note"] == "plain text"


def test_no_mark_and_no_unused_constant_stays(int8_model):
    graph = int8_model.graph
    assert not [each for each in graph.node if each.domain == MARKER_DOMAIN]
    used = {name for node in graph.node for name in node.input}
    assert {each.name for each in graph.initializer} <= used


def test_integer_networks_store_int8_weights_and_int32_biases(frozen):
    model = frozen("int4", "int8")
    graph = onnx_model(model, SHAPE, {}).graph
    constants = {each.name: each for each in graph.initializer}
    weighted = [each for each in model.modules() if isinstance(each, QuantConv | QuantLinear)]
    for layer in weighted:
        bias = constants[f"{layer.name}.bias.code"]
        assert bias.data_type == TensorProto.INT32
        step = numpy_helper.to_array(constants[f"{layer.name}.bias.scale"])
        levels = numpy_helper.to_array(bias)
        assert np.array_equal((levels * step).astype(np.float32), layer.frozen_bias.numpy())
        assert np.array_equal(step, (layer.quantizer().scale * layer.frozen_scale).numpy())
    codes = [each for each in graph.initializer if each.name.endswith(".code")]
    kinds = Counter(each.data_type for each in codes)
    assert kinds == {TensorProto.INT8: len(weighted), TensorProto.INT32: len(weighted)}
    sums = [each for each in graph.node if each.op_type in ("Conv", "Gemm")]
    assert len(sums) == len(weighted)
    scales = {name: numpy_helper.to_array(each) for name, each in constants.items()}
    writers = {node.output[0]: node for node in graph.node}
    for node in sums:  # what integer kernels ask for: bias scale = input scale x weight scale
        source, weight, bias = (scales[writers[name].input[1]] for name in node.input)
        assert np.array_equal(source * weight, bias)


def test_fp8_weights_and_activations_use_the_float8_types(frozen):
    graph = onnx_model(frozen("fp8_e4m3", "fp8_e5m2"), SHAPE, {}).graph
    kinds = {each.data_type for each in graph.initializer if each.name.endswith(".code")}
    assert kinds == {TensorProto.FLOAT8E4M3FN}
    zeros = {each.data_type for each in graph.initializer if each.name.endswith(".zero")}
    assert zeros == {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2}
    assert not any(each.data_type == TensorProto.INT32 for each in graph.initializer)


def test_biases_stay_fp32_where_input_or_weights_are_no_integers(frozen):
    for formats in (("int8", "fp8_e4m3"), ("int8", "fp32"), ("fp32", "int8")):
        graph = onnx_model(frozen(*formats), SHAPE, {}).graph
        assert not any(each.data_type == TensorProto.INT32 for each in graph.initializer)


def test_a_channel_of_zero_weights_keeps_its_bias_in_the_file(frozen, splits, tmp_path):
    model = frozen("int8", "int8")
    with torch.no_grad():
        model.units["head"].gamma[:3] = 0.0
        model.units["head"].beta[:3] = 2.0
    calibrate(model, splits.calibration_images(128).images())
    expected = logits_of(model, splits.validation)
    found = exported_logits(model, splits.validation, tmp_path / "m.onnx", optimised=False)
    assert model.units["head"].frozen_bias[:3].tolist() == pytest.approx([2.0] * 3)
    assert np.abs(found - expected).mean() < 0.01


@pytest.mark.parametrize("name", ["int8", "int6", "int4", "int2"])
def test_every_layer_between_integers_runs_in_a_fused_integer_kernel(frozen, tmp_path, name):
    """Whatever the signs are and however narrow the levels."""
    model = frozen(name, name)
    proto = onnx_model(model, SHAPE, {})
    nodes = optimised_ops(proto, tmp_path)
    ops = Counter(each.op_type for each in nodes)
    clips = sum(each.op_type == "Clip" for each in proto.graph.node)
    assert ops["Clip"] == clips
    assert (clips > 0) == (name != "int8")
    assert ops["QLinearConv"] == sum(isinstance(each, QuantConv) for each in model.modules())
    assert ops["QLinearAdd"] == sum(isinstance(each, QuantAdd) for each in model.modules())
    assert not {"Conv", "Add", "Gemm"} & set(ops)
    depthwise = [each for each in nodes if each.op_type == "QLinearConv" and group_of(each) > 1]
    assert len(depthwise) == 5
    assert ops["QGemm"] == 1


@pytest.mark.parametrize("carrier", ["int8", "packed"])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [("int8", "fp32"), ("int2", "fp32"), ("int8", "int16"), ("fp4_e2m1", "bf16")],
)
def test_weights_without_an_integer_kernel_are_made_when_the_model_is_loaded(
    frozen, tmp_path, weights, activations, carrier
):
    """A convolution whose weights are computed anew in every run also loses its fast layout."""
    proto = onnx_model(frozen(weights, activations), SHAPE, {}, carrier=carrier)
    nodes = optimised_ops(proto, tmp_path)
    constants = {each.name for each in onnx.load(tmp_path / "optimised.onnx").graph.initializer}
    computed = [n.name for n in nodes if n.input and n.input[0] in constants]
    assert not computed
    weighted = [node for node in nodes if "Conv" in node.op_type or "Gemm" in node.op_type]
    assert len(weighted) == 18
    assert all(set(node.input[1:3]) <= constants for node in weighted)


def test_a_convolution_before_fp32_keeps_its_integers_but_runs_on_folded_weights(
    space, frozen, splits, tmp_path
):
    """Its input is an integer and its output is not, so no runtime fuses it."""
    table = space.network(largest_picks(space.dims)).with_formats("int8", "int8")
    layers = [
        replace(each, activation_format="fp32" if each.name.endswith("depthwise") else "int8")
        for each in table.layers()
    ]
    model = frozen(layers=layers)
    proto = onnx_model(model, SHAPE, {})
    types = Counter(each.data_type for each in proto.graph.initializer if len(each.dims) == 4)
    assert types[TensorProto.INT8] == 17
    assert types[TensorProto.FLOAT] == 10  # scales of depthwise layers and of those before them
    expected = logits_of(model, splits.validation)
    for optimised in (False, True):
        found = exported_logits(model, splits.validation, tmp_path / "m.onnx", optimised=optimised)
        assert (found.argmax(axis=1) != expected.argmax(axis=1)).mean() < 0.01
    ops = Counter(each.op_type for each in optimised_ops(proto, tmp_path))
    assert (ops["QLinearConv"], ops["Conv"]) == (7, 10)


def group_of(node):
    return next((each.i for each in node.attribute if each.name == "group"), 1)


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("int8", "int4"),
        ("fp4_e2m1", "int4"),
        ("fp32", "int8"),
        ("bf16", "int8"),
        ("int16", "int8"),
        ("fp8_e4m3", "int4"),
        ("int8", "int16"),
    ],
)
def test_the_runtime_finds_nothing_left_to_quantize(frozen, splits, weights, activations):
    """ONNX Runtime rounds fp32 weights and biases between quantized tensors by itself."""
    proto = onnx_model(frozen(weights, activations), SHAPE, {})
    pixels = splits.validation.images().contiguous().numpy()
    results = []
    for disabled in ([], ["WeightBiasQuantization"]):
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled,
        )
        results.append(session.run(None, {INPUT_NAME: pixels})[0])
    assert np.array_equal(*results)


def tiny(number_format="int8", *, name="c", weight_format=None):
    source = ActivationQuantizer(number_format, signed=False, name=f"{name}.input")
    weight = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return QuantConv(
        source, weight, BatchNorm(torch.ones(3), torch.zeros(3)),
        weight_format=weight_format or format_named("int8"),
        geometry=square_geometry(3, 1, 1), relu=True, name=name,
    )  # fmt: skip


def test_a_model_that_is_not_frozen_is_refused(tmp_path):
    model = nn.Sequential(tiny(format_named("int8")))
    with pytest.raises(CalibrationError) as caught:
        export_onnx(model, SHAPE, tmp_path / "m.onnx", {})
    assert str(caught.value) == "c.input has no range yet: call calibrate(model, images)"
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_frozen_are_refused():
    with pytest.raises(CalibrationError) as caught:
        onnx_model(tiny(format_named("fp32")), SHAPE, {})
    assert str(caught.value) == "c is not frozen: call calibrate(model, images)"


@pytest.mark.parametrize("kind", ["QuantConv", "ActivationQuantizer"])
def test_two_modules_of_one_name_are_refused(kind):
    first, second = tiny(format_named("int8")), tiny(format_named("int8"), name="d")
    if kind == "QuantConv":
        second.name = "c"
    else:
        second.quantizer().name = "c.input"
    model = nn.Sequential(first, nn.Conv2d(3, 1, 1), nn.ReLU(), second)
    calibrate(model, torch.rand(4, *SHAPE))
    with pytest.raises(ExportError) as caught:
        onnx_model(model, SHAPE, {})
    name = "c" if kind == "QuantConv" else "c.input"
    assert str(caught.value) == f"two {kind} modules are named {name!r}"


def test_a_format_without_an_onnx_form_is_refused(tmp_path):
    blocks, why = (
        format_named("mxfp4_e2m1"),
        "blocks with scales of their own are emulated in torch only",
    )
    for model, what in (
        (tiny(blocks), "activations"),
        (tiny(format_named("int8"), weight_format=blocks), "weights"),
    ):
        calibrate(model, torch.rand(4, *SHAPE))
        with pytest.raises(ExportError) as caught:
            export_onnx(model, SHAPE, tmp_path / "m.onnx", {})
        assert str(caught.value) == f"{what} in mxfp4_e2m1 have no ONNX form: {why}"
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_valid_is_refused(monkeypatch):
    model = tiny(format_named("int8"))
    calibrate(model, torch.rand(4, *SHAPE))
    monkeypatch.setattr(onnx_model_module, "lower_activation", lambda *args: None)
    with pytest.raises(ExportError) as caught:
        onnx_model(model, SHAPE, {})
    assert str(caught.value) == (
        "the exported graph is not valid: Nodes in a graph must be topologically sorted, however "
        "input '/inputs.0/Quantize_output_0' of node: name: /Conv OpType: Conv is not output of "
        "any previous nodes."
    )


@pytest.mark.parametrize(
    ("weights", "activations", "carrier", "opset", "text"),
    [
        ("int8", "fp8_e4m3", "int8", 18, "fp8_e4m3 activations need opset 19 or later, got 18"),
        ("fp8_e5m2", "int8", "int8", 17, "fp8_e5m2 weights need opset 19 or later, got 17"),
        ("int4", "int8", "packed", 20, "packed int4 weights need opset 21 or later, got 20"),
        ("int2", "int8", "packed", 24, "packed int2 weights need opset 25 or later, got 24"),
    ],
)
def test_an_opset_that_lacks_a_type_is_refused(frozen, weights, activations, carrier, opset, text):
    with pytest.raises(ExportError) as caught:
        onnx_model(frozen(weights, activations), SHAPE, {}, carrier=carrier, opset=opset)
    assert str(caught.value) == text


@pytest.mark.parametrize("opset", [12, 99])
def test_an_opset_that_there_is_not_is_refused(frozen, opset):
    with pytest.raises(ExportError) as caught:
        onnx_model(frozen(), SHAPE, {}, opset=opset)
    assert str(caught.value) == f"opset must be 13 to 26, got {opset}"


@pytest.mark.parametrize("opset", [13, 17, 21, 26])
def test_any_opset_with_the_types_computes_the_same(frozen, splits, opset):
    model = frozen("int4", "int8")
    proto = onnx_model(model, SHAPE, {}, opset=opset)
    assert proto.opset_import[0].version == opset
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    images = splits.validation
    found = session.run(None, {INPUT_NAME: images.images().contiguous().numpy()})[0]
    assert (found.argmax(axis=1) != logits_of(model, images).argmax(axis=1)).sum() <= 3


def test_the_newest_opset_is_taken_only_where_a_type_needs_it(frozen):
    opsets = {
        (weights, carrier): onnx_model(frozen(weights), SHAPE, {}, carrier=carrier)
        .opset_import[0]
        .version
        for weights in ("int2", "int4")
        for carrier in ("int8", "packed")
    }
    assert opsets == {
        ("int2", "int8"): 21, ("int2", "packed"): 25, ("int4", "int8"): 21, ("int4", "packed"): 21,
    }  # fmt: skip


def test_what_torch_cannot_run_or_write_is_one_line(frozen):
    with pytest.raises(ExportError) as caught:
        onnx_model(frozen(), (3, 8, 8), {})
    assert str(caught.value).startswith("the model cannot run on an input of (3, 8, 8): ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError) as caught:
        onnx_model(frozen(), SHAPE, {"classes": np.arange(3)})
    assert str(caught.value) == (
        "metadata must be JSON values: Object of type ndarray is not JSON serializable"
    )

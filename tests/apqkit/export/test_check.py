import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph

from apqkit.data import ImageSet
from apqkit.errors import ExportError
from apqkit.export.check import FLOAT8_NOTE, check_model, onnx_logits, output_step, time_models
from apqkit.export.onnx_model import export_onnx

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def exported(frozen, tmp_path_factory):
    """Models with the files they were written to."""
    folder = tmp_path_factory.mktemp("models")
    models = {}
    for name in ("int8", "fp8_e4m3"):
        model = frozen(name, name)
        export_onnx(model, SHAPE, folder / f"{name}.onnx", {})
        models[name] = (model, folder / f"{name}.onnx")
    return models


def test_reports_what_an_independent_count_finds(exported, splits):
    model, path = exported["int8"]
    images = splits.validation
    report = check_model(path, model, images)
    with torch.no_grad():
        expected = model(images.images()).numpy()
    assert report["images"] == 300
    assert report["torch_accuracy"] == np.mean(expected.argmax(axis=1) == images.labels)
    assert report["file_kib"] == round(len(path.read_bytes()) / 1024, 2)
    assert report["opset"] == 21
    assert report["note"] == ""
    for mode, optimised in (("unoptimised", False), ("optimised", True)):
        found = onnx_logits(path, images, optimised=optimised)
        classes = found.argmax(axis=1)
        assert report[mode] == {
            "accuracy": np.mean(classes == images.labels),
            "largest_difference": pytest.approx(np.abs(found - expected).max(), rel=1e-6),
            "images_with_other_class": int((classes != expected.argmax(axis=1)).sum()),
            "beyond_one_step": 0,
        }
    assert set(report["latency"]) == {"median_ms", "p10_ms", "p90_ms", "runs", "note", "batch"}
    assert "reference_latency" not in report


def test_counts_the_types_of_constants(exported, splits):
    for model, path in exported.values():
        found = check_model(path, model, splits.validation)["constant_types"]
        kinds = [each.data_type for each in onnx.load(path).graph.initializer]
        names = [onnx.TensorProto.DataType.Name(each) for each in kinds]
        assert found == {name: names.count(name) for name in sorted(set(names))}


def test_sees_a_model_that_is_not_the_one_exported(exported, frozen, splits):
    path = exported["int8"][1]
    report = check_model(path, frozen("int2", "int3"), splits.validation)
    assert report["unoptimised"]["images_with_other_class"] > 30
    assert report["unoptimised"]["largest_difference"] > 0.5


def test_differences_that_no_tie_explains_are_counted(exported, frozen, splits):
    model, path = exported["int8"]
    last = model.units["classifier"]
    step = float(last.quantizer().scale) * float(last.frozen_weight.abs().max())
    assert output_step(model) == pytest.approx(step)
    assert output_step(frozen("fp32", "fp32")) == 0.0
    other = frozen("int2", "int3")
    found = check_model(path, other, splits.validation)["unoptimised"]
    with torch.no_grad():
        expected = np.sort(other(splits.validation.images()).numpy(), axis=1)
    close = expected[:, -1] - expected[:, -2] <= output_step(other)
    assert 0 < found["beyond_one_step"] < found["images_with_other_class"]
    assert found["images_with_other_class"] - found["beyond_one_step"] <= close.sum()


def test_a_reference_is_timed_in_turn(exported, splits):
    model, path = exported["int8"]
    report = check_model(
        path, model, splits.validation, reference=exported["fp8_e4m3"][1], batch=3
    )
    assert report["latency"]["batch"] == report["reference_latency"]["batch"] == 3
    assert report["reference_latency"]["note"] == "fp8 emulated"
    assert 0 < report["latency"]["p10_ms"] <= report["latency"]["median_ms"]


def test_times_of_emulated_formats_say_so(frozen, tmp_path):
    notes = {}
    for name in ("int8", "fp4_e2m1", "fp8_e5m2"):
        export_onnx(frozen("int8", name), SHAPE, tmp_path / f"{name}.onnx", {})
        (latency,) = time_models([tmp_path / f"{name}.onnx"], SHAPE, batch=1, runs=2)
        notes[name] = latency.note
    assert notes == {
        "int8": "",
        "fp4_e2m1": "activations rounded by ordinary nodes",
        "fp8_e5m2": "fp8 emulated",
    }


def test_fp8_is_loaded_so_that_optimisation_changes_nothing(exported, splits):
    model, path = exported["fp8_e4m3"]
    report = check_model(path, model, splits.validation)
    assert report["note"] == FLOAT8_NOTE
    assert report["constant_types"]["FLOAT8E4M3FN"] > 0
    plain, fast = (onnx_logits(path, splits.validation, optimised=each) for each in (False, True))
    assert np.abs(plain - fast).max() < 1e-4


def test_more_images_than_a_batch_come_back_in_order(exported, splits):
    path = exported["int8"][1]
    images = splits.validation
    assert len(images) > 256
    logits = onnx_logits(path, images, optimised=False)
    assert logits.shape == (300, 10)
    last = images.take(np.arange(256, 300))
    assert np.allclose(onnx_logits(path, last, optimised=False), logits[256:], atol=1e-4)


@pytest.mark.parametrize("content", [b"no model at all", None])
def test_a_file_that_is_no_model_is_named(exported, splits, tmp_path, content):
    model = exported["int8"][0]
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    reason = (
        "Error parsing message with type 'onnx.ModelProto'"
        if content
        else f"[Errno 2] No such file or directory: '{path}'"
    )
    for check in (
        lambda: check_model(path, model, splits.validation),
        lambda: time_models([path], SHAPE, batch=1),
    ):
        with pytest.raises(ExportError) as caught:
            check()
        text = f"{path} cannot be read as an ONNX model: {reason}"
        assert str(caught.value).partition(": Wire format")[0] == text


def test_a_model_that_the_runtime_cannot_load_is_named(exported, tmp_path, splits):
    proto = onnx.load(exported["int8"][1])
    proto.graph.node[0].op_type = "Quantise"
    path = tmp_path / "strange.onnx"
    onnx.save(proto, path)
    with pytest.raises(InvalidGraph) as plain:
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with pytest.raises(ExportError) as caught:
        onnx_logits(path, splits.validation, optimised=False)
    reason = " ".join(str(plain.value).split())
    assert "Quantise" in reason
    assert str(caught.value) == f"ONNX Runtime cannot load {path}: {reason}"


def test_images_that_a_model_cannot_take_are_refused(exported):
    path = exported["int8"][1]
    colour = ImageSet.of(np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(ExportError) as caught:
        onnx_logits(path, colour, optimised=True)
    assert str(caught.value) == (
        f"ONNX Runtime cannot run {path}: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid "
        "dimensions for input: images for the following indices index: 1 Got: 3 Expected: 1 "
        "Please fix either the inputs/outputs or the model."
    )


def test_models_are_timed_in_turn(exported):
    paths = [path for _, path in exported.values()]
    integer, float8 = time_models(paths, SHAPE, batch=4, runs=15)
    for each in (integer, float8):
        assert 0 < each.p10_ms <= each.median_ms <= each.p90_ms
        assert each.runs == 15
    assert integer.note == ""
    assert float8.note == "fp8 emulated"
    assert time_models([], SHAPE, batch=1) == []

"""Finetuning a member of the front: before, after, and the model that comes out."""

from typing import Any

from torch import nn

from apqkit.front import Evaluated
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.export_stage import ExportSubject, export_candidate
from apqkit.pipeline.final_front import networks_of
from apqkit.quant.calibration import calibrate
from apqkit.run import fingerprint_of, write_json
from apqkit.training.checkpoint import save_tensors
from apqkit.training.evaluate import accuracy_parts, evaluate
from apqkit.training.finetuning import finetune

__all__ = ["RESULT_FILE", "finetune_member"]

RESULT_FILE = "result.json"
_WEIGHTS_FILE = "weights.safetensors"
_CHECKPOINT = "checkpoint"


def finetune_member(context: RunContext, member: Evaluated) -> dict[str, Any]:
    """Trains one member with its formats, exports it and returns accuracies before and after."""
    table = networks_of(context, member.candidates)
    folder = context.run.path / "finetune" / member.keys[0]
    folder.mkdir(parents=True, exist_ok=True)
    model = context.supernet.extract(table.layers())  # type: ignore[operator]
    calibrate(model, context.calibration_images(final=True))
    before = _accuracies(context, model)
    checkpoint = folder / f"{_CHECKPOINT}_{_fingerprint(context)}.safetensors"
    history = finetune(
        model,
        context.splits,
        context.config,
        checkpoint_path=checkpoint,
        progress=context.progress,
    )
    calibrate(model, context.calibration_images(final=True))
    after = _accuracies(context, model)
    save_tensors(folder / _WEIGHTS_FILE, model.state_dict(), {"key": member.keys[0]})
    facts = {"finetuned_epochs": len(history)}
    subject = ExportSubject(model, member.candidates[0], table, facts)
    _, check = export_candidate(context, subject, folder, context.config.export.carrier)
    result = {
        "key": member.keys[0],
        "epochs": len(history),
        "before": before,
        "after": after,
        "onnx_accuracy": check["optimised"]["accuracy"],
    }
    write_json(folder / RESULT_FILE, result)
    for left_over in folder.glob(f"{_CHECKPOINT}_*"):
        left_over.unlink()
    return result


def _fingerprint(context: RunContext) -> str:
    """Returns what tells checkpoints apart: a member keeps its key when its weights change."""
    made_from = {
        "search": context.run.stages["search"].inputs,
        "finetune": context.config.finetune.model_dump(mode="json"),
    }
    return fingerprint_of(made_from)[:12]


def _accuracies(context: RunContext, model: nn.Module) -> dict[str, float]:
    """Returns validation and test accuracy, whole and in parts."""
    accuracies = {}
    sets = {"validation": context.splits.validation, "test": context.splits.read_test()}
    for name, images in sets.items():
        correct = evaluate(model, images)
        accuracies[name] = float(correct.mean())
        for part, value in accuracy_parts(correct, images).items():
            accuracies[f"{name}_{part}"] = value
    return accuracies

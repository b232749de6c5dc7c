"""Finetuning a member of the front: before, after, and the model that comes out."""

from typing import Any

from torch import nn

from apqkit.front import Evaluated
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.export_stage import export_candidate
from apqkit.pipeline.final_front import networks_of
from apqkit.quant.calibrate import calibrate
from apqkit.run import write_json
from apqkit.training.checkpoint import save_tensors
from apqkit.training.evaluate import accuracy_parts, evaluate
from apqkit.training.finetune import finetune

__all__ = ["RESULT_FILE", "finetune_member"]

RESULT_FILE = "result.json"
_WEIGHTS_FILE = "weights.safetensors"


def finetune_member(context: RunContext, member: Evaluated) -> dict[str, Any]:
    """Trains one member with its formats, exports it and returns accuracies before and after."""
    table = networks_of(context, member.candidates)
    folder = context.run.path / "finetune" / member.keys[0]
    folder.mkdir(parents=True, exist_ok=True)
    model = context.supernet.extract(table.layers())  # type: ignore[operator]
    calibrate(model, context.calibration_images(final=True))
    before = _accuracies(context, model)
    history = finetune(
        model, context.splits, context.config, directory=folder, progress=context.progress
    )
    calibrate(model, context.calibration_images(final=True))
    after = _accuracies(context, model)
    save_tensors(folder / _WEIGHTS_FILE, model.state_dict(), {"key": member.keys[0]})
    check = export_candidate(
        context, model, member.candidates[0], table, folder, {"finetuned_epochs": len(history)}
    )
    result = {
        "key": member.keys[0],
        "epochs": len(history),
        "before": before,
        "after": after,
        "onnx_accuracy": check["optimised"]["accuracy"],
    }
    write_json(folder / RESULT_FILE, result)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return result


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

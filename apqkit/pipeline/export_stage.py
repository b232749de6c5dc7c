"""Stage export: picked members as ONNX, checked on the test images; finalists timed for real."""

import csv
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import apqkit
from apqkit.export.check import FLOAT8_NOTE, Latency, check_model, time_models
from apqkit.export.onnx_model import export_onnx
from apqkit.front import Evaluated, ParetoSet
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.final_front import networks_of, reference_networks
from apqkit.pipeline.search_stage import EVALUATED_FILE, read_pareto_set
from apqkit.run import write_atomically, write_json
from apqkit.sampling import layer_formats
from apqkit.training.evaluate import calibrated_subnet
from apqkit.types import Choice, LayerTable

__all__ = ["CHECK_FILE", "MODEL_FILE", "TIMING_FILE", "export_candidate", "run_export_stage"]

MODEL_FILE = "model.onnx"
CHECK_FILE = "check.json"
TIMING_FILE = "timing.csv"


def run_export_stage(context: RunContext, folder: Path) -> None:
    """Exports and checks the picks of the configuration and times every finalist."""
    front = read_pareto_set(context)
    for pick in context.config.export.picks:
        member = front.pick(pick)
        report = export_member(context, member, folder)
        context.say(_summary(member.keys[0], report))
    write_atomically(folder / TIMING_FILE, _timing_csv(context, front))


def export_member(context: RunContext, member: Evaluated, folder: Path) -> dict[str, Any]:
    """Exports one measured candidate with the weights it inherits; returns the check."""
    table = networks_of(context, member.candidates)
    model = calibrated_subnet(
        context.supernet,  # type: ignore[arg-type]
        table.layers(),
        context.calibration_images(final=True),
    )
    facts = {"validation_accuracy": float(member.accuracy[0])}
    target = folder / member.keys[0]
    return export_candidate(context, model, member.candidates[0], table, target, facts)


def export_candidate(
    context: RunContext,
    model: nn.Module,
    candidate: Mapping[str, Choice],
    table: LayerTable,
    folder: Path,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes model.onnx and check.json into a folder and returns the check.

    Args:
        context: The run.
        model: Frozen.
        candidate: Its active dims by value.
        table: Its network.
        folder: Where the files go.
        facts: Kept in the file's metadata beside candidate, formats, input and classes.
    """
    shape = context.splits.image_shape
    formats = layer_formats(table.layers())
    metadata = {
        "apqkit_version": apqkit.__version__,
        "candidate": dict(candidate),
        "formats": formats,
        "input": f"fp32 pixels in 0..1, (batch, {shape[0]}, {shape[1]}, {shape[2]})",
        "class_names": list(context.splits.class_names),
        **facts,
    }
    if any("fp8" in each for each in formats.values()):
        metadata["runtime"] = FLOAT8_NOTE
    path = folder / MODEL_FILE
    export_onnx(model, shape, path, metadata)
    report = {"split": "test", **check_model(path, model, context.splits.read_test())}
    write_json(folder / CHECK_FILE, report)
    return report


def _timing_csv(context: RunContext, front: ParetoSet) -> str:
    """Times the front and the references in ONNX Runtime, beside what the device model says."""
    rows: list[tuple[str, str, LayerTable]] = [
        (key, origin, networks_of(context, [candidate]))
        for key, origin, candidate in zip(
            front.members.keys, front.members.origins, front.members.candidates, strict=True
        )
    ]
    references = reference_networks(context, _all_evaluated(context))
    rows += [(key, name, table) for name, (_, table, key) in references.items()]
    latencies = _time_networks(context, [table for _, _, table in rows])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["key", "origin", "latency_ms", "measured_ms", "p10_ms", "p90_ms", "batch", "note"]
    )
    for (key, origin, table), each in zip(rows, latencies, strict=True):
        priced = float(context.device.cost(table)["latency_ms"][0])
        figures = [f"{v:.5f}" for v in (priced, each.median_ms, each.p10_ms, each.p90_ms)]
        writer.writerow([key, origin, *figures, context.config.cost.batch, each.note])
    return buffer.getvalue()


def _time_networks(context: RunContext, tables: list[LayerTable]) -> list[Latency]:
    shape = context.splits.image_shape
    images = context.calibration_images()
    paths = []
    with (
        tempfile.TemporaryDirectory() as folder,
        context.progress.task("export, timing finalists", len(tables) + 1) as advance,
    ):
        for index, table in enumerate(tables):
            model = calibrated_subnet(context.supernet, table.layers(), images)  # type: ignore[arg-type]
            paths.append(Path(folder) / f"{index}.onnx")
            export_onnx(model, shape, paths[-1], {})
            advance(1)
        latencies = time_models(paths, shape, batch=context.config.cost.batch)
        advance(1)
    return latencies


def _all_evaluated(context: RunContext) -> Evaluated:
    from apqkit.front import read_evaluated

    return read_evaluated(context.run.path / "search" / EVALUATED_FILE)


def _summary(key: str, report: Mapping[str, Any]) -> str:
    exact, fast = report["unoptimised"], report["optimised"]
    return (
        f"exported {key}: {report['file_kib']} KiB; on {report['images']} test images "
        f"ONNX Runtime differs in {exact['images_with_other_class']} classes unoptimised and "
        f"{fast['images_with_other_class']} optimised; accuracy {fast['accuracy']:.4f} against "
        f"{report['torch_accuracy']:.4f} in torch"
    )

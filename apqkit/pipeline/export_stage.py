"""Stage export: picked members as ONNX, checked on the test images; finalists timed for real."""

import csv
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from apqkit.export.check import FLOAT8_NOTE, Latency, check_model, time_models
from apqkit.export.onnx_model import export_onnx
from apqkit.front import Evaluated, ParetoSet
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.final_front import networks_of, reference_networks
from apqkit.pipeline.search_stage import EVALUATED_FILE, read_pareto_set
from apqkit.quant.qdq import Carrier
from apqkit.run import package_versions, write_atomically, write_json
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
        _, report = export_member(context, member, folder, context.config.export.carrier)
        context.say(_summary(member.keys[0], report))
    write_atomically(folder / TIMING_FILE, _timing_csv(context, front))


def export_member(
    context: RunContext, member: Evaluated, folder: Path, carrier: Carrier
) -> tuple[Path, dict[str, Any]]:
    """Exports one measured candidate with the weights it inherits; returns path and check."""
    table = networks_of(context, member.candidates)
    model = calibrated_subnet(
        context.supernet,  # type: ignore[arg-type]
        table.layers(),
        context.calibration_images(final=True),
    )
    facts = {"validation_accuracy": float(member.accuracy[0])}
    subject = ExportSubject(model, member.candidates[0], table, facts)
    return export_candidate(context, subject, folder / member.keys[0], carrier)


@dataclass(frozen=True)
class ExportSubject:
    """A network to be exported.

    Attributes:
        model: Frozen.
        candidate: Its active dims by value.
        table: Its rows.
        facts: Kept in the file's metadata beside candidate, formats, input, classes and versions.
    """

    model: nn.Module
    candidate: Mapping[str, Choice]
    table: LayerTable
    facts: Mapping[str, Any]


def export_candidate(
    context: RunContext, subject: ExportSubject, folder: Path, carrier: Carrier
) -> tuple[Path, dict[str, Any]]:
    """Writes a model and its check into a folder, and returns the model's path and the check.

    The check runs on the test images, and times the model in turn with the same network in fp32.

    Args:
        context: The run.
        subject: What is exported.
        folder: Where the files go.
        carrier: How weights under 8 bits are stored; it is part of the files' names if packed.
    """
    suffix = "" if carrier == "int8" else f"_{carrier}"
    path = _with_suffix(folder / MODEL_FILE, suffix)
    shape = context.splits.image_shape
    metadata = _metadata(context, subject, carrier)
    export_onnx(subject.model, shape, path, metadata, carrier=carrier)
    with tempfile.TemporaryDirectory() as scratch:
        twin = calibrated_subnet(
            context.supernet,  # type: ignore[arg-type]
            subject.table.in_fp32().layers(),
            context.calibration_images(),
        )
        reference = Path(scratch) / "fp32.onnx"
        export_onnx(twin, shape, reference, {})
        test = context.splits.read_test()
        batch = context.config.cost.batch
        check = check_model(path, subject.model, test, reference=reference, batch=batch)
    report = {"split": "test", "carrier": carrier, **check}
    write_json(_with_suffix(folder / CHECK_FILE, suffix), report)
    return path, report


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_stem(f"{path.stem}{suffix}")


def _metadata(context: RunContext, subject: ExportSubject, carrier: Carrier) -> dict[str, Any]:
    channels, height, width = context.splits.image_shape
    formats = layer_formats(subject.table.layers())
    metadata = {
        "versions": package_versions(),
        "candidate": dict(subject.candidate),
        "formats": formats,
        "carrier": carrier,
        "input": f"fp32 pixels in 0..1, (batch, {channels}, {height}, {width})",
        "normalisation": "none beyond 0..1: the first layer takes pixels as they are",
        "class_names": list(context.splits.class_names),
        **subject.facts,
    }
    if any("fp8" in each for each in formats.values()):
        metadata["runtime"] = FLOAT8_NOTE
    return metadata


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

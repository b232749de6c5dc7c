"""Stage report: gathers what the stages wrote and draws it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apqkit.cost import find_device
from apqkit.front import read_evaluated
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.cost_stage import TOTALS_FILE
from apqkit.pipeline.export_stage import CHECK_FILE, TIMING_FILE
from apqkit.pipeline.final_front import networks_of
from apqkit.pipeline.finetune import RESULT_FILE
from apqkit.pipeline.predictor_stage import CURVE_FILE, DECISION_FILE, SCORES_FILE
from apqkit.pipeline.sample_budget import BUDGET_FILE
from apqkit.pipeline.samples_stage import NOISE_FILE, read_samples
from apqkit.pipeline.search_stage import (
    ESTIMATED_FILE,
    EVALUATED_FILE,
    ROUNDS_FILE,
    read_pareto_set,
)
from apqkit.pipeline.supernet_stage import CHECK_FILE as SUPERNET_CHECK_FILE
from apqkit.pipeline.supernet_stage import HISTORY_FILE
from apqkit.report.data import LayerView, ReportData
from apqkit.report.page import write_report
from apqkit.sampling import layer_formats
from apqkit.types import Choice, Layer

__all__ = ["run_report_stage"]

_VIEWED = 5  # members that are shown layer by layer


def run_report_stage(context: RunContext, folder: Path) -> None:
    """Writes report/index.html and its figures."""
    with context.progress.task("report", 1) as advance:
        write_report(gather(context), folder)
        advance(1)


def gather(context: RunContext) -> ReportData:
    """Returns everything that the report shows."""
    path = context.run.path
    front = read_pareto_set(context)
    rounds = _json(path / "search" / ROUNDS_FILE)
    round_of = [each["round"] for each in rounds for _ in range(each["measured"])]
    return ReportData(
        title=f"apqkit: {context.config.data.name} on {context.config.cost.device}",
        front=front,
        evaluated=read_evaluated(path / "search" / EVALUATED_FILE),
        rounds=rounds,
        round_of=round_of,
        scores=_json(path / "predictor" / SCORES_FILE),
        learning_curve=_json(path / "predictor" / CURVE_FILE),
        samples={
            kind: np.array([each.accuracy for each in read_samples(context, kind)])
            for kind in ("fp32", "mixed")
        },
        noise=_json(path / "samples" / NOISE_FILE),
        history=pd.read_csv(path / "supernet" / HISTORY_FILE),
        check=_json(path / "supernet" / SUPERNET_CHECK_FILE),
        timing=pd.read_csv(path / "export" / TIMING_FILE, dtype={"key": str, "note": str}).fillna(
            {"note": ""}
        ),
        totals=pd.read_csv(path / "cost" / TOTALS_FILE),
        views=_views(context, front.members.candidates, front.members.keys, front.knee_key),
        stage_seconds={
            name: record.seconds
            for name, record in context.run.stages.items()
            if record.status == "done"
        },
        exports=[
            {"key": each.parent.name, **_json(each)}
            for each in sorted(path.glob(f"export/*/{Path(CHECK_FILE).stem}*.json"))
        ],
        finetuned=[_json(each) for each in sorted(path.glob(f"finetune/*/{RESULT_FILE}"))],
        facts=_facts(context),
        notes=_notes(context),
        budget=_json(path / "predictor" / BUDGET_FILE),
    )


def _views(
    context: RunContext,
    candidates: tuple[Any, ...],
    keys: tuple[str, ...],
    knee_key: str,
) -> list[LayerView]:
    """The knee first, then members spread along the front."""
    knee = keys.index(knee_key)
    spread = np.linspace(0, len(keys) - 1, _VIEWED).round().astype(int).tolist()
    chosen = list(dict.fromkeys([knee, *spread]))[:_VIEWED]
    return [_view(context, candidates[index], keys[index]) for index in chosen]


def _view(context: RunContext, candidate: dict[str, Choice], key: str) -> LayerView:
    table = networks_of(context, [candidate])
    layers = [each for each in table.layers() if each.op != "input"]
    formats = layer_formats(layers)
    latency = context.device.layer_terms(table)["latency_ms"][0]
    return LayerView(
        key=key,
        layers=[each.name for each in layers],
        formats=[formats[each.name] for each in layers],
        shapes=[_shape(each) for each in layers],
        latency_ms=latency[[each.row for each in layers]],
    )


def _shape(layer: Layer) -> str:
    size = f"{layer.in_height}x{layer.in_width}"
    if layer.op != "conv":
        return f"{layer.op}, {layer.in_channels} channels, {size}"
    kind = "depthwise" if layer.groups == layer.in_channels > 1 else "conv"
    return (
        f"{kind} {layer.kernel}x{layer.kernel}, {layer.in_channels} to {layer.out_channels}, "
        f"{size}, stride {layer.stride}"
    )


def _facts(context: RunContext) -> dict[str, Any]:
    manifest = _json(context.run.path / "manifest.json")
    return {
        "device": context.config.cost.device,
        "batch": context.config.cost.batch,
        "seed": context.config.seed,
        "threads": context.config.threads,
        **{f"limit {k}": v for k, v in context.config.search.limits.items()},
        **manifest["machine"],
        **manifest["versions"],
    }


def _estimate(layer: str, estimate: Mapping[str, float]) -> str:
    price, error = estimate["latency_ms"], estimate["relative_error"]
    return f"{layer} at {price:.4g} ms, give or take {error:.0%}"


def _notes(context: RunContext) -> list[str]:
    config = context.config
    estimated = _json(context.run.path / "search" / ESTIMATED_FILE)
    decision = _json(context.run.path / "predictor" / DECISION_FILE)
    notes = [
        f"latency_ms comes from {find_device(config.cost.device).says}; batch {config.cost.batch}",
        f"{len(estimated)} distinct layers were missing there and estimated"
        + "".join(f"; {_estimate(layer, estimated[layer])}" for layer in list(estimated)[:3]),
        "proxies that help the predictor: " + (", ".join(decision["used"]) or "none"),
        "bit operations are MACs x weight bits x input bits, first and last layers included",
    ]
    if config.cost.device == "host":
        notes.append(
            "on this runtime formats under 8 bits run in int8 carriers: they buy size, not time"
        )
    if context.splits.validation.corrupted.any():
        notes.append(
            "accuracy is over plain images and their fixed corrupted copies together; "
            "evaluated.csv and pareto.csv show both apart"
        )
    return notes


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

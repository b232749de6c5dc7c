"""The stages in order, and what each depends on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apqkit.pipeline.context import RunContext, flattened
from apqkit.pipeline.cost_stage import run_cost_stage
from apqkit.pipeline.export_stage import run_export_stage
from apqkit.pipeline.predictor_stage import run_predictor_stage
from apqkit.pipeline.report_stage import run_report_stage
from apqkit.pipeline.samples_stage import run_samples_stage
from apqkit.pipeline.search_stage import run_search_stage
from apqkit.pipeline.supernet_stage import run_supernet_stage
from apqkit.run import fingerprint_of

__all__ = ["STAGES", "Stage", "stage_inputs", "with_followers"]


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: Also its directory.
        sections: Keys of the configuration that it depends on; dotted for a part of a section.
        upstream: Stages whose results it reads.
        run: Does the work into a directory.
        schema: Raised when the same inputs no longer make the same files.
    """

    name: str
    sections: tuple[str, ...]
    upstream: tuple[str, ...]
    run: Callable[[RunContext, Path], None]
    schema: int = 1


STAGES: tuple[Stage, ...] = (
    Stage("cost", ("plugins", "seed", "data", "space", "cost"), (), run_cost_stage),
    Stage(
        "supernet", ("plugins", "seed", "threads", "data", "space", "supernet"), (),
        run_supernet_stage,
    ),
    Stage("samples", ("samples",), ("cost", "supernet"), run_samples_stage),
    Stage("predictor", ("predictor", "transfer"), ("samples",), run_predictor_stage, schema=2),
    Stage("search", ("search",), ("predictor",), run_search_stage),
    Stage("export", ("export",), ("search",), run_export_stage),
    Stage("report", (), ("export",), run_report_stage),
)  # fmt: skip
"""Every stage of a run. Cost comes first: an impossible limit should not cost a training."""


def with_followers(name: str) -> list[str]:
    """Returns a stage and all that build on its results, in order."""
    found = [name]
    for stage in STAGES:
        if set(stage.upstream) & set(found):
            found.append(stage.name)
    return found


def stage_inputs(context: RunContext, stage: Stage) -> dict[str, Any]:
    """Returns everything that a stage depends on, by dotted name, as plain JSON values."""
    tree = context.config.model_dump(mode="json")
    inputs: dict[str, Any] = {"schema": stage.schema}
    for section in stage.sections:
        value: Any = tree
        for key in section.split("."):
            value = value[key]
        inputs |= flattened({section: value}, "")
    if "data" in stage.sections:
        inputs["data.images"] = context.splits.fingerprint
        inputs.pop("data.path", None)  # where the file lies does not matter, what it holds does
    by_name = {each.name: each for each in STAGES}
    for name in stage.upstream:
        inputs[f"upstream.{name}"] = fingerprint_of(stage_inputs(context, by_name[name]))
    return inputs

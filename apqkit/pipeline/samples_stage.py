"""Stage samples: measured (candidate, accuracy) pairs, first in fp32, then in mixed precision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apqkit.pipeline.context import RunContext
from apqkit.run import read_lines, write_json
from apqkit.sampling import (
    Kind,
    collect_samples,
    draw_stratified,
    paired_noise,
    sample_of_json,
    sample_picks,
    unpack_correct,
)
from apqkit.types import FloatArray, IntArray, Sample

__all__ = ["NOISE_FILE", "read_samples", "run_samples_stage"]

NOISE_FILE = "noise.json"
_STREAMS: dict[Kind, int] = {"fp32": 11, "mixed": 12}


def run_samples_stage(context: RunContext, folder: Path) -> None:
    """Measures the samples that are missing and compares their spread with the noise."""
    samples = context.config.samples
    noise: dict[str, dict[str, float]] = {}
    if not samples.fp32:
        context.say("no samples: proxies alone propose the first candidates")
        write_json(folder / NOISE_FILE, noise)
        return
    fp32_picks = None
    for kind, count in (("fp32", samples.fp32), ("mixed", samples.mixed)):
        collected = _collect(context, folder, kind, count, fp32_picks)  # type: ignore[arg-type]
        fp32_picks = sample_picks(context.space, collected)
        noise[kind] = noise_of(context, collected)
        context.say(
            f"{kind} samples: accuracy {noise[kind]['mean']:.3f}, standard deviation "
            f"{noise[kind]['deviation']:.4f} against paired noise {noise[kind]['noise']:.4f}"
        )
    write_json(folder / NOISE_FILE, noise)


def read_samples(context: RunContext, kind: Kind) -> list[Sample]:
    """Returns the samples of one kind from the run's file; none where none are asked for."""
    if not getattr(context.config.samples, kind):
        return []
    path = context.run.path / "samples" / f"{kind}.jsonl"
    cure = "use --redo samples"
    return [sample_of_json(row, path, cure) for row in read_lines(path, cure)]


def noise_of(context: RunContext, samples: Sequence[Sample]) -> dict[str, float]:
    """Returns how samples spread and how much of it the validation images explain."""
    images = context.splits.validation
    correct = unpack_correct([each.correct for each in samples], len(images))
    accuracy = correct.mean(axis=1)
    noise = paired_noise(correct, images.base)
    return {
        "samples": len(samples),
        "mean": float(accuracy.mean()),
        "deviation": float(accuracy.std(ddof=1)),
        "noise": noise,
        "ratio": float(accuracy.std(ddof=1) / noise) if noise else float("inf"),
        "seconds": float(sum(each.seconds for each in samples)),
    }


def _collect(
    context: RunContext, folder: Path, kind: Kind, count: int, without: IntArray | None
) -> list[Sample]:
    config = context.config
    rng = np.random.default_rng([config.seed, _STREAMS[kind]])

    def cost(picks: IntArray) -> FloatArray:
        costs = context.costs(picks)
        if kind == "fp32":
            return costs["macs"]
        latency = costs["latency_ms"]
        return costs["bops"] if np.isnan(latency).any() else latency

    picks = draw_stratified(context.space, count, cost, rng, kind=kind, without=without)
    return collect_samples(
        folder / f"{kind}.jsonl",
        kind,
        picks,
        context.space,
        context.measurer(context.splits.validation),
        seed=config.seed,
        progress=context.progress,
    )

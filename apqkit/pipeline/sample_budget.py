"""Advice on what a further budget of samples should buy. It rests on timings: no stage acts on it.

Both accountings of transfer stand side by side: with the fp32 samples for free, because they are
there, and at equal cost, where what they took would have bought mixed samples.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from apqkit.pipeline.context import RunContext
from apqkit.pipeline.ranking import fp32_rows, measured_samples, mixed_rows
from apqkit.pipeline.samples_stage import read_samples
from apqkit.prediction import Rows
from apqkit.run import write_json
from predictors import (
    BudgetSplit,
    PilotRows,
    RidgePredictor,
    TransferPredictor,
    score_pilot,
    split_budget,
)

__all__ = ["BUDGET_FILE", "advise_budget", "seconds_a_sample", "write_budget"]

BUDGET_FILE = "budget.json"
_SHORTEST_S = 1e-4  # samples keep their seconds to four decimals


def write_budget(context: RunContext, folder: Path) -> None:
    """Writes what a further budget should buy and logs it; null where there are no samples."""
    advice = None
    if context.config.samples.fp32:
        fp32, mixed = fp32_rows(context), mixed_rows(context, measured_samples(context, "mixed"))
        advice = advise_budget(fp32, mixed, seconds_a_sample(context), seed=context.config.seed)
        context.say(f"a further {advice['budget_s']:.3g} s of samples: {advice['text']}")
    write_json(folder / BUDGET_FILE, advice)


def seconds_a_sample(context: RunContext) -> dict[str, float]:
    """Returns the median time of one sample of each kind."""
    return {
        kind: float(np.median([each.seconds for each in read_samples(context, kind)]))
        for kind in ("fp32", "mixed")
    }


def advise_budget(
    fp32: Rows, mixed: Rows, seconds: Mapping[str, float], *, seed: int
) -> dict[str, Any]:
    """Returns how to spend as much again as the samples at hand have cost.

    Ridge regression stands in for the run's predictor: what is asked is which kind of sample pays.

    Args:
        fp32: fp32 samples.
        mixed: Mixed samples; the columns of fp32 samples come first.
        seconds: Of one sample of each kind.
        seed: Of the sub-samples that the advice rests on.

    Returns:
        ``seconds_a_sample``, ``samples`` at hand by kind, ``budget_s``, ``split`` (the fields of
        :class:`predictors.BudgetSplit`, None where there are too few samples to fit anything),
        ``can_tell`` (whether the options differ by more than the error of the fit) and ``text``.
    """
    samples = {"fp32": len(fp32.accuracy), "mixed": len(mixed.accuracy)}
    costs = {kind: max(seconds[kind], _SHORTEST_S) for kind in samples}
    budget_s = sum(samples[kind] * costs[kind] for kind in samples)
    advice = {"seconds_a_sample": costs, "samples": samples, "budget_s": budget_s}
    pilot = PilotRows(fp32.features, fp32.accuracy, mixed.features, mixed.accuracy, mixed.groups)
    ridge = RidgePredictor()
    try:
        scores = score_pilot(pilot, ridge, TransferPredictor(None, ridge), seed=seed)
    except ValueError as fault:
        text = f"too few samples to tell what to measure: {fault}"
        return {**advice, "split": None, "can_tell": False, "text": text}
    split = split_budget(costs["fp32"], costs["mixed"], budget_s, scores)
    can_tell = _largest_difference(split) > split.error
    text = _verdict(split, samples, can_tell=can_tell)
    return {**advice, "split": asdict(split), "can_tell": can_tell, "text": text}


def _largest_difference(split: BudgetSplit) -> float:
    """Returns by how much the ways to spend the budget differ in the tau that they promise."""
    taus = (split.tau, split.tau_mixed_only, split.tau_scratch, split.tau_scratch_at_equal_cost)
    return max(taus) - min(taus)


def _verdict(split: BudgetSplit, samples: Mapping[str, int], *, can_tell: bool) -> str:
    if can_tell:
        return (
            f"{split.text}; differences under {split.error:.3f}, the error of the fitted curve, "
            f"tell nothing"
        )
    return (
        f"{samples['fp32']} fp32 and {samples['mixed']} mixed samples are too few to tell what to "
        f"measure: the options differ by {_largest_difference(split):.3f} at most in expected "
        f"tau, and the fitted curve errs by {split.error:.3f}"
    )

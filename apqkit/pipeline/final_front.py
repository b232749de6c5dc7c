"""The final measurement, then the test images, of the front and the references only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apqkit.errors import LimitError
from apqkit.front import Evaluated
from apqkit.pipeline.context import RunContext, candidate_key
from apqkit.search.pareto import (
    constrained_ranks,
    hypervolume_2d,
    knee,
    losses_of,
    nondominated,
    violations_of,
)
from apqkit.search.study import MeasuredTrial
from apqkit.spaces.base import largest_picks, picks_of_values, smallest_picks
from apqkit.spaces.draws import with_format
from apqkit.training.evaluate import accuracy_parts, calibrated_subnet, evaluate
from apqkit.types import Choice, FloatArray, IntArray, LayerTable, Space

__all__ = [
    "UNIFORM_INT4",
    "evaluated_trials",
    "final_front",
    "measure_references",
    "networks_of",
    "rounds_report",
]

UNIFORM_INT4 = "uniform int4/int4"
"""Origin of candidates whose searched formats are all int4."""

_FINALISTS = 24  # at least, where so many are within the limits; the whole measured front always


def evaluated_trials(context: RunContext, trials: Sequence[MeasuredTrial]) -> Evaluated:
    """Returns the study's trials as arrays, in the order in which they were measured."""
    picks = np.concatenate(
        [picks_of_values(context.space.dims, each.candidate) for each in trials]
    )
    parts = {name: [each.parts[name] for each in trials] for name in trials[0].parts}
    return Evaluated(
        keys=tuple(each.key for each in trials),
        origins=tuple(each.origin for each in trials),
        candidates=tuple(context.space.describe(picks)),
        accuracy=np.array([each.accuracy for each in trials]),
        predicted=np.array([each.predicted for each in trials]),
        predicted_low=np.array([each.predicted_low for each in trials]),
        predicted_high=np.array([each.predicted_high for each in trials]),
        test_accuracy=np.full(len(trials), np.nan),
        parts={f"validation_{name}": np.array(values) for name, values in parts.items()},
        costs=context.costs(picks),
    )


def rounds_report(context: RunContext, trials: Sequence[MeasuredTrial]) -> list[dict[str, Any]]:
    """Returns what each round measured, how well it was predicted and what the front gained."""
    config = context.config.search
    figures = {name: np.array([each.costs[name] for each in trials]) for name in trials[0].costs}
    figures["accuracy"] = np.array([each.accuracy for each in trials])
    losses = losses_of(figures, config.objectives)
    feasible = violations_of(figures, config.limits) <= 0
    numbers = np.array([each.round_number for each in trials])
    report = []
    for number in sorted(set(numbers.tolist())):
        rows = [each for each in trials if each.round_number == number]
        guessed = [each for each in rows if np.isfinite(each.predicted)]
        errors = np.array([each.accuracy - each.predicted for each in guessed])
        inside = [each.predicted_low <= each.accuracy <= each.predicted_high for each in guessed]
        report.append(
            {
                "round": number,
                "measured": len(rows),
                "bias": float(errors.mean()) if guessed else None,
                "rmse": float(np.sqrt(np.mean(errors**2))) if guessed else None,
                "share_inside_interval": float(np.mean(inside)) if guessed else None,
                "hypervolume": _hypervolume(losses, feasible & (numbers <= number)),
            }
        )
    return report


def final_front(context: RunContext, evaluated: Evaluated) -> tuple[Evaluated, str]:
    """Measures the best candidates again, on more calibration images, then on the test images.

    Returns:
        The front of the second measurement, most accurate first, and the key of its knee.

    Raises:
        LimitError: No measured candidate is within the limits, at first or measured again.
    """
    config = context.config.search
    violations = violations_of(evaluated.figures, config.limits)
    if not (violations <= 0).any():
        raise LimitError(_unmet(evaluated, config.limits))
    losses = losses_of(evaluated.figures, config.objectives)
    finalists = _measured_again(
        context, evaluated.take(_finalists(losses, violations)), "validation"
    )
    feasible = violations_of(finalists.figures, config.limits) <= 0
    if not feasible.any():
        raise LimitError(_unmet(finalists, config.limits))
    losses = losses_of(finalists.figures, config.objectives)
    losses[~feasible] = np.inf
    front = np.flatnonzero(nondominated(losses))
    front = front[np.lexsort((front, -finalists.accuracy[front]))]
    members = _measured_again(context, finalists.take(front), "test")
    return members, members.keys[knee(losses[front])]


def _finalists(losses: FloatArray, violations: FloatArray) -> IntArray:
    """Rows of the measured front, filled up from the fronts behind it; all within the limits."""
    ranks = constrained_ranks(losses, violations)
    order = np.argsort(ranks, kind="stable")
    order = order[violations[order] <= 0]
    count = max(_FINALISTS, int((ranks[order] == ranks[order[0]]).sum()))
    return order[:count]


def measure_references(context: RunContext, evaluated: Evaluated) -> Evaluated:
    """Returns the networks that give the front its scale, measured like its members."""
    space = context.space
    networks = reference_networks(context, evaluated)
    rows = [
        {
            "validation": _measure(context, table, "validation"),
            "test": _measure(context, table, "test"),
            "costs": {name: float(v[0]) for name, v in context.cost_of(table).items()},
        }
        for _, table, _ in networks.values()
    ]
    nan = np.full(len(rows), np.nan)
    parts = {
        f"{split}_{name}": np.array([row[split][name] for row in rows])
        for split in ("validation", "test")
        for name in rows[0][split]
        if name != "accuracy"
    }
    return Evaluated(
        keys=tuple(key for _, _, key in networks.values()),
        origins=tuple(networks),
        candidates=tuple(
            _described(space, picks, own_formats="int4" in name)
            for name, (picks, _, _) in networks.items()
        ),
        accuracy=np.array([row["validation"]["accuracy"] for row in rows]),
        predicted=nan,
        predicted_low=nan,
        predicted_high=nan,
        test_accuracy=np.array([row["test"]["accuracy"] for row in rows]),
        parts=parts,
        costs={name: np.array([row["costs"][name] for row in rows]) for name in rows[0]["costs"]},
    )


def reference_networks(
    context: RunContext, evaluated: Evaluated
) -> dict[str, tuple[IntArray, LayerTable, str]]:
    """Returns picks, network and key of each reference, by name."""
    space = context.space
    largest, smallest = largest_picks(space.dims), smallest_picks(space.dims)
    networks = {
        "largest, fp32": (largest, space.network(largest).in_fp32()),
        "largest, int8": (largest, space.network(largest).with_formats("int8", "int8")),
        "smallest, int8": (smallest, space.network(smallest).with_formats("int8", "int8")),
    }
    best = _best_uniform_int4(context, evaluated)
    if best is None:
        middle = with_format(space, largest, "int4", "int4")
        networks["largest, int4"] = (middle, space.network(middle))
    else:
        networks["best uniform int4"] = (best, space.network(best))
    named = {}
    for name, (picks, table) in networks.items():
        described = space.describe(picks)[0]
        key = candidate_key(described) if "int4" in name else name.replace(", ", "-")
        named[name] = (picks, table, key)
    return named


def networks_of(context: RunContext, candidates: Sequence[Mapping[str, Choice]]) -> LayerTable:
    """Returns the networks of candidates given by value."""
    picks = np.concatenate([picks_of_values(context.space.dims, each) for each in candidates])
    return context.space.network(picks)


def _described(space: Space, picks: IntArray, *, own_formats: bool) -> dict[str, Choice]:
    """Returns a reference by value; one whose formats were replaced has no precision dims."""
    values = space.describe(picks)[0]
    quant = {dim.name for dim in space.dims if dim.role == "quant"}
    return {name: v for name, v in values.items() if own_formats or name not in quant}


def _best_uniform_int4(context: RunContext, evaluated: Evaluated) -> IntArray | None:
    """(1, k) the most accurate measured candidate with int4 throughout, if any was measured."""
    uniform = np.flatnonzero([origin == UNIFORM_INT4 for origin in evaluated.origins])
    if not len(uniform):
        return None
    rows = evaluated.take(uniform)
    violations = violations_of(rows.figures, context.config.search.limits)
    best = int(np.lexsort((-rows.accuracy, violations))[0])
    return picks_of_values(context.space.dims, rows.candidates[best])


def _measured_again(context: RunContext, rows: Evaluated, split: str) -> Evaluated:
    table = networks_of(context, rows.candidates)
    with context.progress.task(f"search, final measurement on {split}", len(rows)) as advance:
        measured = []
        for index in range(len(rows)):
            measured.append(_measure(context, table.take(slice(index, index + 1)), split))
            advance(1)
    accuracy = np.array([each["accuracy"] for each in measured])
    parts = {
        f"{split}_{name}": np.array([each[name] for each in measured])
        for name in measured[0]
        if name != "accuracy"
    }
    changed: dict[str, Any] = {"parts": {**rows.parts, **parts}}
    changed["accuracy" if split == "validation" else "test_accuracy"] = accuracy
    return Evaluated(**{**vars(rows), **changed})


def _measure(context: RunContext, table: LayerTable, split: str) -> dict[str, float]:
    """Returns accuracy of one network, whole and in parts, with the final calibration images."""
    splits = context.splits
    images = splits.validation if split == "validation" else splits.read_test()
    model = calibrated_subnet(
        context.supernet,  # type: ignore[arg-type]
        table.layers(),
        context.calibration_images(final=True),
    )
    correct = evaluate(model, images)
    return {"accuracy": float(correct.mean()), **accuracy_parts(correct, images)}


def _hypervolume(losses: FloatArray, rows: np.ndarray) -> float:
    """Area that the measured front dominates, objectives scaled to the range of all trials."""
    finite = np.isfinite(losses).all(axis=1)
    if losses.shape[1] != 2 or not (rows & finite).any():
        return float("nan")
    low, high = losses[finite].min(axis=0), losses[finite].max(axis=0)
    scaled = (losses - low) / np.where(high > low, high - low, 1.0)
    return hypervolume_2d(scaled[rows & finite], np.array([1.1, 1.1]))


def _unmet(evaluated: Evaluated, limits: Mapping[str, float]) -> str:
    figures = evaluated.figures
    best = {
        name: (figures[name].max() if name == "accuracy" else np.nanmin(figures[name]))
        for name in limits
    }
    listed = ", ".join(
        f"{name} {'>=' if name == 'accuracy' else '<='} {limits[name]:g} (best {value:.4g})"
        for name, value in best.items()
    )
    return f"no measured candidate meets all of search.limits: {listed}"

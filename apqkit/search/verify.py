"""The loop that measures proposals: rounds of propose, measure as trials, refit."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from apqkit.errors import RunError
from apqkit.search.strategies import Proposal
from apqkit.search.study import MeasuredTrial, add_trial, read_trials
from apqkit.types import Choice, FloatArray, IntArray, Progress, Space

__all__ = ["RoundPlan", "all_dims_by_value", "round_quotas", "verify"]


@dataclass(frozen=True)
class RoundPlan:
    """Candidates of one round with what was predicted of them.

    Attributes:
        proposal: Candidates and origins.
        keys: (n,) short names.
        predicted: (n,) accuracy; NaN where only an order was predicted.
        half_width: Of the prediction interval.
        costs: {metric: (n,)}.
    """

    proposal: Proposal
    keys: Sequence[str]
    predicted: FloatArray
    half_width: float
    costs: Mapping[str, FloatArray]


PlanRound = Callable[[int, int, list[MeasuredTrial]], RoundPlan]
"""(round, how many, trials of earlier rounds) -> plan; the same whenever it is asked."""

Measure = Callable[[IntArray], tuple[float, dict[str, float]]]
"""(k,) picks -> accuracy and accuracy over parts of the images."""


def round_quotas(budget: int, rounds: int) -> list[int]:
    """Returns how many candidates each round measures; they add up to the budget.

    >>> round_quotas(10, 4)
    [3, 3, 2, 2]
    """
    rounds = min(rounds, budget)
    return [budget // rounds + (each < budget % rounds) for each in range(rounds)]


def verify(
    study: optuna.Study,
    space: Space,
    quotas: Sequence[int],
    plan_round: PlanRound,
    measure: Measure,
    *,
    objectives: Mapping[str, str],
    limits: Mapping[str, float],
    progress: Progress,
) -> list[MeasuredTrial]:
    """Measures proposals round by round and returns all trials of the study.

    A round is planned from the trials of the rounds before it alone, so a run that was killed in
    the middle of one plans it again, finds what is measured already and goes on.

    Args:
        study: Where trials go.
        space: Whose candidates they are.
        quotas: Candidates a round, at most.
        plan_round: Proposes a round.
        measure: Measures one candidate.
        objectives: Direction of each metric, in the study's order.
        limits: The most that each cost may be; for accuracy the least.
        progress: Shows one step a candidate.

    Raises:
        RunError: The study holds other trials than this plan makes.
    """
    trials = read_trials(study)
    counts = Counter(each.round_number for each in trials)
    fits = all(n < len(quotas) and count <= quotas[n] for n, count in counts.items())
    _require_own(fits, study)
    with progress.task("search, measuring proposals", sum(quotas)) as advance:
        for number, quota in enumerate(quotas):
            done = [each for each in trials if each.round_number == number]
            advance(len(done))
            if len(done) >= quota:
                continue
            earlier = [each for each in trials if each.round_number < number]
            plan = plan_round(number, quota, earlier)
            _require_own([each.key for each in done] == list(plan.keys[: len(done)]), study)
            described = all_dims_by_value(space, plan.proposal.picks)
            for index in range(len(done), min(quota, len(plan.keys))):
                accuracy, parts = measure(plan.proposal.picks[index])
                trial = _trial(plan, index, number, described[index], accuracy, parts)
                figures = {**trial.costs, "accuracy": accuracy}
                add_trial(
                    study,
                    space.dims,
                    trial,
                    [figures[name] for name in objectives],
                    _excesses(figures, limits),
                )
                trials.append(trial)
                advance(1)
    return trials


def all_dims_by_value(space: Space, picks: IntArray) -> list[dict[str, Choice]]:
    """Returns every dim of each candidate by value, inactive ones at their first choice."""
    return [
        {dim.name: dim.choices[index] for dim, index in zip(space.dims, row, strict=True)}
        for row in picks.tolist()
    ]


def _trial(
    plan: RoundPlan,
    index: int,
    number: int,
    candidate: Mapping[str, Choice],
    accuracy: float,
    parts: Mapping[str, float],
) -> MeasuredTrial:
    predicted = float(plan.predicted[index])
    return MeasuredTrial(
        candidate=candidate,
        key=plan.keys[index],
        round_number=number,
        origin=plan.proposal.origins[index],
        accuracy=accuracy,
        parts=parts,
        predicted=predicted,
        predicted_low=float(np.clip(predicted - plan.half_width, 0.0, 1.0)),
        predicted_high=float(np.clip(predicted + plan.half_width, 0.0, 1.0)),
        costs={name: float(values[index]) for name, values in plan.costs.items()},
    )


def _excesses(figures: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    excesses = {
        name: limit - figures[name] if name == "accuracy" else figures[name] - limit
        for name, limit in limits.items()
    }
    return {name: 1e9 if np.isnan(value) else value for name, value in excesses.items()}


def _require_own(holds: bool, study: optuna.Study) -> None:
    if not holds:
        raise RunError(
            f"study {study.study_name!r} holds other candidates than this run proposes: "
            f"use --redo search, or another storage"
        )

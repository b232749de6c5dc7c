"""Optuna's own NSGA-II on predicted scores, for comparison."""

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from apqkit.search.problem import Problem
from apqkit.types import IntArray

__all__ = ["optuna_nsga2"]

_TRIALS_A_GENERATION = 50  # Optuna's bookkeeping takes milliseconds a trial
_GENERATIONS = 20  # unless a number of evaluations is asked for


def optuna_nsga2(problem: Problem, seed: int, *, evaluations: int | None = None) -> IntArray:
    """(n, k) the candidates that Optuna's NSGAIISampler scored, in canonical form and in order.

    Every dim is suggested always: the sampler crosses over only parameters that all trials have.

    Args:
        problem: Space, scores, objectives and limits.
        seed: Of the sampler.
        evaluations: Trials; None for a thousand.
    """
    if evaluations is None:
        evaluations = _GENERATIONS * _TRIALS_A_GENERATION
    space = problem.space
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sampler = optuna.samplers.NSGAIISampler(population_size=_TRIALS_A_GENERATION, seed=seed)
        study = optuna.create_study(
            directions=["minimize"] * len(problem.objectives), sampler=sampler
        )
        distributions = {
            dim.name: CategoricalDistribution(list(range(len(dim.choices)))) for dim in space.dims
        }
        scored = []
        for start in range(0, evaluations, _TRIALS_A_GENERATION):
            count = min(_TRIALS_A_GENERATION, evaluations - start)
            trials = [study.ask(distributions) for _ in range(count)]  # type: ignore[arg-type]
            picks = np.array([[trial.params[dim.name] for dim in space.dims] for trial in trials])
            picks = space.repair(picks)
            losses, violations = problem.judged(picks)
            for trial, values, violation in zip(trials, losses, violations, strict=True):
                trial.set_constraint("limits", float(min(violation, 1e9)))
                study.tell(trial, [float(min(each, 1e9)) for each in values])
            scored.append(picks)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return np.concatenate(scored)

"""Optuna's own NSGA-II on predicted scores, for comparison."""

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from apqkit.search.problem import Problem
from apqkit.types import IntArray

__all__ = ["optuna_nsga2"]

_TRIALS_A_GENERATION = 50  # Optuna's bookkeeping takes milliseconds a trial
_GENERATIONS = 20


def optuna_nsga2(problem: Problem, seed: int) -> IntArray:
    """(n, k) the candidates that Optuna's NSGAIISampler scored, in canonical form.

    Every dim is suggested always: the sampler crosses over only parameters that all trials have.
    """
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
        for _ in range(_GENERATIONS):
            trials = [study.ask(distributions) for _ in range(_TRIALS_A_GENERATION)]  # type: ignore[arg-type]
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

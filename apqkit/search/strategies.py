"""How candidates are proposed: joint evolution, Optuna's NSGA-II, random; and the seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from apqkit.search.evolution import evolve
from apqkit.search.pareto import constrained_ranks, pick_diverse
from apqkit.search.problem import Problem
from apqkit.spaces.base import smallest_picks
from apqkit.spaces.draws import draw_hierarchical, with_format
from apqkit.types import FloatArray, IntArray

__all__ = ["STRATEGIES", "Known", "Proposal", "Propose", "seed_proposals"]


@dataclass(frozen=True)
class Known:
    """What has been measured so far.

    Attributes:
        picks: (j, k) measured candidates.
        losses: (j, m) their measured objectives as losses.
        violations: (j,) how far they exceed limits.
    """

    picks: IntArray
    losses: FloatArray
    violations: FloatArray

    @property
    def feasible_losses(self) -> FloatArray:
        """(i, m) losses of those within limits."""
        return self.losses[self.violations <= 0]


@dataclass(frozen=True)
class Proposal:
    """Candidates to be measured next.

    Attributes:
        picks: (n, k).
        origins: (n,) rule that proposed each.
    """

    picks: IntArray
    origins: tuple[str, ...]


Propose = Callable[[Problem, Known, int, np.random.Generator], Proposal]


def propose_evolution(
    problem: Problem, known: Known, count: int, rng: np.random.Generator
) -> Proposal:
    """Evolves on predictions from the measured elite and proposes what improves the front most."""
    elite = known.picks[_elite(known, problem.settings.population // 2)]
    found = evolve(problem, elite, rng)
    return _select(problem, found.picks, known, count, rng, "evolution")


def propose_nsga2(
    problem: Problem, known: Known, count: int, rng: np.random.Generator
) -> Proposal:
    """Runs Optuna's NSGA-II on predictions, for as many candidates as its bookkeeping allows."""
    from apqkit.search.optuna_nsga2 import optuna_nsga2

    seed = int(rng.integers(2**31))
    return _select(problem, optuna_nsga2(problem, seed), known, count, rng, "nsga2")


def propose_random(
    problem: Problem, known: Known, count: int, rng: np.random.Generator
) -> Proposal:
    """Draws candidates within limits; predictions are not asked."""
    drawn = draw_hierarchical(problem.space, 40 * count, rng)
    _, violations = problem.judged(drawn)
    order = np.argsort(violations, kind="stable")
    picks = _new(drawn[order], known.picks)[:count]
    return Proposal(picks, ("random",) * len(picks))


STRATEGIES: dict[str, Propose] = {
    "evolution": propose_evolution,
    "nsga2": propose_nsga2,
    "random": propose_random,
}
"""Search strategies by the name that ``search.strategy`` takes."""


def seed_proposals(
    problem: Problem,
    fp32_problem: Problem,
    formats: Sequence[tuple[str, str]],
    count: int,
    rng: np.random.Generator,
) -> Proposal:
    """Returns the solutions that a joint search must not lose to.

    The smallest architecture in each of ``formats``; about half are architectures searched under
    one of these formats throughout; the rest are sequential: an architecture searched in fp32,
    then formats chosen for it under the limits.

    Args:
        problem: The joint problem.
        fp32_problem: Scores the same candidates in fp32; its costs may be MACs.
        formats: (weight, activation) formats of the uniform solutions.
        count: About so many candidates.
        rng: Source of all draws.
    """
    quick = replace(problem.settings, generations=max(5, problem.settings.generations // 3))
    problem, fp32_problem = replace(problem, settings=quick), replace(fp32_problem, settings=quick)
    per_format = max(1, count // 2 // len(formats))
    parts, origins = [], []
    for weights, activations in formats:
        smallest = with_format(
            problem.space, smallest_picks(problem.space.dims), weights, activations
        )
        searched = _uniform(problem, weights, activations, per_format, rng)
        picks = np.concatenate([smallest, searched])
        parts.append(picks)
        origins += [f"uniform {weights}/{activations}"] * len(picks)
    sequential = _sequential(problem, fp32_problem, count - sum(map(len, parts)), rng)
    parts.append(sequential)
    origins += ["sequential"] * len(sequential)
    picks = np.concatenate(parts)
    _, first = np.unique(picks, axis=0, return_index=True)
    kept = np.sort(first)
    return Proposal(picks[kept], tuple(origins[index] for index in kept))


def _uniform(
    problem: Problem, weights: str, activations: str, count: int, rng: np.random.Generator
) -> IntArray:
    start = with_format(
        problem.space, draw_hierarchical(problem.space, 50, rng), weights, activations
    )
    found = evolve(problem, start, rng, problem.dims_of("arch", "prune"))
    return found.picks[pick_diverse(found.losses, found.losses[:0], count)]


def _sequential(
    problem: Problem, fp32_problem: Problem, count: int, rng: np.random.Generator
) -> IntArray:
    """Architectures first, formats second; several budgets of arithmetic, since none is best."""
    if count < 1:
        return np.zeros((0, len(problem.space.dims)), dtype=np.int64)
    widest = with_format(problem.space, draw_hierarchical(problem.space, 50, rng), "", "")
    found = evolve(fp32_problem, widest, rng, problem.dims_of("arch", "prune"))
    architectures = found.picks[
        pick_diverse(found.losses, found.losses[:0], max(1, -(-count // 2)))
    ]
    chosen = []
    for architecture in architectures:
        allocated = evolve(problem, architecture[None], rng, problem.dims_of("quant"))
        chosen.append(allocated.picks[pick_diverse(allocated.losses, allocated.losses[:0], 2)])
    return np.concatenate(chosen)[:count]


def _select(
    problem: Problem,
    picks: IntArray,
    known: Known,
    count: int,
    rng: np.random.Generator,
    origin: str,
) -> Proposal:
    picks = _new(picks, known.picks)
    losses, violations = problem.judged(picks) if len(picks) else (known.losses[:0], np.zeros(0))
    feasible = np.flatnonzero(violations <= 0)
    best = picks[feasible[pick_diverse(losses[feasible], known.feasible_losses, count)]]
    missing = count - len(best)
    if missing <= 0:
        return Proposal(best, (origin,) * len(best))
    fill = propose_random(problem, replace_picks(known, best), missing, rng)
    return Proposal(np.concatenate([best, fill.picks]), (origin,) * len(best) + fill.origins)


def replace_picks(known: Known, more: IntArray) -> Known:
    """Returns what is known with more candidates that must not be proposed again."""
    return replace(known, picks=np.concatenate([known.picks, more]))


def _elite(known: Known, count: int) -> IntArray:
    """Indices of measured candidates, the best fronts first."""
    return np.argsort(constrained_ranks(known.losses, known.violations), kind="stable")[:count]


def _new(picks: IntArray, known: IntArray) -> IntArray:
    """Returns the distinct rows that are not known, in order."""
    seen = set(map(bytes, known.astype(np.int16)))
    fresh = []
    for index, row in enumerate(picks.astype(np.int16)):
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            fresh.append(index)
    return picks[fresh]

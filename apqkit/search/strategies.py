"""How candidates are proposed: joint evolution, Optuna's NSGA-II, random; and the seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from apqkit.search.evolution import Evolved, Settle, evolve_problem
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
        picks: (i, k) candidates that must not be proposed again; the first j were measured.
        losses: (j, m) measured objectives as losses.
        violations: (j,) how far they exceed limits.
    """

    picks: IntArray
    losses: FloatArray
    violations: FloatArray

    @property
    def feasible_losses(self) -> FloatArray:
        """(f, m) losses of those within limits."""
        return self.losses[self.violations <= 0]

    def with_picks(self, more: IntArray) -> "Known":
        """Returns the same with more candidates that must not be proposed again."""
        return replace(self, picks=np.concatenate([self.picks, more]))


@dataclass(frozen=True)
class Proposal:
    """Candidates to be measured next.

    Attributes:
        picks: (n, k).
        origins: (n,) rule that proposed each.
    """

    picks: IntArray
    origins: tuple[str, ...]

    def joined(self, other: "Proposal") -> "Proposal":
        """Returns these candidates followed by others."""
        picks = np.concatenate([self.picks, other.picks])
        return Proposal(picks, self.origins + other.origins)


Propose = Callable[[Problem, Known, int, np.random.Generator], Proposal]


def propose_evolution(
    problem: Problem, known: Known, count: int, rng: np.random.Generator
) -> Proposal:
    """Evolves on predictions from the measured elite and proposes what improves the front most."""
    elite = known.picks[_elite(known, problem.settings.population // 2)]
    found = evolve_problem(problem, elite, _seed(rng))
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
    order = order[np.isfinite(violations[order])]
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

    First the smallest architecture in each of ``formats``; then, about half, architectures
    searched under one of these formats throughout; the rest are sequential: an architecture
    searched in fp32, then formats chosen for it under the limits.

    Args:
        problem: The joint problem.
        fp32_problem: Scores the same candidates in fp32; its costs may be MACs.
        formats: (weight, activation) formats of the uniform solutions.
        count: At most so many candidates.
        rng: Source of all draws.
    """
    quick = replace(problem.settings, generations=max(5, problem.settings.generations // 3))
    problem, fp32_problem = replace(problem, settings=quick), replace(fp32_problem, settings=quick)
    per_format = max(1, count // 2 // len(formats))
    smallest = smallest_picks(problem.space.dims)
    parts = [(f"uniform {w}/{a}", with_format(problem.space, smallest, w, a)) for w, a in formats]
    parts += [(f"uniform {w}/{a}", _uniform(problem, w, a, per_format, rng)) for w, a in formats]
    missing = count - sum(len(picks) for _, picks in parts)
    parts.append(("sequential", _sequential(problem, fp32_problem, missing, rng)))
    everyone = np.concatenate([picks for _, picks in parts])
    origins = [origin for origin, picks in parts for _ in picks]
    _, first = np.unique(everyone, axis=0, return_index=True)
    kept = np.sort(first)[:count]
    return Proposal(everyone[kept], tuple(origins[index] for index in kept))


def _uniform(
    problem: Problem, weights: str, activations: str, count: int, rng: np.random.Generator
) -> IntArray:
    start = with_format(
        problem.space, draw_hierarchical(problem.space, 50, rng), weights, activations
    )
    settle = _in_formats(problem, weights, activations)
    return _diverse(evolve_problem(problem, start, _seed(rng), settle), count)


def _sequential(
    problem: Problem, fp32_problem: Problem, count: int, rng: np.random.Generator
) -> IntArray:
    """Architectures first, formats second; several budgets of arithmetic, since none is best."""
    chosen = np.zeros((0, len(problem.space.dims)), dtype=np.int64)
    if count < 1:
        return chosen
    widest = with_format(problem.space, draw_hierarchical(problem.space, 50, rng), "", "")
    found = evolve_problem(fp32_problem, widest, _seed(rng), _in_formats(problem, "", ""))
    for architecture in _diverse(found, 2 * count):  # some are too large in every format
        settle = _with_architecture(problem, architecture)
        allocated = evolve_problem(problem, architecture[None], _seed(rng), settle)
        chosen = np.concatenate([chosen, _diverse(allocated, 2)])
        if len(chosen) >= count:
            break
    return chosen[:count]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))


def _diverse(found: Evolved, count: int) -> IntArray:
    """Spreads a choice over a front; nothing where even the best exceeds limits."""
    if found.violation > 0:
        return found.picks[:0]
    return found.picks[pick_diverse(found.losses, found.losses[:0], count)]


def _in_formats(problem: Problem, weights: str, activations: str) -> Settle:
    """Keeps one format throughout, also in layers that a change of architecture adds."""
    return lambda picks: with_format(problem.space, picks, weights, activations)


def _with_architecture(problem: Problem, architecture: IntArray) -> Settle:
    """Keeps one architecture (k,); formats change."""
    changes = problem.dims_of("quant")
    return lambda picks: problem.space.repair(np.where(changes, picks, architecture))


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
    found = Proposal(best, (origin,) * len(best))
    return found.joined(propose_random(problem, known.with_picks(best), missing, rng))


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

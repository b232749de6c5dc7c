"""Vectorised evolution over picks. Letters: n candidates, k dims, m objectives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apqkit.search.pareto import constrained_ranks, crowding, nondominated
from apqkit.search.problem import Problem
from apqkit.spaces.draws import draw_hierarchical
from apqkit.types import FloatArray, IntArray, Space

__all__ = ["Evolved", "Settle", "evolve"]

Settle = Callable[[IntArray], IntArray]
"""(n, k) any picks -> (n, k) canonical ones of the part of the space that may be visited."""

_CROSSOVER_CHANCE = 0.8
_MUTATIONS = {"arch": 1.0, "prune": 1.5, "quant": 2.5}  # expected changes a child, by role
_STEP_CHANCE = 0.6  # a mutation goes to a neighbouring choice rather than to any


@dataclass(frozen=True)
class Evolved:
    """What an evolution found.

    Attributes:
        picks: (n, k) feasible candidates that none found beats; the least infeasible one if no
            feasible one was found.
        losses: (n, m) their predicted objectives as losses.
        violation: 0, or how far the one candidate exceeds limits (infinite: it has no losses).
        evaluations: Distinct candidates that were scored.
    """

    picks: IntArray
    losses: FloatArray
    violation: float
    evaluations: int


def evolve(
    problem: Problem,
    initial: IntArray,
    rng: np.random.Generator,
    settle: Settle | None = None,
) -> Evolved:
    """Searches the front of predicted objectives under limits.

    NSGA-II style: non-dominated sorting with crowding, feasible before infeasible, binary
    tournaments, crossover by dims or by block of dims, mutation by role, canonical repair, no
    candidate scored twice. Nothing is rejected in a loop.

    Args:
        problem: Space, scores, objectives, limits and settings.
        initial: (n, k) candidates to start from; random ones fill the population.
        rng: Source of all draws.
        settle: Brings every candidate back to the part of the space that is searched, such as
            one format throughout; None for the canonical form alone.
    """
    state = _State(problem, rng, problem.space.repair if settle is None else settle)
    population = state.first_population(initial)
    losses, violations = problem.judged(population)
    archive = _Archive.of(population, losses, violations)
    for _ in range(problem.settings.generations):
        children = state.unseen(state.children(population, losses, violations))
        if not len(children):
            continue
        child_losses, child_violations = problem.judged(children)
        archive = archive.with_candidates(children, child_losses, child_violations)
        population = np.concatenate([population, children])
        losses = np.concatenate([losses, child_losses])
        violations = np.concatenate([violations, child_violations])
        best = _survivors(losses, violations, problem.settings.population)
        population, losses, violations = population[best], losses[best], violations[best]
    return Evolved(archive.picks, archive.losses, archive.violation, state.evaluations)


@dataclass(frozen=True)
class _Archive:
    picks: IntArray
    losses: FloatArray
    violation: float

    @classmethod
    def of(cls, picks: IntArray, losses: FloatArray, violations: FloatArray) -> "_Archive":
        feasible = violations <= 0
        if not feasible.any():
            least = int(violations.argmin())
            return cls(picks[[least]], losses[[least]], float(violations[least]))
        picks, losses = picks[feasible], losses[feasible]
        front = nondominated(losses)
        return cls(picks[front], losses[front], 0.0)

    def with_candidates(
        self, picks: IntArray, losses: FloatArray, violations: FloatArray
    ) -> "_Archive":
        own = np.full(len(self.picks), self.violation)
        return _Archive.of(
            np.concatenate([self.picks, picks]),
            np.concatenate([self.losses, losses]),
            np.concatenate([own, violations]),
        )


class _State:
    """Draws children and remembers every candidate that was scored."""

    def __init__(self, problem: Problem, rng: np.random.Generator, settle: Settle) -> None:
        self._problem = problem
        self._rng = rng
        self._settle = settle
        self._seen: set[bytes] = set()
        space = problem.space
        self._choices = np.array([len(dim.choices) for dim in space.dims])
        self._rates = _mutation_rates(space)
        self._blocks = _block_labels(space)

    @property
    def evaluations(self) -> int:
        return len(self._seen)

    def first_population(self, initial: IntArray) -> IntArray:
        missing = max(self._problem.settings.population - len(initial), 0)
        drawn = draw_hierarchical(self._problem.space, missing, self._rng)
        return self.unseen(self._settle(np.concatenate([initial, drawn])))

    def unseen(self, picks: IntArray) -> IntArray:
        fresh = []
        for index, row in enumerate(picks.astype(np.int16)):
            key = row.tobytes()
            if key not in self._seen:
                self._seen.add(key)
                fresh.append(index)
        return picks[fresh]

    def children(
        self, population: IntArray, losses: FloatArray, violations: FloatArray
    ) -> IntArray:
        count = self._problem.settings.population
        order = _fitness_order(losses, violations)
        mothers, fathers = (self._tournament(order, count) for _ in range(2))
        children = self._crossed(population[mothers], population[fathers])
        return self._settle(self._mutated(children))

    def _tournament(self, order: IntArray, count: int) -> IntArray:
        entrants = self._rng.integers(0, len(order), (2, count))
        first, second = entrants
        return np.asarray(np.where(order[first] <= order[second], first, second))

    def _crossed(self, mothers: IntArray, fathers: IntArray) -> IntArray:
        count, dims = mothers.shape
        by_dim = self._rng.random((count, dims)) < 0.5
        labels = self._blocks
        by_block = (self._rng.random((count, labels.max() + 1)) < 0.5)[:, labels]
        mask = np.where(self._rng.random((count, 1)) < 0.5, by_dim, by_block)
        mask &= self._rng.random((count, 1)) < _CROSSOVER_CHANCE
        active = self._problem.space.active
        used, used_by_father = active(mothers), active(fathers)
        return np.where(np.where(used == used_by_father, mask, used_by_father), fathers, mothers)

    def _mutated(self, picks: IntArray) -> IntArray:
        shape = picks.shape
        strength = self._rng.choice([0.5, 1.0, 2.0], (shape[0], 1))
        mutates = self._rng.random(shape) < self._rates * strength
        step = self._rng.choice([-1, 1], shape)
        neighbour = np.clip(picks + step, 0, self._choices - 1)
        anywhere = self._rng.integers(0, self._choices, shape)
        changed = np.where(self._rng.random(shape) < _STEP_CHANCE, neighbour, anywhere)
        changed = np.where(mutates, changed, picks)
        active = self._problem.space.active
        return np.where(active(changed) & ~active(picks), anywhere, changed)


def _survivors(losses: FloatArray, violations: FloatArray, count: int) -> IntArray:
    return np.argsort(_fitness_order(losses, violations), kind="stable")[:count]


def _fitness_order(losses: FloatArray, violations: FloatArray) -> IntArray:
    """(n,) place of each candidate, 0 the fittest: by front, then the less crowded first."""
    ranks = constrained_ranks(losses, violations)
    distance = np.zeros(len(losses))
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        distance[members] = crowding(losses[members])
    places = np.empty(len(losses), dtype=np.int64)
    places[np.lexsort((-distance, ranks))] = np.arange(len(losses))
    return places


def _mutation_rates(space: Space) -> FloatArray:
    """(k,) chance that a dim mutates, so that each role changes as often as it should."""
    roles = np.array([dim.role for dim in space.dims])
    rates = np.zeros(len(roles))
    for role, expected in _MUTATIONS.items():
        members = roles == role
        if members.any():
            rates[members] = min(1.0, expected / members.sum())
    return rates


def _block_labels(space: Space) -> IntArray:
    """(k,) dims of one block share a label, so that crossover can move it as a whole."""
    places = [".".join(dim.name.split(".")[1:3]) for dim in space.dims]
    return np.unique(places, return_inverse=True)[1].astype(np.int64)

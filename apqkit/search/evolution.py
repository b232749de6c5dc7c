"""Vectorised evolution over picks. Letters: n candidates, k dims, m objectives, p parents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from apqkit.errors import ConfigError, RunError
from apqkit.search.breeding import Breeder
from apqkit.search.pareto import (
    constrained_ranks,
    crowding,
    hypervolume,
    merged_front,
    nondominated,
)
from apqkit.search.problem import Problem, SearchSettings, checked_score
from apqkit.search.state import EvolutionState
from apqkit.spaces.draws import draw_hierarchical
from apqkit.types import FloatArray, IntArray, Space

__all__ = ["Evolved", "Settle", "evolve", "evolve_problem"]

Settle = Callable[[IntArray], IntArray]
"""(n, k) any picks -> (n, k) canonical ones of the part of the space that may be visited."""

_MIGRANT_SHARE = 0.1
_WATCH_EVERY = 10  # generations
_STALL_GAIN = 1e-4  # relative gain of hypervolume that counts as one
_CHECK_EVERY = 5  # generations; the volume of three objectives takes as long as one
_MARGIN = 0.1  # of the ranges of the first feasible population, beyond its worst values


@dataclass(frozen=True)
class Evolved:
    """What an evolution found.

    Attributes:
        picks: (n, k) feasible candidates that none found beats; the least infeasible one if no
            feasible one was found.
        losses: (n, m) their predicted objectives as losses.
        violation: 0, or how far the one candidate exceeds limits (infinite: it has no losses).
        evaluations: Distinct candidates that were scored.
        state: From where the search can go on.
    """

    picks: IntArray
    losses: FloatArray
    violation: float
    evaluations: int
    state: EvolutionState


def evolve(
    space: Space,
    predict: Callable[[IntArray], FloatArray],
    costs: Callable[[IntArray], Mapping[str, FloatArray]],
    objectives: Mapping[str, str],
    limits: Mapping[str, float] | None = None,
    *,
    settings: SearchSettings | None = None,
    initial: IntArray | None = None,
    seed: int = 0,
    resume: EvolutionState | None = None,
    watch: Callable[[EvolutionState], None] | None = None,
) -> Evolved:
    """Searches a space for the front of predicted accuracy and costs under limits.

    It is :func:`evolve_problem` for a predictor and costs that come separately, with checks of
    what they return.

    Args:
        space: Where candidates come from.
        predict: (n, k) picks -> (n,) accuracy.
        costs: (n, k) picks -> {metric: (n,)}; NaN where a device cannot run a candidate.
        objectives: "max" or "min" by metric, one or more; ``accuracy`` or the name of a cost.
        limits: The most that each cost may be; for accuracy the least.
        settings: How long to look, and how.
        initial: (i, k) candidates to start from, such as an earlier front.
        seed: Of all draws.
        resume: State of an earlier search of the same space and objectives.
        watch: Gets the state every ten generations.

    Raises:
        ConfigError: An objective has no direction, a metric is unknown, an initial candidate is
            none of the space, a prediction is not finite or of the wrong shape.
        RunError: The state to go on from is of another search.
    """
    problem = Problem(
        space,
        checked_score(predict, costs),
        dict(objectives),
        dict(limits or {}),
        settings or SearchSettings(),
    )
    problem.check()
    if initial is not None:
        _check_picks(space, initial)
    return evolve_problem(problem, initial, seed, resume=resume, watch=watch)


def evolve_problem(
    problem: Problem,
    initial: IntArray | None,
    seed: int,
    settle: Settle | None = None,
    *,
    resume: EvolutionState | None = None,
    watch: Callable[[EvolutionState], None] | None = None,
) -> Evolved:
    """Searches the front of predicted objectives under limits.

    NSGA-II style: non-dominated sorting with crowding, feasible before infeasible, binary
    tournaments, crossover by dims, blocks, stages or roles, mutation by role, canonical repair, no
    candidate scored twice. Nothing is rejected in a loop. Every generation draws from a generator
    of its own, so a search that goes on from a state finds what it would have found at once.

    Args:
        problem: Space, scores, objectives, limits and settings.
        initial: (i, k) candidates to start from; random ones fill the population.
        seed: Of all draws.
        settle: Brings every candidate back to the part of the space that is searched, such as
            one format throughout; None for the canonical form alone.
        resume: State of an earlier search of the same problem; its seed counts.
        watch: Gets the state every ten generations.

    Raises:
        RunError: The state to go on from is of another search.
    """
    search = _Search(problem, problem.space.repair if settle is None else settle)
    if resume is None:
        state = search.started(initial, seed)
    else:
        _check_fits(resume, problem)
        state = search.resumed(resume)
    while state.generation < problem.settings.generations and not search.is_stalled(state):
        state = search.advanced(state)
        if watch is not None and state.generation % _WATCH_EVERY == 0:
            watch(search.complete(state))
    state = search.complete(state)
    return Evolved(
        state.archive_picks,
        state.archive_losses,
        state.archive_violation,
        len(state.seen),
        state,
    )


def _check_picks(space: Space, picks: IntArray) -> None:
    if picks.ndim != 2 or picks.shape[1] != len(space.dims):
        raise ConfigError(
            f"initial candidates must have shape (i, {len(space.dims)}), got {picks.shape}"
        )
    counts = np.array([len(dim.choices) for dim in space.dims])
    wrong = np.argwhere((picks < 0) | (picks >= counts))
    for row, column in wrong[:1]:
        raise ConfigError(
            f"initial candidates must pick 0 to {counts[column] - 1} of "
            f"{space.dims[column].name}, got {picks[row, column]}"
        )


def _check_fits(state: EvolutionState, problem: Problem) -> None:
    expected = (len(problem.space.dims), len(problem.objectives), problem.settings.islands)
    got = (state.picks.shape[1], state.losses.shape[1], int(state.island.max(initial=0)) + 1)
    if got != expected:
        raise RunError(
            f"the state to go on from has {got[0]} dims, {got[1]} objectives and {got[2]} "
            f"islands, the search {expected[0]}, {expected[1]} and {expected[2]}"
        )


class _Search:
    """Draws children and remembers every candidate that was scored."""

    def __init__(self, problem: Problem, settle: Settle) -> None:
        self._problem = problem
        self._settle = settle
        self._seen: set[int] = set()
        self._breeder = Breeder(problem.space, problem.settings.rates)
        self._words = _words(len(problem.space.dims))

    def started(self, initial: IntArray | None, seed: int) -> EvolutionState:
        """Returns the first population, scored."""
        settings, dims = self._problem.settings, len(self._problem.space.dims)
        given = np.zeros((0, dims), dtype=np.int64) if initial is None else initial
        missing = max(settings.population - len(given), 0)
        drawn = draw_hierarchical(self._problem.space, missing, np.random.default_rng([seed, 0]))
        picks = self._unseen(self._settle(np.concatenate([given, drawn])))[0]
        empty = EvolutionState.empty(seed, dims, len(self._problem.objectives))
        return self._joined(empty, picks, np.arange(len(picks)) % settings.islands)

    def resumed(self, state: EvolutionState) -> EvolutionState:
        """Returns a state to go on from, and remembers what was scored before it."""
        self._seen = set(state.seen.tolist())
        return state

    def advanced(self, state: EvolutionState) -> EvolutionState:
        """Returns the next generation: bred, scored and selected."""
        settings = self._problem.settings
        state = replace(state, generation=state.generation + 1)
        rng = np.random.default_rng([state.seed, state.generation])
        mothers, fathers = _couples(state.island, settings.population, rng)
        children = self._settle(self._breeder.children(state.picks, mothers, fathers, rng))
        picks, fresh = self._unseen(children)
        if len(picks):
            state = self._joined(state, picks, state.island[mothers[fresh]])
        if settings.islands > 1 and state.generation % settings.migrate_every == 0:
            state = _migrated(state)
        return state

    def is_stalled(self, state: EvolutionState) -> bool:
        """Whether nothing was gained for as long as the settings allow."""
        patience = self._problem.settings.patience
        return patience is not None and state.generation - state.progress_generation >= patience

    def complete(self, state: EvolutionState) -> EvolutionState:
        """Returns the state with the marks of everything that was scored."""
        seen = np.fromiter(self._seen, dtype=np.uint64, count=len(self._seen))
        return replace(state, seen=np.sort(seen))

    def _unseen(self, picks: IntArray) -> tuple[IntArray, IntArray]:
        """Returns the candidates (i, k) that were not scored, and their indices (i,)."""
        fresh = []
        for index, mark in enumerate((picks.astype(np.uint64) @ self._words).tolist()):
            if mark not in self._seen:
                self._seen.add(mark)
                fresh.append(index)
        return picks[fresh], np.array(fresh, dtype=np.int64)

    def _joined(self, state: EvolutionState, picks: IntArray, island: IntArray) -> EvolutionState:
        """Scores candidates, adds them to the archive, and lets the fittest of all live on."""
        losses, violations = self._problem.judged(picks)
        state = _archived(state, picks, losses, violations)
        everyone = replace(
            state,
            picks=np.concatenate([state.picks, picks]),
            losses=np.concatenate([state.losses, losses]),
            violations=np.concatenate([state.violations, violations]),
            island=np.concatenate([state.island, island]),
        )
        state = _survivors(everyone, self._problem.settings)
        return state if self._problem.settings.patience is None else _with_progress(state)


def _words(dims: int) -> NDArray[np.uint64]:
    """(k,) odd numbers; the sum of picks times these marks a candidate, modulo 2**64."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 2**64, dims, dtype=np.uint64) | np.uint64(1)


def _couples(island: IntArray, count: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Returns indices (n,) of mothers and fathers, each the fitter of two of an island."""
    present, starts, sizes = np.unique(island, return_index=True, return_counts=True)
    where = np.arange(count) % len(present)
    places = rng.random((2, 2, count)).min(axis=1)  # parents stand in the order of fitness
    mothers, fathers = starts[where] + (places * sizes[where]).astype(np.int64)
    return mothers, fathers


def _survivors(state: EvolutionState, settings: SearchSettings) -> EvolutionState:
    """Returns the fittest of each island, in their order."""
    islands = settings.islands
    kept = []
    for each in range(islands):
        size = settings.population // islands + (each < settings.population % islands)
        kept.append(_fittest(state, np.flatnonzero(state.island == each))[:size])
    rows = np.concatenate(kept)
    return _taken(state, rows, state.island[rows])


def _migrated(state: EvolutionState) -> EvolutionState:
    """Lets the best of each island replace the worst of the next."""
    members = [np.flatnonzero(state.island == each) for each in np.unique(state.island)]
    rows, island = [], []
    for each, own in enumerate(members):
        guests = members[each - 1]
        count = min(max(1, round(_MIGRANT_SHARE * len(own))), len(guests))
        mixed = np.concatenate([own[: len(own) - count], guests[:count]])
        rows.append(_fittest(state, mixed))
        island.append(np.full(len(mixed), each))
    return _taken(state, np.concatenate(rows), np.concatenate(island))


def _taken(state: EvolutionState, rows: IntArray, island: IntArray) -> EvolutionState:
    return replace(
        state,
        picks=state.picks[rows],
        losses=state.losses[rows],
        violations=state.violations[rows],
        island=island,
    )


def _fittest(state: EvolutionState, rows: IntArray) -> IntArray:
    """Returns rows ordered by front, then the less crowded first."""
    losses, violations = state.losses[rows], state.violations[rows]
    ranks = constrained_ranks(losses, violations)
    return rows[np.lexsort((-crowding(losses, ranks), ranks))]


def _archived(
    state: EvolutionState, picks: IntArray, losses: FloatArray, violations: FloatArray
) -> EvolutionState:
    feasible = violations <= 0
    if not feasible.any():
        if violations.min(initial=np.inf) >= state.archive_violation and len(state.archive_picks):
            return state
        rows = [int(violations.argmin())]
        return _with_archive(state, picks[rows], losses[rows], float(violations[rows[0]]))
    picks, losses = picks[feasible], losses[feasible]
    if state.archive_violation > 0:
        front = nondominated(losses)
        return _with_archive(state, picks[front], losses[front], 0.0)
    stays, joins = merged_front(state.archive_losses, losses)
    return _with_archive(
        state,
        np.concatenate([state.archive_picks[stays], picks[joins]]),
        np.concatenate([state.archive_losses[stays], losses[joins]]),
        0.0,
    )


def _with_archive(
    state: EvolutionState, picks: IntArray, losses: FloatArray, violation: float
) -> EvolutionState:
    return replace(state, archive_picks=picks, archive_losses=losses, archive_violation=violation)


def _with_progress(state: EvolutionState) -> EvolutionState:
    """Notes a gain of hypervolume, or of violation as long as nothing is feasible."""
    if state.generation % _CHECK_EVERY:
        return state
    if state.archive_violation > 0:
        progress = -state.archive_violation
    else:
        if np.isnan(state.reference).any():
            state = _with_reference(state)
        progress = hypervolume(state.archive_losses, state.reference, state.ideal)
    known = state.progress
    if np.isfinite(known) and progress - known <= _STALL_GAIN * abs(known):
        return state
    return replace(state, progress=progress, progress_generation=state.generation)


def _with_reference(state: EvolutionState) -> EvolutionState:
    losses = np.concatenate([state.losses[state.violations <= 0], state.archive_losses])
    low, high = losses.min(axis=0), losses.max(axis=0)
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1e-12))
    return replace(state, reference=high + _MARGIN * span, ideal=low - span)

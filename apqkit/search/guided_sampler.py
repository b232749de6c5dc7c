"""An Optuna sampler that proposes by evolution on a surrogate of the trials so far.

Letters: n candidates, k parameters, m objectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from apqkit.search.evolution import evolve_problem
from apqkit.search.pareto import constrained_ranks, pick_diverse
from apqkit.search.problem import MutationRates, Problem, SearchSettings
from apqkit.search.surrogate import Surrogate, fit_surrogate, normal_scores
from apqkit.types import BoolArray, Dim, FloatArray, IntArray, LayerTable

__all__ = ["PredictorGuidedSampler"]

_MOST_CHOICES = 1024  # of an integer parameter
_SETTINGS = SearchSettings(
    population=100, generations=30, rates=MutationRates(arch=2.0, prune=0.0, quant=0.0)
)


class PredictorGuidedSampler(BaseSampler):
    """Proposes what a surrogate of the finished trials predicts to improve the front most.

    For any study over categorical and stepped integer parameters; others, and parameters that not
    every trial has, are sampled independently. Objectives may be several, and trials may carry
    constraints. Every few trials a surrogate is fitted on all that finished, an evolution searches
    its front, and the candidates that add most to the measured front are proposed, one a trial.
    What other workers run at the moment counts as known, so workers that share a storage do not
    propose the same.

    Args:
        seed: Of all draws; None draws one.
        startup_trials: Finished trials before the first surrogate; they are sampled at random.
        refit_every: Finished trials after which the surrogate is fitted again.
        explore: Share of trials that are sampled at random even so.
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        startup_trials: int = 20,
        refit_every: int = 5,
        explore: float = 0.05,
    ) -> None:
        self._startup_trials = startup_trials
        self._refit_every = refit_every
        self._explore = explore
        self._independent = RandomSampler(seed=seed)
        self._common = IntersectionSearchSpace()
        self.reseed(seed)

    def reseed(self, seed: int | None) -> None:
        """Forgets what was planned, and draws from another seed."""
        self._seed = int(np.random.default_rng(seed).integers(2**31))
        self._fitted = 0
        self._queue: list[dict[str, Any]] = []

    def reseed_rng(self) -> None:
        """Draws from another seed; a study calls it in each of its parallel workers."""
        self._independent.reseed_rng()
        self.reseed(None)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns the parameters with few choices that all finished trials have."""
        del trial
        common = self._common.calculate(study).items()
        return {name: each for name, each in common if 1 < _count(each) <= _MOST_CHOICES}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns the next proposal, or nothing while there is too little to go by."""
        finished = _finished(study)
        if not search_space or len(finished) < self._startup_trials:
            return {}
        rng = np.random.default_rng([self._seed, trial.number])
        if rng.random() < self._explore:
            return {}
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        known = _Known.of(finished, running, search_space, study.directions)
        if not self._queue or len(finished) >= self._fitted + self._refit_every:
            self._queue = known.proposals(2 * self._refit_every, int(rng.integers(2**31)))
            self._fitted = len(finished)
        while self._queue:
            # Not always the first: another worker may have planned the same a moment ago.
            proposal = self._queue.pop(int(rng.integers(min(len(self._queue), self._refit_every))))
            if proposal.keys() == search_space.keys() and not known.holds(proposal):
                return proposal
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Returns a random value."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _count(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return (distribution.high - distribution.low) // distribution.step + 1
    return 0


def _finished(study: Study) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [each for each in trials if np.isfinite(each.values).all()]


@dataclass(frozen=True)
class _StudySpace:
    """Parameters of a study as a space in which every dim is always active."""

    dims: tuple[Dim, ...]
    name: str = "study"

    def active(self, picks: IntArray) -> BoolArray:
        return np.ones(picks.shape, dtype=bool)

    def repair(self, picks: IntArray) -> IntArray:
        return picks

    def network(self, picks: IntArray) -> LayerTable:
        raise NotImplementedError

    def describe(self, picks: IntArray) -> list[dict[str, int | str]]:
        raise NotImplementedError

    def supernet(self, seed: int) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class _Known:
    """What a study holds.

    Attributes:
        distributions: Of the k parameters.
        picks: (n, k) finished trials, then those that run.
        losses: (f, m) of the finished ones.
        excesses: (f, c) over each constraint.
    """

    distributions: dict[str, BaseDistribution]
    picks: IntArray
    losses: FloatArray
    excesses: FloatArray

    @classmethod
    def of(
        cls,
        finished: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        distributions: dict[str, BaseDistribution],
        directions: Sequence[StudyDirection],
    ) -> "_Known":
        signs = [-1.0 if each == StudyDirection.MAXIMIZE else 1.0 for each in directions]
        names = sorted({name for each in finished for name in each.constraints})
        begun = [each for each in running if distributions.keys() <= each.params.keys()]
        return cls(
            distributions,
            np.array([_picks(each.params, distributions) for each in (*finished, *begun)]),
            np.array([each.values for each in finished]) * signs,
            np.array(
                [[each.constraints.get(name, 0.0) for name in names] for each in finished]
            ).reshape(len(finished), len(names)),
        )

    def holds(self, params: dict[str, Any]) -> bool:
        """Whether a trial with these values was begun."""
        return bool((self.picks == _picks(params, self.distributions)).all(axis=1).any())

    def proposals(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Returns new candidates by value, those that promise most first."""
        finished = self.picks[: len(self.losses)]
        # Ranks of losses bear skew; how far a limit is off must stay to scale.
        spreads = np.maximum(self.excesses.std(axis=0), 1e-12)
        targets = np.hstack([normal_scores(self.losses), self.excesses / spreads])
        surrogate = fit_surrogate(self._columns(finished), targets)
        problem = self._problem(surrogate)
        violations = np.maximum(self.excesses, 0.0).sum(axis=1)
        elite = np.argsort(constrained_ranks(self.losses, violations), kind="stable")
        found = evolve_problem(problem, finished[elite[: _SETTINGS.population // 2]], seed)
        candidates = np.concatenate([found.picks, found.state.picks])
        candidates = candidates[np.sort(np.unique(candidates, axis=0, return_index=True)[1])]
        begun = {row.tobytes() for row in self.picks}
        candidates = candidates[[row.tobytes() not in begun for row in candidates]]
        if not len(candidates):
            return []
        order = self._order(problem, candidates, count)
        return [self._values(row) for row in candidates[order]]

    def _order(self, problem: Problem, candidates: IntArray, count: int) -> IntArray:
        losses, excesses = problem.judged(candidates)
        feasible = np.flatnonzero(excesses <= 0)
        if not len(feasible):
            return np.argsort(excesses, kind="stable")[:count]
        if losses.shape[1] == 1:
            return feasible[np.argsort(losses[feasible, 0], kind="stable")[:count]]
        known, over = problem.judged(self.picks)  # as predicted, so that noise adds no front
        return feasible[pick_diverse(losses[feasible], known[over <= 0], count)]

    def _problem(self, surrogate: Surrogate) -> Problem:
        names = [f"loss{index}" for index in range(self.losses.shape[1])]
        limits = [f"excess{index}" for index in range(self.excesses.shape[1])]

        def score(picks: IntArray) -> dict[str, FloatArray]:
            found = surrogate.predict(self._columns(picks)).T
            return dict(zip([*names, *limits], found, strict=True))

        return Problem(
            _StudySpace(tuple(_dim(name, each) for name, each in self.distributions.items())),
            score,
            dict.fromkeys(names, "min"),
            dict.fromkeys(limits, 0.0),
            _SETTINGS,
        )

    def _columns(self, picks: IntArray) -> FloatArray:
        """(n, d) one column a choice, one a number."""
        columns = []
        for values, each in zip(picks.T, self.distributions.values(), strict=True):
            if isinstance(each, CategoricalDistribution):
                columns.append((values[:, None] == np.arange(_count(each))) * np.sqrt(0.5))
            else:
                columns.append(values[:, None] / (_count(each) - 1.0))
        return np.hstack(columns)

    def _values(self, picks: IntArray) -> dict[str, Any]:
        values = zip(self.distributions.items(), picks.tolist(), strict=True)
        return {
            name: (
                each.choices[index]
                if isinstance(each, CategoricalDistribution)
                else each.low + index * each.step  # type: ignore[attr-defined]
            )
            for (name, each), index in values
        }


def _picks(params: dict[str, Any], distributions: dict[str, BaseDistribution]) -> list[int]:
    """(k,) values as indices of choices."""
    return [
        int(each.to_internal_repr(params[name]))
        if isinstance(each, CategoricalDistribution)
        else (params[name] - each.low) // each.step  # type: ignore[attr-defined]
        for name, each in distributions.items()
    ]


def _dim(name: str, distribution: BaseDistribution) -> Dim:
    return Dim(name, tuple(range(_count(distribution))), "arch")

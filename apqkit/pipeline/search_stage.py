"""Stage search: rounds of propose, measure and refit; then the final measurement of the front."""

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from apqkit.front import ParetoSet, read_evaluated, write_evaluated
from apqkit.pipeline.context import RunContext, candidate_key
from apqkit.pipeline.cost_stage import estimated_layers
from apqkit.pipeline.final_front import (
    evaluated_trials,
    final_front,
    measure_references,
    rounds_report,
)
from apqkit.pipeline.predictor_stage import DECISION_FILE
from apqkit.pipeline.ranking import Measured, Ranking, fit_base, measured_samples
from apqkit.pipeline.zero_samples import ProxyRanking
from apqkit.registry import lookup
from apqkit.run import write_atomically, write_json
from apqkit.search.pareto import pick_diverse
from apqkit.search.problem import Problem, Score, SearchSettings
from apqkit.search.strategies import STRATEGIES, Known, Proposal, seed_proposals
from apqkit.search.study import MeasuredTrial, open_study
from apqkit.search.verify import RoundPlan, round_quotas, verify
from apqkit.spaces.base import picks_of_values
from apqkit.training.evaluate import accuracy_parts
from apqkit.types import FloatArray, IntArray

__all__ = [
    "ESTIMATED_FILE",
    "EVALUATED_FILE",
    "PARETO_FILE",
    "REFERENCES_FILE",
    "ROUNDS_FILE",
    "read_pareto_set",
    "run_search_stage",
]

EVALUATED_FILE = "evaluated.csv"
PARETO_FILE = "pareto.csv"
REFERENCES_FILE = "references.csv"
ROUNDS_FILE = "rounds.json"
ESTIMATED_FILE = "estimated_layers.json"
_KNEE_FILE = "knee.json"
_STUDY_FILE = "study.json"
_ROUND_STREAM = 31
_LEAST_ROWS = 10  # measured candidates from which a predictor is learned
_SHORTLIST = 3  # candidates that proxies re-rank for each one that is measured


def run_search_stage(context: RunContext, folder: Path) -> None:
    """Searches, measures, and writes the front with its references."""
    trials = _Search(context).run(folder)
    evaluated = evaluated_trials(context, trials)
    write_atomically(folder / EVALUATED_FILE, write_evaluated(evaluated))
    write_json(folder / ROUNDS_FILE, rounds_report(context, trials))
    members, knee_key = final_front(context, evaluated)
    write_atomically(folder / PARETO_FILE, write_evaluated(members))
    references = measure_references(context, evaluated)
    write_atomically(folder / REFERENCES_FILE, write_evaluated(references))
    write_json(folder / _KNEE_FILE, {"key": knee_key})
    write_json(folder / ESTIMATED_FILE, estimated_layers(context))


def read_pareto_set(context: RunContext) -> ParetoSet:
    """Returns the front that the stage wrote."""
    folder = context.run.path / "search"
    return ParetoSet(
        members=read_evaluated(folder / PARETO_FILE),
        references=read_evaluated(folder / REFERENCES_FILE),
        objectives=dict(context.config.search.objectives),
        knee_key=json.loads((folder / _KNEE_FILE).read_text(encoding="utf-8"))["key"],
        path=context.run.path,
    )


class _Search:
    """What the rounds of one search share."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._config = context.config.search
        samples = context.config.samples
        self._base = fit_base(context) if samples.fp32 else None
        self._samples = measured_samples(context, "mixed")
        decision_path = context.run.path / "predictor" / DECISION_FILE
        decision = json.loads(decision_path.read_text(encoding="utf-8"))
        self._proxies = tuple(decision["used"])
        self._measurer = context.measurer(context.splits.validation)

    def run(self, folder: Path) -> list[MeasuredTrial]:
        """Returns every trial, measured now or earlier."""
        config = self._config
        study = open_study(folder, config.storage, _study_name(folder), config.objectives)
        return verify(
            study,
            self._context.space,
            round_quotas(config.verify, config.rounds),
            self.plan_round,
            self.measure,
            objectives=config.objectives,
            limits=config.limits,
            progress=self._context.progress,
        )

    def plan_round(self, number: int, quota: int, trials: list[MeasuredTrial]) -> RoundPlan:
        """Proposes the candidates of a round from what earlier rounds measured."""
        rng = np.random.default_rng([self._context.config.seed, _ROUND_STREAM, number])
        known, measured = self._known(trials)
        ranking = self._ranking(self._samples.joined(known.picks, measured))
        proposal = self._propose(number, quota, ranking, known, rng)
        candidates = self._context.space.describe(proposal.picks)
        return RoundPlan(
            proposal=proposal,
            keys=[candidate_key(each) for each in candidates],
            predicted=ranking.predicted(proposal.picks),
            half_width=ranking.half_width,
            costs=self._context.costs(proposal.picks),
        )

    def _ranking(self, measured: Measured) -> Ranking | ProxyRanking:
        """Fits the predictors; without enough measured candidates proxies alone must do."""
        if self._base is None and len(measured.accuracy) < _LEAST_ROWS:
            return ProxyRanking(self._context, self._proxies)
        return Ranking.fitted(self._context, self._base, measured, self._proxies)

    def measure(self, picks: IntArray) -> tuple[float, dict[str, float]]:
        """Returns validation accuracy of one candidate (k,), whole and in parts."""
        layers = self._context.space.network(picks[None]).layers()
        correct = self._measurer.measure(layers)
        return float(correct.mean()), accuracy_parts(correct, self._measurer.images)

    def _propose(
        self,
        number: int,
        quota: int,
        ranking: Ranking | ProxyRanking,
        known: Known,
        rng: np.random.Generator,
    ) -> Proposal:
        problem = self._problem(ranking)
        if self._config.strategy == "random":
            return STRATEGIES["random"](problem, known, quota, rng)
        propose = lookup(STRATEGIES, self._config.strategy, "search strategy")
        if number == 0:
            seeds = self._seeds(problem, ranking, quota, rng)
            missing = quota - len(seeds.picks)
            if missing <= 0:
                return seeds
            return seeds.joined(propose(problem, known.with_picks(seeds.picks), missing, rng))
        if not ranking.reads_proxies:
            return propose(problem, known, quota, rng)
        proposal = propose(problem, known, _SHORTLIST * quota, rng)
        full = replace(problem, score=self._scorer(ranking.score))
        losses, violations = full.judged(proposal.picks)
        feasible = np.flatnonzero(violations <= 0)
        if len(feasible) >= quota:
            chosen = feasible[pick_diverse(losses[feasible], known.feasible_losses, quota)]
        else:
            chosen = np.argsort(violations, kind="stable")[:quota]
        return Proposal(proposal.picks[chosen], tuple(proposal.origins[i] for i in chosen))

    def _seeds(
        self,
        problem: Problem,
        ranking: Ranking | ProxyRanking,
        quota: int,
        rng: np.random.Generator,
    ) -> Proposal:
        def fp32_score(picks: IntArray) -> dict[str, FloatArray]:
            accuracy = ranking.fp32_score(picks)
            return {**self._context.quick_costs(picks), "accuracy": accuracy}

        fp32_problem = replace(
            problem, score=fp32_score, objectives={"accuracy": "max", "macs": "min"}, limits={}
        )
        return seed_proposals(problem, fp32_problem, self._uniform_formats(), quota, rng)

    def _uniform_formats(self) -> list[tuple[str, str]]:
        """Formats of the uniform solutions: int4, int8 and others that all layers offer."""
        space = self._context.config.space
        shared = [name for name in space.weight_formats if name in space.activation_formats]
        preferred = [name for name in ("int4", "int8", "int3", "int6") if name in shared]
        names = preferred or shared[:2] or [space.weight_formats[-1]]
        return [(name, name) for name in names]

    def _problem(self, ranking: Ranking | ProxyRanking) -> Problem:
        config = self._config
        settings = SearchSettings(config.population, config.generations)
        return Problem(
            self._context.space,
            self._scorer(ranking.quick_score),
            config.objectives,
            config.limits,
            settings,
        )

    def _scorer(self, accuracy: Callable[[IntArray], FloatArray]) -> Score:
        def score(picks: IntArray) -> dict[str, FloatArray]:
            return {**self._context.quick_costs(picks), "accuracy": accuracy(picks)}

        return score

    def _known(self, trials: list[MeasuredTrial]) -> tuple[Known, FloatArray]:
        space, config = self._context.space, self._config
        if not trials:
            empty = np.zeros((0, len(space.dims)), dtype=np.int64)
            return Known(empty, np.zeros((0, len(config.objectives))), np.zeros(0)), np.zeros(0)
        picks = np.concatenate([picks_of_values(space.dims, each.candidate) for each in trials])
        accuracy = np.array([each.accuracy for each in trials])
        problem = Problem(
            space, lambda picks: {}, config.objectives, config.limits, SearchSettings()
        )
        values = {**self._context.costs(picks), "accuracy": accuracy}
        return Known(picks, problem.losses(values), problem.violations(values)), accuracy


def _study_name(folder: Path) -> str:
    """Returns the name of this search's study: its own in a storage that others use too.

    It is drawn once and kept in the stage's folder, so a search that is made again starts anew.
    """
    path = folder / _STUDY_FILE
    if not path.exists():
        write_json(path, {"study": f"apqkit-{secrets.token_hex(8)}"})
    return str(json.loads(path.read_text(encoding="utf-8"))["study"])

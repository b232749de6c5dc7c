from dataclasses import replace

import numpy as np
import optuna
import pytest

from apqkit.search.optuna_nsga2 import optuna_nsga2
from apqkit.search.pareto import hypervolume_2d
from apqkit.spaces.draws import draw_uniform


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr("apqkit.search.optuna_nsga2._TRIALS_A_GENERATION", 20)
    monkeypatch.setattr("apqkit.search.optuna_nsga2._GENERATIONS", 12)


@pytest.fixture
def problem(toy_problem, wide_toy_space, score_of):
    return replace(
        toy_problem,
        space=wide_toy_space,
        score=score_of(wide_toy_space),
        limits={"latency_ms": 60.0},
    )


def test_it_returns_every_candidate_that_it_scored_in_canonical_form(problem, wide_toy_space):
    picks = optuna_nsga2(problem, 0)
    assert picks.shape == (240, 21)
    assert np.array_equal(picks, problem.score.rows)
    assert np.array_equal(wide_toy_space.repair(picks), picks)


def test_the_same_seed_scores_the_same_candidates(problem):
    first, again, other = (optuna_nsga2(problem, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_learns_the_limits_and_the_front(problem, wide_toy_space):
    losses, violations = problem.judged(optuna_nsga2(problem, 0))
    inside = violations <= 0
    assert inside[-60:].mean() > inside[:60].mean() + 0.3
    drawn = problem.judged(draw_uniform(wide_toy_space, 240, np.random.default_rng(0)))
    corner = np.array([-0.3, 60.0])
    best, random = (
        hypervolume_2d(each[limit <= 0], corner) for each, limit in ((losses, violations), drawn)
    )
    assert best > random


def test_candidates_that_cannot_be_scored_do_not_stop_it(problem):
    def score(picks):
        values = problem.score(picks)
        values["size_kib"][picks[:, 0] == 1] = np.nan
        return values

    assert len(optuna_nsga2(replace(problem, score=score), 0)) == 240


def test_it_leaves_the_verbosity_of_optuna_alone(problem):
    def fail(picks):
        raise KeyError("lost")

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        optuna_nsga2(problem, 0)
        with pytest.raises(KeyError):
            optuna_nsga2(replace(problem, score=fail), 0)
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    finally:
        optuna.logging.set_verbosity(before)

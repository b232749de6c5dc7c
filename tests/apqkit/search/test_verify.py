from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apqkit.errors import RunError
from apqkit.search.strategies import Proposal
from apqkit.search.study import open_study, read_trials
from apqkit.search.verify import RoundPlan, all_dims_by_value, round_quotas, verify
from apqkit.types import SilentProgress

OBJECTIVES = {"accuracy": "max", "size_kib": "min"}
QUOTAS = [3, 2, 2]


class KilledError(Exception):
    """Stands for a kill: nothing after it runs."""


class Bench:
    """Plans and measures on the toy space; a plan depends on every trial of earlier rounds."""

    def __init__(self, space, score, *, seed=0, survives=10**9) -> None:
        self.space, self.score = space, score
        self.seed, self.survives = seed, survives
        self.measured: list[list[int]] = []
        self.planned: list[tuple[int, int, int]] = []

    def plan(self, number, quota, trials):
        self.planned.append((number, quota, len(trials)))
        heard = [int(each.accuracy * 2**40) for each in trials]
        rng = np.random.default_rng([self.seed, number, *heard])
        everyone = self.space.everyone()
        picks = everyone[rng.choice(len(everyone), quota, replace=False)]
        values = self.score(picks)
        return RoundPlan(
            Proposal(picks, tuple(f"rule {index}" for index in range(quota))),
            ["".join(map(str, row)) for row in picks.tolist()],
            values.pop("accuracy"),
            0.05,
            values,
        )

    def measure(self, picks):
        if len(self.measured) >= self.survives:
            raise KilledError
        self.measured.append(picks.tolist())
        accuracy = float(self.score(picks[None])["accuracy"][0])
        return accuracy, {"plain": accuracy / 2, "corrupted": accuracy / 3}


@pytest.fixture
def bench_of(toy_space, score_of):
    return lambda **options: Bench(toy_space, score_of(toy_space), **options)


def verified(study, bench, quotas=QUOTAS, limits=None, progress=None):
    return verify(
        study,
        bench.space,
        quotas,
        bench.plan,
        bench.measure,
        objectives=OBJECTIVES,
        limits={"size_kib": 30.0} if limits is None else limits,
        progress=progress or SilentProgress(),
    )


def opened(folder, name="run"):
    folder.mkdir(exist_ok=True)
    return open_study(folder, None, name, OBJECTIVES)


def test_quotas_by_hand():
    assert round_quotas(10, 4) == [3, 3, 2, 2]
    assert round_quotas(3, 5) == [1, 1, 1]
    assert round_quotas(0, 4) == []


@given(st.integers(0, 500), st.integers(1, 40))
def test_quotas_add_up_and_differ_by_one_at_most(budget, rounds):
    quotas = round_quotas(budget, rounds)
    assert sum(quotas) == budget
    assert len(quotas) == min(rounds, budget)
    assert quotas == sorted(quotas, reverse=True)
    assert not quotas or quotas[0] - quotas[-1] <= 1
    assert all(each > 0 for each in quotas)


def test_rounds_are_planned_from_the_trials_of_earlier_rounds(tmp_path, bench_of):
    bench = bench_of()
    trials = verified(opened(tmp_path), bench)
    assert bench.planned == [(0, 3, 0), (1, 2, 3), (2, 2, 5)]
    assert [each.round_number for each in trials] == [0, 0, 0, 1, 1, 2, 2]
    assert trials == read_trials(opened(tmp_path))


def test_a_trial_says_what_was_predicted_and_measured(tmp_path, bench_of, toy_space, score_of):
    trials = verified(opened(tmp_path), bench_of())
    for trial, row in zip(trials, map(list, (each.key for each in trials)), strict=True):
        picks = np.array([[int(digit) for digit in row]])
        values = {name: float(each[0]) for name, each in score_of(toy_space)(picks).items()}
        accuracy = values.pop("accuracy")
        assert trial.candidate == all_dims_by_value(toy_space, picks)[0]
        assert trial.accuracy == trial.predicted == accuracy
        assert trial.parts == {"plain": accuracy / 2, "corrupted": accuracy / 3}
        assert trial.predicted_low == accuracy - 0.05
        assert trial.predicted_high == min(1.0, accuracy + 0.05)
        assert trial.costs == values
        assert trial.origin.startswith("rule ")


def test_intervals_stay_within_0_and_1(tmp_path, bench_of):
    bench = bench_of()
    plan = bench.plan
    bench.plan = lambda *round_: RoundPlan(**{**vars(plan(*round_)), "half_width": float("inf")})
    for trial in verified(opened(tmp_path), bench):
        assert (trial.predicted_low, trial.predicted_high) == (0.0, 1.0)


def test_objectives_and_excesses_reach_the_study_in_the_users_direction(tmp_path, bench_of):
    study = opened(tmp_path)
    trials = verified(study, bench_of(), limits={"size_kib": 30.0, "accuracy": 0.8})
    for trial, frozen in zip(trials, study.trials, strict=True):
        assert frozen.values == [trial.accuracy, trial.costs["size_kib"]]
        assert frozen.constraints == {
            "size_kib": trial.costs["size_kib"] - 30.0,
            "accuracy": 0.8 - trial.accuracy,
        }


def test_a_limit_on_a_missing_cost_is_exceeded(tmp_path, bench_of):
    bench = bench_of()
    plan = bench.plan

    def without_latency(*round_):
        whole = vars(plan(*round_))
        costs = whole["costs"] | {"latency_ms": np.full(len(whole["keys"]), np.nan)}
        return RoundPlan(**{**whole, "costs": costs})

    bench.plan = without_latency
    study = opened(tmp_path)
    verified(study, bench, limits={"latency_ms": 5.0})
    assert [each.constraints for each in study.trials] == [{"latency_ms": 1e9}] * 7


@pytest.mark.parametrize("survives", range(8))
def test_a_run_that_is_killed_after_any_number_of_trials_ends_like_a_straight_one(
    tmp_path, bench_of, survives
):
    straight = verified(opened(tmp_path / "straight"), bench_of())
    first = bench_of(survives=survives)
    if survives < sum(QUOTAS):
        with pytest.raises(KilledError):
            verified(opened(tmp_path / "killed"), first)
    else:
        verified(opened(tmp_path / "killed"), first)
    second = bench_of()
    assert verified(opened(tmp_path / "killed"), second) == straight
    assert read_trials(opened(tmp_path / "killed")) == straight
    assert len(first.measured) + len(second.measured) == sum(QUOTAS)


def test_a_run_that_is_killed_after_every_trial_ends_like_a_straight_one(tmp_path, bench_of):
    straight = verified(opened(tmp_path / "straight"), bench_of())
    for _ in range(sum(QUOTAS) - 1):
        with pytest.raises(KilledError):
            verified(opened(tmp_path / "killed"), bench_of(survives=1))
    assert verified(opened(tmp_path / "killed"), bench_of(survives=1)) == straight


def test_a_finished_run_plans_and_measures_nothing(tmp_path, bench_of):
    straight = verified(opened(tmp_path), bench_of())
    bench = bench_of()
    assert verified(opened(tmp_path), bench) == straight
    assert bench.planned == bench.measured == []


def test_a_plan_longer_than_its_quota_is_cut_and_resumes_alike(tmp_path, bench_of):
    def generous(**options):
        bench = bench_of(**options)
        plan = bench.plan
        bench.plan = lambda number, quota, trials: plan(number, quota + 4, trials)
        return bench

    straight = verified(opened(tmp_path / "straight"), generous())
    assert [each.round_number for each in straight] == [0, 0, 0, 1, 1, 2, 2]
    for survives in (2, 3, 4):
        folder = tmp_path / str(survives)
        with pytest.raises(KilledError):
            verified(opened(folder), generous(survives=survives))
        assert verified(opened(folder), generous()) == straight


def test_a_plan_shorter_than_its_quota_is_accepted(tmp_path, bench_of):
    bench = bench_of()
    plan = bench.plan
    bench.plan = lambda number, quota, trials: plan(number, quota - (number == 1), trials)
    trials = verified(opened(tmp_path), bench)
    assert [each.round_number for each in trials] == [0, 0, 0, 1, 2, 2]
    assert verified(opened(tmp_path), bench) == trials


REFUSED = (
    "study 'run' holds other candidates than this run proposes: "
    "use --redo search, or another storage"
)


def test_a_study_of_other_candidates_is_refused(tmp_path, bench_of):
    with pytest.raises(KilledError):
        verified(opened(tmp_path), bench_of(seed=1, survives=2))
    bench = bench_of()
    with pytest.raises(RunError) as caught:
        verified(opened(tmp_path), bench)
    assert str(caught.value) == REFUSED
    assert bench.measured == []
    assert len(read_trials(opened(tmp_path))) == 2


@pytest.mark.parametrize("quotas", [[3, 2], [3, 1, 2], [2, 2, 2]])
def test_a_study_with_more_trials_than_planned_is_refused(tmp_path, bench_of, quotas):
    verified(opened(tmp_path), bench_of())
    with pytest.raises(RunError) as caught:
        verified(opened(tmp_path), bench_of(), quotas)
    assert str(caught.value) == REFUSED


def test_every_trial_is_one_step_of_the_bar_also_those_found(tmp_path, bench_of):
    class Counting(SilentProgress):
        @contextmanager
        def task(self, label, total):
            self.label, self.total, self.steps = label, total, 0
            yield self.advance

        def advance(self, steps):
            self.steps += steps

    with pytest.raises(KilledError):
        verified(opened(tmp_path), bench_of(survives=4))
    progress = Counting()
    verified(opened(tmp_path), bench_of(), progress=progress)
    assert progress.label == "search, measuring proposals"
    assert progress.steps == progress.total == 7


def test_every_dim_is_described_also_inactive_ones(toy_space):
    picks = toy_space.repair(np.array([[0, 2, 2, 2, 1, 2, 2]]))
    assert all_dims_by_value(toy_space, picks) == [
        {
            "depth.s0": 1,
            "width.s0.b0": 6,
            "width.s0.b1": 2,
            "width.s0.b2": 2,
            "w_format.s0.b0": "int4",
            "w_format.s0.b1": "int2",
            "w_format.s0.b2": "int2",
        }
    ]

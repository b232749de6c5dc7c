import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from apqkit.search.guided_sampler import PredictorGuidedSampler
from apqkit.search.pareto import hypervolume_2d

WEIGHTS = np.random.default_rng(0).lognormal(size=(2, 10))
CORNER = np.array([25.0, 80.0])


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def suggested(trial):
    bits = [trial.suggest_categorical(f"bits{index}", (2, 3, 4, 8)) for index in range(6)]
    widths = [trial.suggest_int(f"width{index}", 4, 24, step=4) for index in range(4)]
    return np.array(bits, dtype=float), np.array(widths, dtype=float)


def figures(bits, widths):
    cost = bits @ WEIGHTS[0, :6] + widths @ WEIGHTS[0, 6:]
    error = 2.0 * WEIGHTS[1, :6] @ 4.0 ** (2.0 - bits) + 8.0 * WEIGHTS[1, 6:] @ (1.0 / widths)
    return float(error), float(cost)


def two_objectives(trial):
    return figures(*suggested(trial))


def one_objective(trial):
    error, cost = figures(*suggested(trial))
    return error + 0.2 * cost


def run(objective, sampler, trials=80, directions=("minimize", "minimize")):
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    study.optimize(objective, n_trials=trials)
    return study


def values_of(study):
    return np.array([trial.values for trial in study.trials])


def test_it_beats_random_and_optunas_own_at_equal_trials_with_two_objectives():
    for seed in range(3):
        volumes = [
            hypervolume_2d(values_of(run(two_objectives, sampler)), CORNER)
            for sampler in (
                PredictorGuidedSampler(seed),
                optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
                optuna.samplers.RandomSampler(seed=seed),
            )
        ]
        assert volumes[0] > 1.05 * max(volumes[1:])


def test_with_one_objective_it_comes_near_the_optimum():
    choices = [np.array([2.0, 3.0, 4.0, 8.0])] * 6 + [np.arange(4.0, 25.0, 4.0)] * 4
    parts = []
    for index, values in enumerate(choices):
        harm = 2.0 * 4.0 ** (2.0 - values) if index < 6 else 8.0 / values
        parts.append((WEIGHTS[1, index] * harm + 0.2 * WEIGHTS[0, index] * values).min())
    best = run(one_objective, PredictorGuidedSampler(0), directions=["minimize"]).best_value
    assert sum(parts) <= best < 1.1 * sum(parts)


def test_what_is_to_be_maximised_is():
    def objective(trial):
        error, cost = figures(*suggested(trial))
        return -error - 0.2 * cost

    up = run(objective, PredictorGuidedSampler(0), directions=["maximize"])
    down = run(one_objective, PredictorGuidedSampler(0), directions=["minimize"])
    assert up.best_value == pytest.approx(-down.best_value)


def test_constraints_are_learned():
    def objective(trial):
        error, cost = figures(*suggested(trial))
        trial.set_constraint("cost", cost - 60.0)
        return error

    study = run(objective, PredictorGuidedSampler(1), 90, ["minimize"])
    feasible = [max(trial.constraints.values()) <= 0 for trial in study.trials]
    assert np.mean(feasible[:20]) < 0.1
    assert np.mean(feasible[30:]) > 0.5


def test_no_candidate_is_tried_twice_once_it_plans():
    study = run(two_objectives, PredictorGuidedSampler(0, explore=0.0))
    rows = [tuple(trial.params.items()) for trial in study.trials]
    assert len(set(rows)) == len(rows)


def test_the_same_seed_tries_the_same():
    first, again, other = (run(two_objectives, PredictorGuidedSampler(s), 45) for s in (7, 7, 8))
    assert [trial.params for trial in first.trials] == [trial.params for trial in again.trials]
    assert [trial.params for trial in first.trials] != [trial.params for trial in other.trials]


def test_other_parameters_are_sampled_independently():
    def objective(trial):
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        trial.suggest_int("steps", 1, 1000, log=True)
        trial.suggest_int("wide", 0, 10**9)
        if trial.suggest_categorical("kind", ("a", "b")) == "a":
            trial.suggest_int("depth", 1, 3)
        return rate + one_objective(trial)

    study = run(objective, PredictorGuidedSampler(0, startup_trials=10), 30, ["minimize"])
    assert len({trial.params["rate"] for trial in study.trials}) == 30
    assert len({trial.params["wide"] for trial in study.trials}) == 30
    assert {trial.params["kind"] for trial in study.trials} == {"a", "b"}


def test_failed_trials_are_passed_over():
    def objective(trial):
        value = one_objective(trial)
        if trial.number % 3 == 0:
            raise ZeroDivisionError
        return value if trial.number % 3 == 1 else float("inf")

    study = optuna.create_study(sampler=PredictorGuidedSampler(0, startup_trials=5))
    study.optimize(objective, n_trials=40, catch=ZeroDivisionError)
    assert len(study.trials) == 40


def test_a_space_that_is_used_up_is_sampled_at_random():
    def objective(trial):
        return trial.suggest_categorical("x", (1, 2, 3)) + trial.suggest_int("y", 0, 1)

    study = run(objective, PredictorGuidedSampler(0, startup_trials=4), 20, ["minimize"])
    assert study.best_value == 1.0


def test_running_trials_of_other_workers_are_not_proposed_again():
    study = optuna.create_study(sampler=PredictorGuidedSampler(0, startup_trials=12, explore=0.0))
    study.optimize(one_objective, n_trials=20)
    asked = [study.ask() for _ in range(8)]
    for trial in asked:
        suggested(trial)
    rows = [tuple(trial.params.items()) for trial in (*study.trials, *asked)]
    assert len({tuple(trial.params.items()) for trial in asked}) == 8
    assert len(set(rows[: 20 + 8])) == 28


def test_a_trial_costs_milliseconds():
    began = time.process_time()
    run(two_objectives, PredictorGuidedSampler(0), 100)
    assert (time.process_time() - began) / 100 < 0.05


WORKER = """
import sys, time, optuna
sys.path.insert(0, {folder!r})
from test_guided_sampler import PredictorGuidedSampler, two_objectives, storage_in
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="s", storage=storage_in({path!r}),
                          sampler=PredictorGuidedSampler(int(sys.argv[1]), startup_trials=10))
def measured(trial):
    found = two_objectives(trial)
    time.sleep(0.05)  # what runs can be seen by the other worker
    return found

study.optimize(measured, n_trials=20)
"""


def storage_in(path):
    return JournalStorage(JournalFileBackend(path))


def test_two_processes_share_a_study(tmp_path):
    path = str(tmp_path / "journal.log")
    optuna.create_study(
        study_name="s", storage=storage_in(path), directions=["minimize", "minimize"]
    )
    code = WORKER.format(folder=str(__file__).rpartition("/")[0], path=path)
    workers = [subprocess.Popen([sys.executable, "-c", code, str(seed)]) for seed in (1, 2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    study = optuna.load_study(study_name="s", storage=storage_in(path))
    assert len(study.trials) == 40
    assert sorted(trial.number for trial in study.trials) == list(range(40))
    rows = {tuple(sorted(trial.params.items())) for trial in study.trials}
    assert len(rows) >= 37  # both may begin the same candidate in the same moment

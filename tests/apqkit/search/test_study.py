import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from apqkit.errors import RunError
from apqkit.search.study import (
    JOURNAL,
    MeasuredTrial,
    _FileLock,
    add_trial,
    open_study,
    read_trials,
)
from apqkit.types import Dim

DIMS = (
    Dim("depth.s0", (1, 2), "arch"),
    Dim("w_format.s0.b0", ("int4", "int8"), "quant"),
)
OBJECTIVES = {"accuracy": "max", "latency_ms": "min"}


def trial_of(number: int) -> MeasuredTrial:
    return MeasuredTrial(
        candidate={"depth.s0": 1 + number % 2, "w_format.s0.b0": ("int4", "int8")[number % 2]},
        key=f"key{number}",
        round_number=number // 3,
        origin="evolution",
        accuracy=0.1 + number / 300.0,
        parts={"plain": 0.3, "corrupted": 1.0 / 3.0},
        predicted=0.7,
        predicted_low=0.0,
        predicted_high=1.0,
        costs={"latency_ms": 1.0 / (number + 3), "energy_mj": 0.1 + 0.2},
    )


def opened(folder, storage=None, objectives=OBJECTIVES, name="run"):
    return open_study(folder, storage, name, objectives)


def add(study, number: int) -> MeasuredTrial:
    trial = trial_of(number)
    values = [trial.accuracy, trial.costs["latency_ms"]]
    add_trial(study, DIMS, trial, values, {"latency_ms": trial.costs["latency_ms"] - 0.25})
    return trial


@pytest.fixture(params=["journal", "sqlite"])
def storage(request, tmp_path):
    return None if request.param == "journal" else f"sqlite:///{tmp_path / 'study.db'}"


def test_trials_come_back_as_they_were_in_order_after_opening_again(tmp_path, storage):
    added = [add(opened(tmp_path, storage), number) for number in range(5)]
    assert read_trials(opened(tmp_path, storage)) == added
    assert (tmp_path / JOURNAL).exists() == (storage is None)


def test_a_new_study_has_no_trials(tmp_path, storage):
    assert read_trials(opened(tmp_path, storage)) == []


def test_optuna_sees_values_directions_parameters_and_constraints(tmp_path, storage):
    study = opened(tmp_path, storage)
    for number in range(4):
        add(study, number)
    loaded = opened(tmp_path, storage)
    assert [each.name for each in loaded.directions] == ["MAXIMIZE", "MINIMIZE"]
    frozen = loaded.trials[1]
    assert frozen.state == TrialState.COMPLETE
    assert frozen.values == [trial_of(1).accuracy, 0.25]
    assert frozen.params == {"depth.s0": 2, "w_format.s0.b0": "int8"}
    assert frozen.distributions["depth.s0"] == CategoricalDistribution((1, 2))
    assert [each.constraints["latency_ms"] for each in loaded.trials] == [
        pytest.approx(1.0 / (number + 3) - 0.25) for number in range(4)
    ]
    assert [each.number for each in loaded.best_trials] == [3]


def test_figures_keep_every_digit_and_missing_costs_stay_missing(tmp_path, storage):
    trial = replace(trial_of(0), costs={"latency_ms": 0.1 + 0.2, "energy_mj": float("nan")})
    add_trial(opened(tmp_path, storage), DIMS, trial, [trial.accuracy, 0.3], {})
    (found,) = read_trials(opened(tmp_path, storage))
    assert found.costs["latency_ms"] == 0.1 + 0.2
    assert found.costs["energy_mj"] != found.costs["energy_mj"]
    assert asdict(found) | {"costs": {}} == asdict(trial) | {"costs": {}}


def test_trials_that_are_not_finished_are_left_out(tmp_path):
    study = opened(tmp_path)
    study.ask()
    added = add(study, 0)
    study.tell(study.ask(), state=TrialState.FAIL)
    assert read_trials(study) == [added]


def test_runs_share_a_storage_under_different_names(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    add(opened(tmp_path, storage, name="one"), 0)
    assert read_trials(opened(tmp_path, storage, name="two")) == []
    assert len(read_trials(opened(tmp_path, storage, name="one"))) == 1


def test_other_directions_are_refused(tmp_path, storage):
    add(opened(tmp_path, storage), 0)
    with pytest.raises(RunError) as caught:
        opened(tmp_path, storage, {"latency_ms": "min", "accuracy": "max"})
    assert str(caught.value) == (
        f"study 'run' in {storage or tmp_path / JOURNAL} has the directions "
        "['maximize', 'minimize'], this run ['minimize', 'maximize']: "
        "use another storage or another --out"
    )
    with pytest.raises(RunError, match="this run \\['maximize'\\]"):
        opened(tmp_path, storage, {"accuracy": "max"})
    assert len(read_trials(opened(tmp_path, storage))) == 1


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        (
            "sqlite:////nowhere/at/all/study.db",
            "(sqlite3.OperationalError) unable to open database file",
        ),
        ("notes.txt", "Could not parse SQLAlchemy URL from given URL string"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named(tmp_path, storage, reason):
    with pytest.raises(RunError) as caught:
        opened(tmp_path, storage)
    assert str(caught.value) == f"the study in {storage} cannot be opened: {reason}"


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(RunError) as caught:
        opened(tmp_path / "gone")
    path = tmp_path / "gone" / JOURNAL
    assert str(caught.value) == (
        f"the study in {path} cannot be opened: [Errno 2] No such file or directory: '{path}'"
    )


def test_a_journal_that_is_damaged_in_the_middle_is_named(tmp_path):
    for number in range(3):
        add(opened(tmp_path), number)
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{nonsense\n", *lines[2:]]))
    with pytest.raises(RunError) as caught:
        opened(tmp_path)
    assert str(caught.value) == (
        f"the study in {path} cannot be opened: Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1)"
    )


def test_somebody_elses_trials_are_refused(tmp_path, storage):
    study = opened(tmp_path, storage)
    add(study, 0)
    study.add_trial(optuna.create_trial(values=[0.5, 1.0]))
    with pytest.raises(RunError) as caught:
        read_trials(opened(tmp_path, storage))
    assert str(caught.value) == (
        "study 'run' holds trial 1, which is no measured candidate: use another storage"
    )


def test_a_journal_cut_anywhere_in_its_last_line_goes_on_without_that_line(tmp_path):
    added = [add(opened(tmp_path), number) for number in range(3)]
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in {start, start + 1, *range(start + 7, len(whole) - 1, 97), len(whole) - 1}:
        path.write_bytes(whole[:cut])
        study = opened(tmp_path)
        assert read_trials(study) == added[:2]
        assert path.read_bytes().startswith(whole[:start] + b'{"op_code":')
        assert add(study, 2) == added[2]
        assert read_trials(opened(tmp_path)) == added


def test_a_journal_cut_in_its_first_line_starts_anew(tmp_path):
    opened(tmp_path)
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:20])
    assert read_trials(opened(tmp_path)) == []


def test_a_whole_journal_is_left_as_it_is(tmp_path):
    add(opened(tmp_path), 0)
    before = (tmp_path / JOURNAL).read_bytes()
    opened(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes().startswith(before)


def test_a_trial_is_one_line_of_the_journal(tmp_path):
    study = opened(tmp_path)
    before = len((tmp_path / JOURNAL).read_text().splitlines())
    add(study, 0)
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert len(lines) == before + 1
    written = json.loads(lines[-1])
    assert written["values"] == [0.1, 1.0 / 3.0]
    assert written["user_attrs"]["key"] == "key0"


ENDLESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_study
study = test_study.opened(Path(sys.argv[1]))
number = len(test_study.read_trials(study))
while True:
    test_study.add(study, number)
    number += 1
    print(number, flush=True)
"""


def killed_after(folder, delay: float) -> int:
    """Kills a process that adds trials in a loop; returns how many it said it had added."""
    command = [sys.executable, "-c", ENDLESS, str(folder), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().split()
    return int(said[-1]) if said else 1


def test_a_process_that_is_killed_leaves_whole_trials_and_no_lock(tmp_path):
    reached = 0
    for delay in (0.05, 0.013):
        reached = max(reached, killed_after(tmp_path, delay))
        trials = read_trials(opened(tmp_path))
        assert trials == [trial_of(number) for number in range(len(trials))]
        assert len(trials) in (reached, reached + 1)
        reached = len(trials)
    assert reached > 2
    add(opened(tmp_path), reached)
    assert len(read_trials(opened(tmp_path))) == reached + 1


def test_threads_that_share_a_study_do_not_mix_their_lines(tmp_path):
    study = opened(tmp_path)

    def work(first: int) -> None:
        for number in range(first, first + 10):
            add(study, number)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    found = read_trials(opened(tmp_path))
    assert sorted(each.key for each in found) == sorted(f"key{number}" for number in range(30))


def test_one_lock_serves_two_threads_without_letting_both_in(tmp_path):
    lock = _FileLock(tmp_path / "lock")
    inside, most = [], []

    def work() -> None:
        for _ in range(40):
            lock.acquire()
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.0005)
            inside.pop()
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert max(most) == 1


def test_the_verbosity_of_optuna_is_left_alone(tmp_path):
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        add(opened(tmp_path), 0)
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    finally:
        optuna.logging.set_verbosity(before)

"""The Optuna study of a run: every measured candidate is a trial that was written in one piece."""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from apqkit.errors import RunError
from apqkit.run import write_atomically
from apqkit.types import Choice, Dim

__all__ = [
    "JOURNAL",
    "MeasuredTrial",
    "add_trial",
    "check_storage",
    "open_study",
    "read_trials",
]

JOURNAL = "journal.log"
"""File name of the study in a run's search directory."""


@dataclass(frozen=True)
class MeasuredTrial:
    """One measured candidate as the study keeps it.

    Attributes:
        candidate: All dims by value, inactive ones at their first choice.
        key: Short name of the candidate.
        round_number: Round that proposed it.
        origin: Rule that proposed it.
        accuracy: Measured on the validation images.
        parts: Accuracy over parts of the images.
        predicted: Accuracy predicted when it was proposed.
        predicted_low: Lower end of its interval.
        predicted_high: Upper end of its interval.
        costs: Every cost by metric.
    """

    candidate: Mapping[str, Choice]
    key: str
    round_number: int
    origin: str
    accuracy: float
    parts: Mapping[str, float]
    predicted: float
    predicted_low: float
    predicted_high: float
    costs: Mapping[str, float]


class _FileLock:
    """A lock that the system releases when its process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        file = self._path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file  # not before: another thread may hold the lock through it
        return True

    def release(self) -> None:
        file, self._file = self._file, None  # first: closing lets the next thread in
        if file is not None:
            file.close()


def check_storage(url: str) -> None:
    """Opens a storage and closes it again.

    Raises:
        RunError: It cannot be opened.
    """
    try:
        with _quiet_optuna():
            get_storage(url).remove_session()
    except Exception as fault:  # noqa: BLE001 - each storage has its own errors
        raise _unopened(url, fault) from None


def open_study(
    directory: Path, storage: str | None, name: str, objectives: Mapping[str, str]
) -> optuna.Study:
    """Opens the study of a run, or makes it.

    Args:
        directory: Where the journal lies.
        storage: An Optuna storage URL instead of the journal.
        name: Of the study; it must differ between runs that share a storage.
        objectives: Direction of each metric.

    Raises:
        RunError: The storage cannot be opened, or the study there has other directions.
    """
    directions: list[Literal["minimize", "maximize"]] = [
        "maximize" if each == "max" else "minimize" for each in objectives.values()
    ]
    try:
        with _quiet_optuna():
            study = optuna.create_study(
                storage=_storage(directory, storage),
                study_name=name,
                directions=directions,
                load_if_exists=True,
            )
            found = [each.name.lower() for each in study.directions]
    except Exception as fault:  # noqa: BLE001 - each storage has its own errors
        raise _unopened(storage or directory / JOURNAL, fault) from None
    if found != directions:
        raise RunError(
            f"study {name!r} in {storage or directory / JOURNAL} has the directions {found}, "
            f"this run {directions}: use another storage or another --out"
        )
    return study


def add_trial(
    study: optuna.Study,
    dims: Sequence[Dim],
    trial: MeasuredTrial,
    values: Sequence[float],
    excesses: Mapping[str, float],
) -> None:
    """Adds a finished trial in a single write, so that a kill leaves all of it or nothing.

    Args:
        study: Where it goes.
        dims: Of the space; each becomes a categorical parameter.
        trial: What was measured.
        values: The objectives, in the study's order and the user's direction.
        excesses: For each limit how far it is exceeded; 0 or less is feasible.
    """
    attributes = {
        field.name: _plain(getattr(trial, field.name))
        for field in fields(trial)
        if field.name != "candidate"
    }
    with _quiet_optuna():
        study.add_trial(
            create_trial(
                params=dict(trial.candidate),
                distributions={dim.name: CategoricalDistribution(dim.choices) for dim in dims},
                values=list(values),
                user_attrs=attributes,
                constraints=dict(excesses),
            )
        )


def read_trials(study: optuna.Study) -> list[MeasuredTrial]:
    """Returns the finished trials in the order in which they were added.

    Raises:
        RunError: Somebody else's trials are among them.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    wanted = {field.name for field in fields(MeasuredTrial)} - {"candidate"}
    for each in trials:
        if set(each.user_attrs) != wanted:
            raise RunError(
                f"study {study.study_name!r} holds trial {each.number}, which is no measured "
                f"candidate: use another storage"
            )
    return [MeasuredTrial(candidate=dict(each.params), **each.user_attrs) for each in trials]


def _unopened(where: str | Path, fault: Exception) -> RunError:
    reason = (str(fault).splitlines() or [type(fault).__name__])[0]
    return RunError(f"the study in {where} cannot be opened: {reason}")


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _storage(directory: Path, url: str | None) -> BaseStorage:
    if url is not None:
        return get_storage(url)
    path = directory / JOURNAL
    if path.exists():
        _drop_cut_line(path)
    lock: Any = _FileLock(directory / f"{JOURNAL}.lock")  # Optuna exports no base class for it
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _drop_cut_line(path: Path) -> None:
    """Drops a last line without its end: a kill cut it short, and Optuna cannot read past it."""
    whole, newline, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        write_atomically(path, whole + newline)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)

"""The result of a run: measured candidates, and the front that they form."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apqkit.errors import ApqkitError, UnknownNameError
from apqkit.registry import did_you_mean
from apqkit.types import Choice, FloatArray

__all__ = ["Evaluated", "ParetoSet", "read_evaluated", "write_evaluated"]

_TEXT_COLUMNS = ("key", "origin")
_FIGURES = ("accuracy", "predicted", "predicted_low", "predicted_high", "test_accuracy")
_PICKS_COLUMN = "candidate"


@dataclass(frozen=True)
class Evaluated:
    """Measured candidates, one entry each. NaN where a figure was not taken.

    Attributes:
        keys: Short names.
        origins: Rule that proposed each.
        candidates: Active dims by value.
        accuracy: (n,) on the validation images.
        predicted: (n,) accuracy predicted before it was measured.
        predicted_low: (n,) lower end of its interval.
        predicted_high: (n,) upper end of its interval.
        test_accuracy: (n,) on the test images.
        parts: (n,) accuracies over parts of the images, such as ``validation_plain``.
        costs: (n,) by metric, units in the names.
    """

    keys: tuple[str, ...]
    origins: tuple[str, ...]
    candidates: tuple[Mapping[str, Choice], ...]
    accuracy: FloatArray
    predicted: FloatArray
    predicted_low: FloatArray
    predicted_high: FloatArray
    test_accuracy: FloatArray
    parts: Mapping[str, FloatArray] = field(default_factory=dict)
    costs: Mapping[str, FloatArray] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Returns a line; :meth:`to_frame` shows the figures."""
        return f"Evaluated({len(self.keys)} candidates: {', '.join(self.keys[:8])})"

    def __len__(self) -> int:
        """Returns the number of candidates."""
        return len(self.keys)

    @property
    def figures(self) -> dict[str, FloatArray]:
        """Accuracy and every cost, by metric."""
        return {"accuracy": self.accuracy, **self.costs}

    def take(self, index: Sequence[int] | np.ndarray) -> "Evaluated":
        """Returns the candidates chosen by index."""
        rows = [int(each) for each in index]
        return Evaluated(
            keys=tuple(self.keys[row] for row in rows),
            origins=tuple(self.origins[row] for row in rows),
            candidates=tuple(self.candidates[row] for row in rows),
            **{name: getattr(self, name)[rows] for name in _FIGURES},
            parts={name: values[rows] for name, values in self.parts.items()},
            costs={name: values[rows] for name, values in self.costs.items()},
        )

    def to_frame(self) -> pd.DataFrame:
        """Returns one row a candidate; its dims stand in one column as JSON."""
        columns: dict[str, Any] = {"key": self.keys, "origin": self.origins}
        columns |= {name: getattr(self, name) for name in _FIGURES}
        columns |= {f"part:{name}": values for name, values in self.parts.items()}
        columns |= dict(self.costs)
        columns[_PICKS_COLUMN] = [json.dumps(dict(each)) for each in self.candidates]
        return pd.DataFrame(columns)


@dataclass(frozen=True)
class ParetoSet:
    """The measured front of a run, most accurate first.

    Attributes:
        members: Candidates that no other measured one beats, within limits.
        references: Networks that give a scale: largest, smallest, best uniform int4.
        objectives: Direction ("max" or "min") of each metric that was searched for.
        knee_key: The member with the best trade-off.
        path: The run directory.
    """

    members: Evaluated
    references: Evaluated
    objectives: Mapping[str, str]
    knee_key: str
    path: Path

    def __len__(self) -> int:
        """Returns the number of members."""
        return len(self.members)

    def __repr__(self) -> str:
        """Returns a line; :meth:`to_frame` shows the figures."""
        return f"ParetoSet({len(self)} members, knee {self.knee_key}, {self.path})"

    def to_frame(self) -> pd.DataFrame:
        """Returns one row a member."""
        return self.members.to_frame()

    def knee(self) -> Evaluated:
        """Returns the member with the best trade-off: farthest below the line between the ends."""
        return self.pick("knee")

    def pick(self, key: str) -> Evaluated:
        """Returns the member with that key, or the knee for "knee".

        Raises:
            UnknownNameError: No member has that key.
        """
        wanted = self.knee_key if key == "knee" else key
        if wanted not in self.members.keys:
            hint = did_you_mean(wanted, self.members.keys)
            raise UnknownNameError(
                f"no member of the front has the key {key!r}{hint}; "
                f"there are: knee, {', '.join(self.members.keys)}"
            )
        return self.members.take([self.members.keys.index(wanted)])

    def under(self, limits: Mapping[str, float]) -> Evaluated:
        """Returns the members within further limits, such as ``{"latency_ms": 0.5}``.

        Raises:
            UnknownNameError: A metric has no figures here.
        """
        inside = np.ones(len(self), dtype=bool)
        for name, limit in limits.items():
            if name not in self.members.costs:
                hint = did_you_mean(name, self.members.costs)
                known = ", ".join(self.members.costs)
                raise UnknownNameError(f"no cost named {name!r}{hint}; there are: {known}")
            inside &= self.members.costs[name] <= limit
        return self.members.take(np.flatnonzero(inside))


def write_evaluated(evaluated: Evaluated) -> str:
    """Returns candidates as CSV; figures keep every digit."""
    return str(evaluated.to_frame().to_csv(index=False, lineterminator="\n"))


def read_evaluated(path: Path) -> Evaluated:
    """Reads what :func:`write_evaluated` wrote.

    Raises:
        ApqkitError: The file is missing or damaged.
    """
    try:
        frame = pd.read_csv(
            path, dtype=dict.fromkeys(_TEXT_COLUMNS, str), keep_default_na=False, na_values=[""]
        )
        parts = [name for name in frame.columns if name.startswith("part:")]
        named = {*_TEXT_COLUMNS, *_FIGURES, *parts, _PICKS_COLUMN}
        return Evaluated(
            keys=tuple(frame["key"]),
            origins=tuple(frame["origin"]),
            candidates=tuple(dict(json.loads(each)) for each in frame[_PICKS_COLUMN]),
            **{name: frame[name].to_numpy(np.float64) for name in _FIGURES},
            parts={name[5:]: frame[name].to_numpy(np.float64) for name in parts},
            costs={
                name: frame[name].to_numpy(np.float64)
                for name in frame.columns
                if name not in named
            },
        )
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ApqkitError(f"{path} is missing or damaged: {fault}") from None

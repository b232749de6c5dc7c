"""How well programs rank the training settings of tables.  Letters: n settings, L layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from predictors.zerocost.arrays import FloatArray, IntArray
from predictors.zerocost.evolution.evaluation import Evaluator
from predictors.zerocost.evolution.expressions import Expression
from predictors.zerocost.evolution.ranking import in_steps, unit_ranks
from predictors.zerocost.evolution.setting_table import SettingTable
from predictors.zerocost.proxy import Direction

__all__ = ["TOP_SHARES", "Fitness", "TrainingSettings", "fitness"]

TOP_SHARES = (0.2, 0.5, 1.0)
"""Shares of the most accurate settings that programs must rank."""

_SCREENED = 4
_ALIKE = 1e-9  # of the largest magnitude: scores that differ by less do so by rounding


@dataclass(frozen=True)
class Fitness:
    """How well a program ranks training settings.

    Attributes:
        value: Magnitude of the mean of Spearman's rho over tables and top shares, 0..1.
        direction: That of the program, from the sign of that mean.
    """

    value: float
    direction: Direction


@dataclass(frozen=True, eq=False)
class TrainingSettings:
    """The training settings of one table, most accurate first, with what ranking them needs.

    Attributes:
        evaluator: Of the table's layers.
        places: (n, L) where scores of settings are found in flat scores of layers and formats.
        accuracy: (n,) descending.
    """

    evaluator: Evaluator
    places: IntArray
    accuracy: FloatArray

    @classmethod
    def of(cls, table: SettingTable) -> "TrainingSettings":
        """Returns the training settings of a table."""
        rows = np.flatnonzero(~table.held_out)
        rows = rows[np.argsort(-table.accuracy[rows], kind="stable")]
        L, F = table.inputs.errors.shape
        places = table.settings[rows] + np.arange(L) * F
        return cls(Evaluator(table.inputs), places, table.accuracy[rows])

    @cached_property
    def screened(self) -> IntArray:
        """(4, L) places of four settings of different accuracy, to find broken programs with."""
        rows = np.linspace(0, len(self.places) - 1, _SCREENED).round().astype(np.int64)
        return self.places[rows]

    @cached_property
    def truths(self) -> tuple[FloatArray, ...]:
        """Centred ranks of the accuracies of each top share, of norm 1 (0 if all are alike)."""
        counts = (math.ceil(share * len(self.accuracy)) for share in TOP_SHARES)
        return tuple(unit_ranks(self.accuracy[:count]) for count in counts)

    def mean_rho(self, expression: Expression) -> float | None:
        """Returns the mean of Spearman's rho over the top shares, None for a broken program.

        A program is broken if it is not finite, or scores the four screened settings alike. Where
        all scores of a share are alike rho counts as 0.
        """
        numbers = self.evaluator.numbers(expression)
        if numbers is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # sums of what is finite, looked at
            return self._rho_of(numbers.ravel())

    def _rho_of(self, flat: FloatArray) -> float | None:
        if _are_alike(flat[self.screened].sum(axis=1)):
            return None
        scores = flat[self.places].sum(axis=1)
        if _are_alike(scores):
            return None
        steps = in_steps(scores)
        rhos = [float(truth @ unit_ranks(steps[: len(truth)])) for truth in self.truths]
        return sum(rhos) / len(rhos)


def fitness(expression: Expression, settings: Sequence[TrainingSettings]) -> Fitness | None:
    """Returns the fitness on the training settings of tables; None if broken on any of them."""
    rhos = []
    for each in settings:
        rho = each.mean_rho(expression)
        if rho is None:
            return None
        rhos.append(rho)
    mean = sum(rhos) / len(rhos)
    return Fitness(abs(mean), "up" if mean >= 0.0 else "down")


def _are_alike(scores: FloatArray) -> bool:
    """Returns whether scores are equal but for rounding, or not finite."""
    spread = scores.max() - scores.min()
    return not spread > _ALIKE * np.abs(scores).max() or not np.isfinite(spread)

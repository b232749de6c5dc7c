"""Whether what was learned pays, against a base that was only moved. Letters: n rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.metrics import kendall_tau
from predictors.transfer.anchor import Anchor
from predictors.transfer.rows import TransferRows
from predictors.validation import split_by_group

__all__ = ["Choice", "choose_mode", "gain_and_error", "out_of_fold_of", "weight_of_gain"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Fit = Callable[[TransferRows], Any]

_FULL_WEIGHT = 2.0  # standard errors of gain from which the base alone has no say


@dataclass(frozen=True)
class Choice:
    """What is used.

    Attributes:
        mode: Name; "base" for the moved base alone.
        weight: Of the mode against the moved base, 0..1.
        gain: Reduction of the mean squared error out of fold by the mode alone.
        gain_error: Its standard error over groups.
        out_of_fold: (n,) predictions by fits that never saw a row's group.
    """

    mode: str
    weight: float
    gain: float
    gain_error: float
    out_of_fold: FloatArray


def choose_mode(
    modes: Mapping[str, Fit], rows: TransferRows, folds: int, *, guarded: bool
) -> Choice:
    """Returns which mode to use and how much of it.

    Args:
        modes: How to fit each; the first is taken unless another errs less by more than one
            standard error.
        rows: All new rows.
        folds: Of the cross-validation; with fewer groups than that the moved base is all.
        guarded: Whether the mode must earn its weight; else it is 1.
    """
    if int(rows.groups.max()) + 1 < folds:
        return Choice("base", 0.0, np.nan, np.nan, out_of_fold_of(_fit_anchor, rows, folds))
    moved = out_of_fold_of(_fit_anchor, rows, folds)
    unseen = {name: out_of_fold_of(fit, rows, folds) for name, fit in modes.items()}
    best = _best(unseen, rows)
    learned = unseen[best]
    gain, error = gain_and_error(rows, moved, learned)
    weight = 1.0
    if guarded:
        weight = weight_of_gain(gain, error) if _ranks_no_worse(rows.z, moved, learned) else 0.0
    mixed = weight * learned + (1.0 - weight) * moved
    return Choice(best if weight > 0.0 else "base", weight, gain, error, mixed)


def weight_of_gain(gain: float, error: float) -> float:
    """Returns 0 up to a gain of one standard error, 1 from two, and a line between."""
    if not gain > error:
        return 0.0
    return min((gain / error - 1.0) / (_FULL_WEIGHT - 1.0), 1.0) if error > 0.0 else 1.0


def gain_and_error(
    rows: TransferRows, without: FloatArray, with_it: FloatArray
) -> tuple[float, float]:
    """Returns the reduction of the mean squared error, and its standard error over groups."""
    gains = (rows.z - without) ** 2 - (rows.z - with_it) ** 2
    gain = float(gains.mean())
    sums = np.bincount(rows.groups, weights=gains - gain)
    groups = len(sums)
    return gain, float(np.sqrt(groups / (groups - 1) * (sums @ sums))) / len(gains)


def out_of_fold_of(fit: Fit, rows: TransferRows, folds: int) -> FloatArray:
    """Returns (n,) predictions by fits that never saw a row's group; NaN for a single group."""
    predicted = np.full(len(rows.z), np.nan)
    if rows.groups.max() < 1:
        return predicted
    for train, test in split_by_group(rows.groups, folds=folds):
        fitted = fit(rows.part(train))
        predicted[test] = fitted.predict(rows.X[test], rows.prior[test])[0]
    return predicted


def _best(unseen: Mapping[str, FloatArray], rows: TransferRows) -> str:
    first, *others = unseen
    best = first
    for name in others:
        gain, error = gain_and_error(rows, unseen[first], unseen[name])
        errors = [float(np.mean((rows.z - unseen[each]) ** 2)) for each in (name, best)]
        if gain > error and errors[0] < errors[1]:
            best = name
    return best


def _ranks_no_worse(z: FloatArray, moved: FloatArray, learned: FloatArray) -> bool:
    """Returns whether what was learned ranks like the moved base or better; ties count for it."""
    before, after = kendall_tau(z, moved), kendall_tau(z, learned)
    return bool(np.isnan(before) or after >= before)


def _fit_anchor(rows: TransferRows) -> "_MovedBase":
    return _MovedBase(Anchor.of(rows.prior, rows.z))


@dataclass(frozen=True)
class _MovedBase:
    anchor: Anchor

    def predict(self, X: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        moved = self.anchor.moved(prior)
        return moved, np.full(len(X), self.anchor.spread)

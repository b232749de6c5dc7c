"""Prediction intervals whose coverage does not rest on the model being right.

Letters: n rows, d columns, m calibration rows.
"""

import inspect
import math
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.validation import group_labels, split_by_group

__all__ = ["CONFORMAL_METHODS", "ConformalPredictor", "conformal_half_width"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CONFORMAL_METHODS = ("split", "cv+")
"""What ``ConformalPredictor.method`` can be."""

_LEAST_SPREAD = 1e-3  # of the median spread: a model too sure of a row must not decide alone


def conformal_half_width(residuals: FloatArray, coverage: float) -> float:
    """Returns the half-width that covers a new row with about the chance asked for.

    The ceil((m + 1) * coverage)-th smallest of m absolute residuals of rows that the model had
    not seen; infinite if m is too small for it. With residuals of one model on rows held out, the
    chance is met or exceeded (split conformal prediction, Vovk et al. 2005); with residuals of
    several folds, or for rows that were picked for their prediction, that is no promise.

    Args:
        residuals: (m,) truth minus prediction, out of fold; NaN is left out.
        coverage: In 0..1.

    Raises:
        ValueError: The coverage is out of range.

    >>> conformal_half_width(np.array([0.1, -0.3, 0.2, 0.4]), 0.8)
    0.4
    >>> conformal_half_width(np.array([0.1]), 0.9)
    inf
    """
    sizes = np.sort(np.abs(residuals[~np.isnan(residuals)]))
    place = _place(len(sizes), coverage)
    return float(sizes[place - 1]) if place <= len(sizes) else math.inf


class ConformalPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Any estimator, with intervals that cover new rows as often as asked.

    - ``split``: the estimator learns some of the rows, the others give its errors. Rows of new
      groups are covered at least as often as asked if groups come from one distribution.
    - ``cv+``: each fold's errors come from a fit without it, and the interval is made of what
      those fits predict (Barber et al., Predictive Inference with the Jackknife+, 2021). No row
      is lost to the fit, and the intervals are narrower; in practice they cover as asked, the
      bound is 2 * coverage - 1.

    Whole groups are learned from or calibrate, never both.

    Args:
        estimator: Unfitted, with ``fit(X, y)`` and ``predict(X)``.
        method: One of :data:`CONFORMAL_METHODS`.
        coverage: In 0..1.
        normalise: Divide errors by the estimator's own standard deviation, so that rows it is
            sure of get narrow intervals; its ``predict`` must take ``return_std``.
        calibration_share: Share of the groups that calibrate; ``split`` alone uses it.
        folds: ``cv+`` alone uses them; fewer where there are fewer groups.
        random_state: Seed of the split.

    Attributes:
        scores_: (m,) absolute errors of calibration rows, divided by deviations if normalised.
    """

    def __init__(
        self,
        estimator: Any,
        method: str = "cv+",
        *,
        coverage: float = 0.9,
        normalise: bool = False,
        calibration_share: float = 0.3,
        folds: int = 10,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.method = method
        self.coverage = coverage
        self.normalise = normalise
        self.calibration_share = calibration_share
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: FloatArray, y: FloatArray, groups: IntArray | None = None) -> Self:
        """Fits and calibrates on rows X (n, d) and targets y (n,); groups (n,) stay together.

        Raises:
            ValueError: An unknown method, a number out of range, fewer than two groups, or
                ``normalise`` with an estimator that has no standard deviation.
        """
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        self._check_parameters()
        labels = group_labels(len(y), groups)
        if labels.max() < 1:
            raise ValueError("conformal intervals need at least 2 groups, got 1")
        if self.method == "split":
            self._fit_split(X, y, labels)
        else:
            self._fit_folds(X, y, labels)
        return self

    def predict(self, X: FloatArray) -> FloatArray:
        """Returns what the estimator predicts (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(self.estimator_.predict(X))

    def predict_interval(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns lower and upper ends (n,) for rows X (n, d); infinite with too few rows."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        place = _place(len(self.scores_), self.coverage)
        if place > len(self.scores_):
            return np.full(len(X), -np.inf), np.full(len(X), np.inf)
        if self.method == "split":
            mean, spread = self._predicted(self.estimator_, X)
            half = np.sort(self.scores_)[place - 1] * spread
            return mean - half, mean + half
        ends = [self._predicted(each, X) for each in self.fold_estimators_]
        mean, spread = (np.stack(each)[self.folds_of_scores_] for each in zip(*ends, strict=True))
        margins = self.scores_[:, None] * spread
        low = -np.partition(margins - mean, place - 1, axis=0)[place - 1]
        return low, np.partition(mean + margins, place - 1, axis=0)[place - 1]

    def _check_parameters(self) -> None:
        if self.method not in CONFORMAL_METHODS:
            known = ", ".join(CONFORMAL_METHODS)
            raise ValueError(f"method must be one of {known}, got {self.method!r}")
        if not 0.0 < self.calibration_share < 1.0:
            raise ValueError(
                f"calibration_share must lie between 0 and 1, got {self.calibration_share}"
            )
        if self.normalise and not _has_deviation(self.estimator):
            raise ValueError(
                f"normalise needs an estimator whose predict takes return_std, "
                f"got {type(self.estimator).__name__}"
            )
        _check_coverage(self.coverage)

    def _fit_split(self, X: FloatArray, y: FloatArray, labels: IntArray) -> None:
        groups = int(labels.max()) + 1
        order = np.random.default_rng(self.random_state).permutation(groups)
        count = min(max(round(self.calibration_share * groups), 1), groups - 1)
        held = np.isin(labels, order[:count])
        self.estimator_ = _fitted(self.estimator, X[~held], y[~held], labels[~held])
        self.scores_ = self._scores(self.estimator_, X[held], y[held])

    def _fit_folds(self, X: FloatArray, y: FloatArray, labels: IntArray) -> None:
        self.estimator_ = _fitted(self.estimator, X, y, labels)
        self.fold_estimators_ = []
        scores, folds = np.empty(len(y)), np.empty(len(y), dtype=np.int64)
        splits = split_by_group(labels, folds=self.folds, seed=self.random_state)
        for fold, (train, test) in enumerate(splits):
            fitted = _fitted(self.estimator, X[train], y[train], labels[train])
            scores[test], folds[test] = self._scores(fitted, X[test], y[test]), fold
            self.fold_estimators_.append(fitted)
        self.scores_, self.folds_of_scores_ = scores, folds

    def _scores(self, fitted: Any, X: FloatArray, y: FloatArray) -> FloatArray:
        mean, spread = self._predicted(fitted, X)
        return np.asarray(np.abs(y - mean) / spread)

    def _predicted(self, fitted: Any, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns predictions (n,) and what errors are measured in (n,)."""
        if not self.normalise:
            return fitted.predict(X), np.ones(len(X))
        mean, deviation = fitted.predict(X, return_std=True)
        floor = _LEAST_SPREAD * float(np.median(deviation))
        return mean, np.maximum(deviation, floor if floor > 0.0 else 1e-12)


def _place(count: int, coverage: float) -> int:
    """Returns which of ``count`` sorted errors is the half-width, numbered from 1."""
    _check_coverage(coverage)
    exact = (count + 1) * coverage  # or a little more: 25 * 0.56 > 14
    return max(math.ceil(exact - 1e-9), 1)


def _check_coverage(coverage: float) -> None:
    if not 0.0 <= coverage <= 1.0:
        raise ValueError(f"coverage must lie in 0..1, got {coverage}")


def _fitted(estimator: Any, X: FloatArray, y: FloatArray, labels: IntArray) -> Any:
    estimator = clone(estimator)
    if "groups" in inspect.signature(estimator.fit).parameters:
        return estimator.fit(X, y, groups=labels)
    return estimator.fit(X, y)


def _has_deviation(estimator: Any) -> bool:
    return "return_std" in inspect.signature(estimator.predict).parameters

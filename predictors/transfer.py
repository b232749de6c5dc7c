"""Transfer: a predictor for one kind of target that takes a fitted predictor of another as base.

The case it is made for: accuracy in fp32 has been measured for many networks, accuracy in mixed
number formats for few. The base predicts the former from the first columns, and what is learned is
the difference on the logit scale.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.regressors import (
    BlendPredictor,
    from_link,
    shift_off_fractions,
    to_link,
    uses_logit,
)
from predictors.validation import group_labels, out_of_fold

__all__ = ["TransferPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class TransferPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Learns the difference between a target and the prediction of a fitted base.

    The difference is used only if it pays: out of fold, split by group, its squared error must
    undercut that of the re-anchored base (offset and slope) by more than one standard error.
    Otherwise the re-anchored base is the prediction, so that few rows cannot rank worse than none.

    Args:
        base: Fitted; it reads the first ``base.n_features_in_`` columns. None learns from scratch.
        residual: Unfitted predictor for the difference; None for a :class:`BlendPredictor`.
        folds: Of the check whether the difference pays.
        random_state: Seed of the default ``residual``.

    Attributes:
        out_of_fold_: (n,) predictions of rows by fits that never saw their group, on the scale of
            the targets; NaN where there was a single group.
        gain_: Reduction of the mean squared error out of fold, on the link scale.
        gain_error_: Its standard error over rows.
        uses_residual_: Whether the difference is used.
    """

    def __init__(
        self,
        base: Any = None,
        residual: Any = None,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.base = base
        self.residual = residual
        self.folds = folds
        self.random_state = random_state

    def __sklearn_clone__(self) -> Self:
        """Returns an unfitted copy that shares the base, which stays fitted."""
        residual = None if self.residual is None else clone(self.residual)
        return type(self)(self.base, residual, self.folds, self.random_state)

    def fit(self, X: FloatArray, y: FloatArray, groups: IntArray | None = None) -> Self:
        """Fits rows X (n, d) to targets y (n,); inner splits keep groups (n,) together."""
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        self.logit_ = uses_logit(y)
        z = to_link(y, logit=self.logit_)
        prior = self._prior(X)
        self.anchor_ = _anchor(prior, z)
        self.shift_ = shift_off_fractions(z - prior)
        self.residual_ = self._new_residual()
        labels = group_labels(len(y), groups)
        self.uses_residual_ = self._pays(X, z, prior, labels)
        if self.uses_residual_:
            self.residual_.fit(self._columns(X, prior), z - prior - self.shift_, labels)
        return self

    def predict(
        self, X: FloatArray, return_std: bool = False
    ) -> FloatArray | tuple[FloatArray, FloatArray]:
        """Returns predictions (n,), with standard deviations (n,) if asked for."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        prior = self._prior(X)
        if self.uses_residual_:
            difference, deviation = self.residual_.predict(
                self._columns(X, prior), return_std=True
            )
            z = prior + self.shift_ + difference
        else:
            offset, slope, spread = self.anchor_
            z, deviation = offset + slope * prior, np.full(len(X), spread)
        y = from_link(z, logit=self.logit_)
        slope_of_link = y * (1.0 - y) if self.logit_ else np.ones_like(y)
        return (y, deviation * slope_of_link) if return_std else y

    def _new_residual(self) -> Any:
        if self.residual is None:
            return BlendPredictor(random_state=self.random_state)
        return clone(self.residual)

    def _prior(self, X: FloatArray) -> FloatArray:
        """(n,) the base's prediction on the link scale; 0 without a base."""
        if self.base is None:
            return np.zeros(len(X))
        columns = getattr(self.base, "n_features_in_", X.shape[1])
        return to_link(self.base.predict(X[:, :columns]), logit=self.logit_)

    def _columns(self, X: FloatArray, prior: FloatArray) -> FloatArray:
        return X if self.base is None else np.hstack([X, prior[:, None]])

    def _pays(self, X: FloatArray, z: FloatArray, prior: FloatArray, labels: IntArray) -> bool:
        """Returns whether the difference beats the re-anchored base out of fold."""
        self.out_of_fold_ = np.full(len(z), np.nan)
        self.gain_ = self.gain_error_ = float("nan")
        count = int(labels.max()) + 1
        if count < 2:
            return self.base is None
        anchored = out_of_fold(_Anchor(), prior[:, None], z, labels, folds=self.folds)
        if self.base is not None and count < 2 * self.folds:
            self.out_of_fold_ = from_link(anchored, logit=self.logit_)
            return False
        columns, shifted = self._columns(X, prior), z - prior - self.shift_
        unseen = out_of_fold(self._new_residual(), columns, shifted, labels, folds=self.folds)
        learned = prior + self.shift_ + unseen
        gains = (z - anchored) ** 2 - (z - learned) ** 2
        self.gain_ = float(gains.mean())
        self.gain_error_ = float(gains.std(ddof=1) / np.sqrt(len(gains)))
        pays = self.base is None or self.gain_ > self.gain_error_
        self.out_of_fold_ = from_link(learned if pays else anchored, logit=self.logit_)
        return pays


class _Anchor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A line through (prior, target), for the out-of-fold comparison."""

    def fit(self, X: FloatArray, y: FloatArray, groups: IntArray | None = None) -> Self:
        del groups
        self.line_ = _anchor(X[:, 0], y)
        return self

    def predict(self, X: FloatArray) -> FloatArray:
        offset, slope, _ = self.line_
        return np.asarray(offset + slope * X[:, 0])


def _anchor(prior: FloatArray, z: FloatArray) -> tuple[float, float, float]:
    """Returns offset, slope (never negative: a base is not turned round) and residual spread."""
    variance = float(prior.var())
    slope = float(np.cov(prior, z, bias=True)[0, 1]) / variance if variance > 1e-12 else 0.0
    slope = slope if slope > 0.0 else 1e-6
    offset = float(z.mean() - slope * prior.mean())
    return offset, slope, float(np.std(z - offset - slope * prior))

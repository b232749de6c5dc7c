"""What all predictors share. Letters: n rows, d columns."""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.regressors.link import from_link, to_link, uses_logit
from predictors.validation import group_labels

__all__ = ["LinkPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class LinkPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Target scale and input checks; subclasses fit and predict on the link scale."""

    def fit(self, X: FloatArray, y: FloatArray, groups: IntArray | None = None) -> Self:
        """Fits rows X (n, d) to targets y (n,); inner splits keep groups (n,) together.

        Rows that are equal may have different targets: they count as repeated measurements. Equal
        targets throughout are predicted as they are.

        Raises:
            ValueError: A number is missing or infinite, or shapes do not fit.
        """
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64, ensure_all_finite=False)
        _require_finite(X)
        self.logit_ = uses_logit(y)
        self._fit_link(X, to_link(y, logit=self.logit_), group_labels(len(y), groups))
        return self

    def predict(
        self, X: FloatArray, return_std: bool = False
    ) -> FloatArray | tuple[FloatArray, FloatArray]:
        """Returns predictions (n,), with standard deviations (n,) if asked for.

        Raises:
            NotFittedError: Before a fit.
            ValueError: A number is missing or infinite, or there are more or fewer columns than
                in the fit.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite=False)
        _require_finite(X)
        if not return_std:
            return from_link(self._predict_mean(X), logit=self.logit_)
        z, deviation = self._predict_link(X)
        y = from_link(z, logit=self.logit_)
        slope = y * (1.0 - y) if self.logit_ else 1.0
        return y, deviation * slope

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        raise TypeError(f"{type(self).__name__} does not fit")

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        raise TypeError(f"{type(self).__name__} does not predict")

    def _predict_mean(self, X: FloatArray) -> FloatArray:
        """Returns the first part of ``_predict_link``; for predictors where the other costs."""
        return self._predict_link(X)[0]


def _require_finite(X: FloatArray) -> None:
    if np.isfinite(X).all():
        return
    row, column = np.argwhere(~np.isfinite(X))[0]
    value = "NaN" if np.isnan(X[row, column]) else f"{X[row, column]}"
    raise ValueError(f"X must be finite, got {value} in row {row}, column {column}")

"""Linear predictor with a posterior."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import BayesianRidge

from predictors.regressors.base import LinkPredictor
from predictors.regressors.columns import ScaledColumns

__all__ = ["BayesianRidgePredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class BayesianRidgePredictor(LinkPredictor):
    """Bayesian ridge regression on standardised columns; the evidence sets the penalty.

    The standard deviation joins noise and what is not known of the weights, so it grows with the
    distance from the rows.

    Args:
        iterations: At most so many rounds in search of the penalty.
    """

    def __init__(self, iterations: int = 300) -> None:
        self.iterations = iterations

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        del groups
        self.columns_ = ScaledColumns().fit(X)
        self.mean_, self.ridge_ = float(z.mean()), None
        if np.ptp(z) > 0.0:
            ridge = BayesianRidge(max_iter=self.iterations)
            self.ridge_ = ridge.fit(self.columns_.transform(X), z)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        if self.ridge_ is None:
            return np.full(len(X), self.mean_), np.zeros(len(X))
        mean, deviation = self.ridge_.predict(self.columns_.transform(X), return_std=True)
        return np.asarray(mean), np.asarray(deviation)

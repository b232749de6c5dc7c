"""Linear predictor."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeCV

from predictors.regressors.base import LinkPredictor
from predictors.regressors.process import in_parts

__all__ = ["RidgePredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CLIP = 5.0  # standardised features are clipped here: a far column must not rule the fit


class RidgePredictor(LinkPredictor):
    """Ridge regression on standardised columns; the penalty is chosen by leave-one-out error.

    Args:
        alphas: Penalties to choose from.
    """

    def __init__(self, alphas: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)) -> None:
        self.alphas = alphas

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        del groups
        self.mean_ = X.mean(axis=0)
        deviation = X.std(axis=0)
        self.scale_ = np.where(deviation > 1e-12, deviation, np.inf)
        columns = self._standardised(X)
        if len(z) < 2:  # nothing is left when one is left out
            self.ridge_, self.deviation_ = Ridge().fit(columns, z), 0.0
            return
        self.ridge_ = RidgeCV(alphas=list(self.alphas)).fit(columns, z)
        self.deviation_ = float(np.sqrt(max(-self.ridge_.best_score_, 0.0)))

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        z = in_parts(lambda rows: self.ridge_.predict(self._standardised(rows)), X)
        return z, np.full(len(X), self.deviation_)

    def _standardised(self, X: FloatArray) -> FloatArray:
        columns = X - self.mean_
        columns /= self.scale_
        return np.asarray(np.clip(columns, -_CLIP, _CLIP, out=columns))

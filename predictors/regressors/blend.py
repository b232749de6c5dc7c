"""The mean of a line and trees."""

import numpy as np
from numpy.typing import NDArray

from predictors.regressors.base import LinkPredictor
from predictors.regressors.extra_trees import ExtraTreesPredictor
from predictors.regressors.ridge import RidgePredictor

__all__ = ["BlendPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class BlendPredictor(LinkPredictor):
    """Mean of ridge regression and extra trees on the link scale.

    The two err differently: a line extrapolates, trees catch interactions.

    Args:
        n_estimators: Number of trees.
        random_state: Seed.
    """

    def __init__(self, n_estimators: int = 100, random_state: int = 0) -> None:
        self.n_estimators = n_estimators
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        trees = ExtraTreesPredictor(self.n_estimators, random_state=self.random_state)
        self.members_ = [RidgePredictor(), trees]
        for member in self.members_:
            member._fit_link(X, z, groups)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        means, deviations = zip(*(each._predict_link(X) for each in self.members_), strict=True)
        variance = np.mean(np.square(deviations), axis=0) + np.var(means, axis=0)
        return np.mean(means, axis=0), np.sqrt(variance)

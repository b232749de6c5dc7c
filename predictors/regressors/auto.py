"""The default: whatever ranks best in inner cross-validation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from predictors.metrics import kendall_tau
from predictors.regressors.base import LinkPredictor
from predictors.regressors.blend import BlendPredictor
from predictors.regressors.extra_trees import ExtraTreesPredictor
from predictors.regressors.link import shift_off_fractions
from predictors.regressors.ridge import RidgePredictor
from predictors.validation import out_of_fold

__all__ = ["AutoPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class AutoPredictor(LinkPredictor):
    """The predictor that ranks best in inner cross-validation, refitted on all rows.

    Args:
        folds: Of the inner cross-validation, grouped where groups are given.
        n_estimators: Number of trees of those that have trees.
        random_state: Seed.

    Attributes:
        scores_: Kendall's tau of each predictor tried, out of fold; 0 where it has none.
        chosen_: Name of the one that was taken.
    """

    def __init__(self, folds: int = 5, n_estimators: int = 100, random_state: int = 0) -> None:
        self.folds = folds
        self.n_estimators = n_estimators
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        trees = {"n_estimators": self.n_estimators, "random_state": self.random_state}
        tried: dict[str, Any] = {
            "ridge": RidgePredictor(),
            "extra_trees": ExtraTreesPredictor(**trees),
            "blend": BlendPredictor(**trees),
        }
        self.scores_ = {name: self._score(each, X, z, groups) for name, each in tried.items()}
        self.chosen_ = max(self.scores_, key=lambda name: self.scores_[name])
        self.predictor_ = clone(tried[self.chosen_])
        self.predictor_._fit_link(X, z, groups)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        link: tuple[FloatArray, FloatArray] = self.predictor_._predict_link(X)
        return link

    def _score(self, tried: Any, X: FloatArray, z: FloatArray, groups: IntArray) -> float:
        if groups.max() < 1:
            return 0.0
        shifted = z - shift_off_fractions(z)
        tau = kendall_tau(z, out_of_fold(tried, X, shifted, groups, folds=self.folds))
        return tau if np.isfinite(tau) else 0.0

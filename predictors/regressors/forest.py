"""What predictors made of scikit-learn's forests share. Letters: n rows, d columns."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from predictors.regressors.base import LinkPredictor

__all__ = ["ForestPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class ForestPredictor(LinkPredictor):
    """Mean and standard deviation of the votes of trees; subclasses name the kind of forest.

    Args:
        n_estimators: Number of trees.
        min_samples_leaf: Smallest leaf.
        max_features: Share of the columns tried at a split.
        random_state: Seed.
    """

    forest: ClassVar[Any]
    """The class in scikit-learn."""

    def __init__(
        self, n_estimators: int, min_samples_leaf: int, max_features: float, random_state: int
    ) -> None:
        self.n_estimators = n_estimators
        self.min_samples_leaf = min_samples_leaf
        self.max_features = max_features
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        del groups
        self.trees_ = self.forest(**self.get_params()).fit(X.astype(np.float32), z)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        X = X.astype(np.float32)
        votes = np.stack([tree.tree_.predict(X)[:, 0] for tree in self.trees_.estimators_])
        return votes.mean(axis=0), votes.std(axis=0)

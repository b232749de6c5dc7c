"""Random forest."""

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from predictors.regressors.base import LinkPredictor

__all__ = ["RandomForestPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class RandomForestPredictor(LinkPredictor):
    """A random forest: every tree has a bag of rows of its own.

    Args:
        n_estimators: Number of trees.
        min_samples_leaf: Smallest leaf.
        max_features: Share of the columns tried at a split.
        random_state: Seed.
    """

    def __init__(
        self,
        n_estimators: int = 100,
        min_samples_leaf: int = 1,
        max_features: float = 0.3,
        random_state: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.min_samples_leaf = min_samples_leaf
        self.max_features = max_features
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        del groups
        self.trees_ = RandomForestRegressor(
            n_estimators=self.n_estimators,
            min_samples_leaf=self.min_samples_leaf,
            max_features=self.max_features,
            random_state=self.random_state,
        ).fit(X.astype(np.float32), z)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        X = X.astype(np.float32)
        votes = np.stack([tree.tree_.predict(X)[:, 0] for tree in self.trees_.estimators_])
        return votes.mean(axis=0), votes.std(axis=0)

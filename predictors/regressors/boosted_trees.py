"""Gradient-boosted trees."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.regressors.base import LinkPredictor
from predictors.validation import split_by_group

__all__ = ["BoostedTreesPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_SPREAD_FOLDS = 3  # to learn how far the trees err


class BoostedTreesPredictor(LinkPredictor):
    """Gradient-boosted trees of XGBoost, with small, slow steps for few rows.

    The standard deviation is that of rows held out in turn: trees like these learn their own rows
    by heart.

    Args:
        n_estimators: Number of trees.
        learning_rate: Step of each.
        max_depth: Depth of each.
        random_state: Seed.
    """

    def __init__(
        self,
        n_estimators: int = 300,
        learning_rate: float = 0.05,
        max_depth: int = 4,
        random_state: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        self.trees_ = self._new_trees().fit(X, z)
        unseen = np.full(len(z), z.mean())
        if groups.max() > 0:
            for train, test in split_by_group(groups, folds=_SPREAD_FOLDS):
                unseen[test] = self._new_trees().fit(X[train], z[train]).predict(X[test])
        self.deviation_ = float(np.sqrt(np.mean((z - unseen) ** 2)))

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self.trees_.predict(X).astype(np.float64), np.full(len(X), self.deviation_)

    def _new_trees(self) -> Any:
        from xgboost import XGBRegressor  # slow to import, and only this class needs it

        return XGBRegressor(
            n_estimators=self.n_estimators,
            learning_rate=self.learning_rate,
            max_depth=self.max_depth,
            random_state=self.random_state,
            subsample=0.8,
            colsample_bytree=0.5,
            n_jobs=1,
        )

"""Extremely randomised trees."""

from sklearn.ensemble import ExtraTreesRegressor

from predictors.regressors.forest import ForestPredictor

__all__ = ["ExtraTreesPredictor"]


class ExtraTreesPredictor(ForestPredictor):
    """Extremely randomised trees.

    Args:
        n_estimators: Number of trees.
        min_samples_leaf: Smallest leaf.
        max_features: Share of the columns tried at a split.
        random_state: Seed.
    """

    forest = ExtraTreesRegressor

    def __init__(
        self,
        n_estimators: int = 100,
        min_samples_leaf: int = 2,
        max_features: float = 0.5,
        random_state: int = 0,
    ) -> None:
        super().__init__(n_estimators, min_samples_leaf, max_features, random_state)

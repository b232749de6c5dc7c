"""Random forest."""

from sklearn.ensemble import RandomForestRegressor

from predictors.regressors.forest import ForestPredictor

__all__ = ["RandomForestPredictor"]


class RandomForestPredictor(ForestPredictor):
    """A random forest: every tree has a bag of rows of its own.

    Args:
        n_estimators: Number of trees.
        min_samples_leaf: Smallest leaf.
        max_features: Share of the columns tried at a split.
        random_state: Seed.
    """

    forest = RandomForestRegressor

    def __init__(
        self,
        n_estimators: int = 100,
        min_samples_leaf: int = 1,
        max_features: float = 0.3,
        random_state: int = 0,
    ) -> None:
        super().__init__(n_estimators, min_samples_leaf, max_features, random_state)

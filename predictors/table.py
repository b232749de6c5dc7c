"""The predictors by name."""

from predictors.regressors import (
    AutoPredictor,
    BayesianRidgePredictor,
    BlendPredictor,
    BoostedTreesPredictor,
    ExtraTreesPredictor,
    GaussianProcessPredictor,
    MLPPredictor,
    ParZCPredictor,
    RandomForestPredictor,
    RankAveragePredictor,
    RidgePredictor,
)

__all__ = ["PREDICTORS"]

PREDICTORS: dict[str, type] = {
    "auto": AutoPredictor,
    "ridge": RidgePredictor,
    "extra_trees": ExtraTreesPredictor,
    "blend": BlendPredictor,
    "bayesian_ridge": BayesianRidgePredictor,
    "gaussian_process": GaussianProcessPredictor,
    "random_forest": RandomForestPredictor,
    "rank_average": RankAveragePredictor,
    "boosted_trees": BoostedTreesPredictor,
    "mlp": MLPPredictor,
    "parzc": ParZCPredictor,
}
"""Estimator classes by the name that ``predictor.name`` takes; a plug-in adds to this dict."""

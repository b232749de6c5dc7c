"""Accuracy predictors in scikit-learn's manner. Letters: n rows, d columns.

Every predictor fits ``(X, y, groups=None)`` and predicts ``(X, return_std=False)``. Targets that
lie in 0..1 are fitted on a logit scale, where effects of architecture and noise add up better;
predictions come back on the scale of the targets.
"""

from predictors.regressors.auto import AutoPredictor
from predictors.regressors.base import LinkPredictor
from predictors.regressors.bayesian_ridge import BayesianRidgePredictor
from predictors.regressors.blend import BlendPredictor
from predictors.regressors.boosted_trees import BoostedTreesPredictor
from predictors.regressors.extra_trees import ExtraTreesPredictor
from predictors.regressors.gaussian_process import GaussianProcessPredictor
from predictors.regressors.link import from_link, shift_off_fractions, to_link, uses_logit
from predictors.regressors.mlp import MLPPredictor
from predictors.regressors.parzc import ParZCPredictor
from predictors.regressors.random_forest import RandomForestPredictor
from predictors.regressors.rank_average import RankAveragePredictor
from predictors.regressors.ridge import RidgePredictor

__all__ = [
    "AutoPredictor",
    "BayesianRidgePredictor",
    "BlendPredictor",
    "BoostedTreesPredictor",
    "ExtraTreesPredictor",
    "GaussianProcessPredictor",
    "LinkPredictor",
    "MLPPredictor",
    "ParZCPredictor",
    "RandomForestPredictor",
    "RankAveragePredictor",
    "RidgePredictor",
    "from_link",
    "shift_off_fractions",
    "to_link",
    "uses_logit",
]

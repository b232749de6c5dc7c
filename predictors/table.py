"""The predictors by name."""

from predictors.regressors import (
    AutoPredictor,
    BlendPredictor,
    BoostedTreesPredictor,
    ExtraTreesPredictor,
    RidgePredictor,
)

__all__ = ["PREDICTORS"]

PREDICTORS: dict[str, type] = {
    "auto": AutoPredictor,
    "ridge": RidgePredictor,
    "extra_trees": ExtraTreesPredictor,
    "blend": BlendPredictor,
    "boosted_trees": BoostedTreesPredictor,
}
"""Estimator classes by the name that ``predictor.name`` takes; a plug-in adds to this dict."""

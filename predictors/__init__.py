"""predictors: accuracy predictors in scikit-learn's manner, with transfer and ranking metrics.

Stands alone: it imports nothing of apqkit, and no torch. Zero-cost proxies, which need torch, are
in :mod:`predictors.zerocost`.
"""

from predictors.aggregation import mean_rank
from predictors.conformal import conformal_half_width
from predictors.encoders import CandidateEncoder, log_columns, signed_log
from predictors.metrics import (
    METRICS,
    Interval,
    bootstrap_interval,
    kendall_tau,
    rmse,
    spearman,
    top_quartile_tau,
)
from predictors.persistence import load_predictor, save_predictor
from predictors.regressors import (
    AutoPredictor,
    BlendPredictor,
    BoostedTreesPredictor,
    ExtraTreesPredictor,
    RidgePredictor,
)
from predictors.table import PREDICTORS
from predictors.transfer import TransferPredictor
from predictors.validation import out_of_fold

__all__ = [
    "METRICS",
    "PREDICTORS",
    "AutoPredictor",
    "BlendPredictor",
    "BoostedTreesPredictor",
    "CandidateEncoder",
    "ExtraTreesPredictor",
    "Interval",
    "RidgePredictor",
    "TransferPredictor",
    "bootstrap_interval",
    "conformal_half_width",
    "kendall_tau",
    "load_predictor",
    "log_columns",
    "mean_rank",
    "out_of_fold",
    "rmse",
    "save_predictor",
    "signed_log",
    "spearman",
    "top_quartile_tau",
]

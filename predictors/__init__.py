"""predictors: accuracy predictors in scikit-learn's manner, with transfer and ranking metrics.

Stands alone: it imports nothing of apqkit, and no torch before a predictor that is trained in
torch is fitted. Zero-cost proxies, which need torch, are in :mod:`predictors.zerocost`.
"""

from predictors.active import (
    choose_by_cost,
    choose_by_hypervolume,
    choose_random,
    choose_uncertain,
    expected_hypervolume_gain,
)
from predictors.aggregation import mean_rank
from predictors.budget import BudgetSplit, PilotRows, PilotScores, score_pilot, split_budget
from predictors.conformal import ConformalPredictor, conformal_half_width
from predictors.encoders import CandidateEncoder, log_columns, signed_log
from predictors.layer_sequence import layer_columns, pad_layers
from predictors.learning_curve import how_many_more, measure_learning_curve
from predictors.metrics import (
    METRICS,
    Interval,
    PairedComparison,
    bootstrap_interval,
    ceiling_tau,
    compare_paired,
    kendall_tau,
    noise_ceiling,
    precision_at,
    rank_of_best,
    regret_at,
    rmse,
    spearman,
    top_quartile_tau,
    unbiased_rmse,
)
from predictors.persistence import load_predictor, save_predictor
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
from predictors.table import PREDICTORS
from predictors.transfer import TRANSFER_MODES, ColumnReader, FewRowsPredictor, TransferPredictor
from predictors.validation import out_of_fold

__all__ = [
    "METRICS",
    "PREDICTORS",
    "TRANSFER_MODES",
    "AutoPredictor",
    "BayesianRidgePredictor",
    "BlendPredictor",
    "BoostedTreesPredictor",
    "BudgetSplit",
    "CandidateEncoder",
    "ColumnReader",
    "ConformalPredictor",
    "ExtraTreesPredictor",
    "FewRowsPredictor",
    "GaussianProcessPredictor",
    "Interval",
    "MLPPredictor",
    "PairedComparison",
    "ParZCPredictor",
    "PilotRows",
    "PilotScores",
    "RandomForestPredictor",
    "RankAveragePredictor",
    "RidgePredictor",
    "TransferPredictor",
    "bootstrap_interval",
    "ceiling_tau",
    "choose_by_cost",
    "choose_by_hypervolume",
    "choose_random",
    "choose_uncertain",
    "compare_paired",
    "conformal_half_width",
    "expected_hypervolume_gain",
    "how_many_more",
    "kendall_tau",
    "layer_columns",
    "load_predictor",
    "log_columns",
    "mean_rank",
    "measure_learning_curve",
    "noise_ceiling",
    "out_of_fold",
    "pad_layers",
    "precision_at",
    "rank_of_best",
    "regret_at",
    "rmse",
    "save_predictor",
    "score_pilot",
    "signed_log",
    "spearman",
    "split_budget",
    "top_quartile_tau",
    "unbiased_rmse",
]

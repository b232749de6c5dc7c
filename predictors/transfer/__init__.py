"""Transfer: a predictor of one kind of target that starts from a fitted predictor of another."""

from predictors.transfer.base import ColumnReader
from predictors.transfer.learner import FewRowsPredictor
from predictors.transfer.predictor import TRANSFER_MODES, TransferPredictor

__all__ = ["TRANSFER_MODES", "ColumnReader", "FewRowsPredictor", "TransferPredictor"]

"""Mode "feature": the base's prediction is one more column."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from predictors.transfer.anchor import FloatArray
from predictors.transfer.learner import FittedLearner, fit_learner
from predictors.transfer.rows import TransferRows

__all__ = ["Feature", "fit_feature"]


@dataclass(frozen=True)
class Feature:
    """What was learned from all columns and the prior.

    Attributes:
        learned: The prior is its last column.
    """

    learned: FittedLearner

    def predict(self, X: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns predictions and deviations (m,) on the link scale."""
        return self.learned.predict(np.column_stack([X, prior]))


def fit_feature(learner: Any, rows: TransferRows) -> Feature:
    """Fits an unfitted learner that reads the prior as the last column."""
    columns = np.column_stack([rows.X, rows.prior])
    return Feature(fit_learner(learner, columns, rows.z, rows.groups))

"""Mode "residual": the difference to the base is learned."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from predictors.transfer.anchor import Anchor, FloatArray
from predictors.transfer.learner import FittedLearner, fit_learner
from predictors.transfer.rows import TransferRows

__all__ = ["Residual", "fit_residual"]


@dataclass(frozen=True)
class Residual:
    """A base on a slope, and what was learned of the rest.

    Attributes:
        slope: Of the base.
        learned: Reads all columns and the prior.
    """

    slope: float
    learned: FittedLearner

    def predict(self, X: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns predictions and deviations (m,) on the link scale."""
        difference, deviation = self.learned.predict(np.column_stack([X, prior]))
        return self.slope * prior + difference, deviation


def fit_residual(learner: Any, rows: TransferRows, *, same_scale: bool) -> Residual:
    """Fits the difference between targets and base.

    Args:
        learner: Unfitted; it also reads the prior, as the last column.
        rows: New rows.
        same_scale: Whether base and targets are both logits; then the slope of the base is 1, else
            that of the least-squares line.
    """
    slope = 1.0 if same_scale else Anchor.of(rows.prior, rows.z).slope
    columns = np.column_stack([rows.X, rows.prior])
    return Residual(slope, fit_learner(learner, columns, rows.z - slope * rows.prior, rows.groups))

"""Mode "warm": a perceptron goes on from the weights of the base's (Wang et al., APQ, 2020).

Columns that the base does not read start with weight 0.
"""

from dataclasses import dataclass
from typing import Any

from predictors.transfer.anchor import FloatArray
from predictors.transfer.learner import FittedLearner, fit_learner
from predictors.transfer.rows import TransferRows

__all__ = ["Warm", "first_perceptron", "fit_warm"]


@dataclass(frozen=True)
class Warm:
    """A perceptron that started from another.

    Attributes:
        learned: Reads all columns.
    """

    learned: FittedLearner

    def predict(self, X: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns predictions and deviations (m,) on the link scale."""
        del prior
        return self.learned.predict(X)


def fit_warm(start: Any, rows: TransferRows) -> Warm:
    """Fits a perceptron from the weights of a fitted one that reads the first columns."""
    return Warm(fit_learner(start, rows.X, rows.z, rows.groups, start=start))


def first_perceptron(
    base: Any, base_rows: tuple[FloatArray, FloatArray] | None, *, seed: int
) -> Any:
    """Returns the fitted perceptron to start from: the base, or one fitted on its rows.

    Raises:
        ValueError: The base is none and there are no rows of it.
    """
    from predictors.regressors.mlp import MLPPredictor  # only this mode needs torch

    base = getattr(base, "estimator", base)  # of a FrozenEstimator
    if isinstance(base, MLPPredictor):
        return base
    if base_rows is None:
        raise ValueError(
            f"mode 'warm' needs a fitted MLPPredictor as base, or base_rows to fit one on; "
            f"got a {type(base).__name__} and no base_rows"
        )
    return MLPPredictor(random_state=seed).fit(*base_rows)

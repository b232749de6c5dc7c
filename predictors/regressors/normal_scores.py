"""Values as normal scores of their ranks, and back: outliers and skew leave no mark on a fit."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

__all__ = ["NormalScores"]

FloatArray = NDArray[np.float64]

_STEP = 0.05  # half of the difference that a slope is taken over, in scores


@dataclass(frozen=True)
class NormalScores:
    """A rising map between values and the normal scores of their ranks.

    Between the fitted values it is straight from one to the next; beyond them it goes on along
    the line through the first and the last. A single value is what everything maps to.

    Attributes:
        values: (k,) fitted values, rising.
        scores: (k,) their scores, rising.
    """

    values: FloatArray
    scores: FloatArray

    @classmethod
    def of(cls, values: FloatArray) -> Self:
        """Returns the map to the normal scores of the ranks of values (n,).

        A value's score is the normal quantile of (rank - 1/2) / n; equal values share the mean of
        their ranks.
        """
        knots, first = np.unique(values, return_index=True)
        return cls(knots, np.asarray(ndtri((rankdata(values)[first] - 0.5) / len(values))))

    def to_scores(self, values: FloatArray) -> FloatArray:
        """Returns the scores of values (any shape)."""
        return _along(values, self.values, self.scores)

    def to_values(self, scores: FloatArray) -> FloatArray:
        """Returns the values of scores (any shape)."""
        return _along(scores, self.scores, self.values)

    def slope(self, scores: FloatArray) -> FloatArray:
        """Returns the values' change a score near scores (any shape)."""
        rise = self.to_values(scores + _STEP) - self.to_values(scores - _STEP)
        return np.asarray(rise / (2.0 * _STEP))

    def to_deviations(self, scores: FloatArray, deviations: FloatArray) -> FloatArray:
        """Returns half of the values' change from one deviation below scores to one above."""
        rise = self.to_values(scores + deviations) - self.to_values(scores - deviations)
        return np.asarray(0.5 * rise)


def _along(x: FloatArray, knots: FloatArray, heights: FloatArray) -> FloatArray:
    """Returns heights at x, straight between the knots and beyond them."""
    span = knots[-1] - knots[0]
    slope = (heights[-1] - heights[0]) / span if span > 0.0 else 0.0
    beyond = slope * (x - np.clip(x, knots[0], knots[-1]))
    return np.asarray(np.interp(x, knots, heights) + beyond)

"""From scores that rank to values: a rising map learned from rows that the scores never saw."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

__all__ = ["RisingMap"]

FloatArray = NDArray[np.float64]

_LEAST_SLOPE = 1e-3  # in standard deviations of the values a score


@dataclass(frozen=True)
class RisingMap:
    """A strictly rising map, straight between knots and beyond them.

    The knots are the blocks of an isotonic regression, so a prediction is about the mean value of
    rows with its score. No two scores share a value: the ranking stays what it was.

    Attributes:
        scores: (k,) of the knots, rising.
        values: (k,) of the knots, rising.
        slope: Beyond the knots, above 0 unless all values were equal.
    """

    scores: FloatArray
    values: FloatArray
    slope: float

    @classmethod
    def fitted(cls, scores: FloatArray, values: FloatArray) -> Self:
        """Returns the map fitted to scores (n,) and values (n,), which may come in any order."""
        steps = IsotonicRegression().fit(scores, values).predict(scores)
        knots, block = np.unique(steps, return_inverse=True)
        centres = np.bincount(block, scores) / np.bincount(block)
        variance = float(scores.var())
        slope = float(np.cov(scores, values, bias=True)[0, 1]) / variance if variance else 0.0
        return cls(centres, knots, max(slope, _LEAST_SLOPE * float(values.std())))

    def __call__(self, scores: FloatArray) -> FloatArray:
        """Returns the values of scores (n,)."""
        inside = np.interp(scores, self.scores, self.values)
        beyond = scores - np.clip(scores, self.scores[0], self.scores[-1])
        return np.asarray(inside + self.slope * beyond)

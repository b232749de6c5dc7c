"""A Gaussian process over categories and numbers. Letters: n rows, t training rows, d columns."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm, rankdata

from apqkit.types import FloatArray

__all__ = ["Surrogate", "fit_surrogate", "normal_scores"]

_LENGTHS = (0.5, 1.0, 2.0)  # of the kernel, over the median distance of training rows
_NOISES = (0.0003, 0.003, 0.03, 0.3)  # variance, where the values' own is 1
_LINEAR = (0.0, 0.5, 2.0, 8.0)  # weight of the linear kernel beside the curved one


@dataclass(frozen=True)
class Surrogate:
    """A fitted process; made by :func:`fit_surrogate`.

    Attributes:
        rows: (t, d) what it was fitted on, less their means.
        weights: (t, m) of each training row for each target.
        means: (d,) of the training rows.
        offsets: (m,) means of the targets.
        length: Of the curved kernel.
        linear: Weight of the linear one.
    """

    rows: FloatArray
    weights: FloatArray
    means: FloatArray
    offsets: FloatArray
    length: float
    linear: float

    def predict(self, rows: FloatArray) -> FloatArray:
        """(n, m) predicted targets."""
        centred = rows - self.means
        curved, linear = _kernels(centred, self.rows, self.length)
        return np.asarray((curved + self.linear * linear) @ self.weights + self.offsets)


def fit_surrogate(rows: FloatArray, targets: FloatArray) -> Surrogate:
    """Fits a process; targets that are skewed are better given as :func:`normal_scores`.

    The kernel is a curved one (squared exponential) plus a linear one; its length, the linear
    weight and the noise are those of a small grid that make the targets most likely.

    Args:
        rows: (t, d) columns.
        targets: (t, m), finite and of variance about 1.
    """
    offsets = targets.mean(axis=0)
    scores = targets - offsets
    means = rows.mean(axis=0)
    centred = rows - means
    distances = _squared_distances(centred, centred)
    middle = float(np.sqrt(np.median(distances))) or 1.0
    best, chosen = -np.inf, (scores, middle, 0.0)
    for share in _LENGTHS:
        curved, linear = _kernels(centred, centred, share * middle)
        for weight in _LINEAR:
            kernel = curved + weight * linear
            for noise in _NOISES:
                factor = cho_factor(kernel + noise * np.eye(len(rows)), lower=True)
                solved = cho_solve(factor, scores)
                likelihood = _likelihood(scores, solved, factor[0])
                if likelihood > best:
                    best, chosen = likelihood, (solved, share * middle, weight)
    weights, length, weight = chosen
    return Surrogate(centred, weights, means, offsets, length, weight)


def normal_scores(values: FloatArray) -> FloatArray:
    """(t, m) ranks of each column as quantiles of the normal distribution."""
    ranks = rankdata(values, axis=0)
    return np.asarray(norm.ppf((ranks - 0.5) / max(len(values), 1)))


def _likelihood(scores: FloatArray, solved: FloatArray, factor: FloatArray) -> float:
    """Returns the log likelihood, each target's variance set at its best, less a constant."""
    count, targets = scores.shape
    variance = np.maximum((scores * solved).sum(axis=0) / count, 1e-12)
    determinant = 2.0 * np.log(np.diag(factor)).sum()
    return float(-0.5 * (count * np.log(variance).sum() + targets * determinant))


def _kernels(one: FloatArray, other: FloatArray, length: float) -> tuple[FloatArray, FloatArray]:
    scale = max(float(np.square(other).sum(axis=1).mean()), 1e-12)
    curved = np.exp(-0.5 * _squared_distances(one, other) / length**2)
    return curved, one @ other.T / scale


def _squared_distances(one: FloatArray, other: FloatArray) -> FloatArray:
    squares = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
    return np.asarray(np.maximum(squares - 2.0 * one @ other.T, 0.0))

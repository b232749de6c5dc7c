"""The kernel of the Gaussian process: how alike two rows are. Letters: n, m rows, d columns.

Rows are alike by a Matern-5/2 function of their weighted squared distance. A column's weight is
the scale of its kind (zeros and ones, whole numbers, other numbers) times a relevance of its own.
Where there are continuous columns, the mean of a one-dimensional kernel over them is added: with
few rows such effects add up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["KERNELS", "RowKernel"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MOST_ADDITIVE = 32  # columns; each costs as much as a kernel


def matern(squared: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns the Matern-5/2 function of squared distances, and its derivative by them."""
    scaled = np.sqrt(5.0 * squared)
    decay = np.exp(-scaled)
    slope = (1.0 + scaled) * decay
    return slope + (5.0 / 3.0) * squared * decay, (-5.0 / 6.0) * slope


def exponential(squared: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns exp(-x) of squared distances, and its derivative by them.

    Over one-hot columns it is a product over the decisions that differ (Hamming kernel).
    """
    decay = np.exp(-squared)
    return decay, -decay


KERNELS: dict[str, Callable[[FloatArray], tuple[FloatArray, FloatArray]]] = {
    "matern": matern,
    "hamming": exponential,
}
"""What ``GaussianProcessPredictor.kernel`` can be, as functions of squared distances."""


@dataclass(frozen=True)
class RowKernel:
    """A kernel over rows of d columns, with its hyper-parameters on a log scale.

    They are, in this order: noise variance, variance, scale of each kind, relevance of each
    column, and where there are additive columns their variance and scale.

    Attributes:
        name: One of :data:`KERNELS`.
        kinds: A partition of the columns, at least one.
        additive: Columns with a kernel of their own; more than 32 are taken for none.
    """

    name: str
    kinds: list[IntArray]
    additive: IntArray

    @property
    def columns(self) -> int:
        """Number d of columns."""
        return sum(len(kind) for kind in self.kinds)

    def expected(self) -> tuple[FloatArray, FloatArray]:
        """Returns mean and precision of the normal prior over the hyper-parameters."""
        kinds = len(self.kinds)
        mean = [np.log(0.1), np.log(0.5), *[-1.0 - np.log(kinds)] * kinds, *[0.0] * self.columns]
        precision = [0.1, 0.1, *[0.3] * kinds, *[1.0] * self.columns]
        if self._adds():
            mean += [np.log(0.3), -1.0]
            precision += [0.1, 0.3]
        return np.array(mean), np.array(precision)

    def between(self, theta: FloatArray, A: FloatArray, B: FloatArray) -> FloatArray:
        """(n, m) covariances of rows A (n, d) and B (m, d)."""
        weights = np.sqrt(self._weights(theta))
        covariance = np.exp(theta[1]) * KERNELS[self.name](_squared(A * weights, B * weights))[0]
        if self._adds():
            covariance += self._additive_value(theta, A, B)
        return np.asarray(covariance)

    def variance(self, theta: FloatArray) -> float:
        """Returns the covariance of a row with itself."""
        return float(np.exp(theta[1]) + (np.exp(theta[-2]) if self._adds() else 0.0))

    def with_slopes(
        self, theta: FloatArray, A: FloatArray
    ) -> tuple[FloatArray, Callable[[FloatArray], FloatArray]]:
        """Returns the covariances (n, n) of rows A (n, d) and a function for their slopes.

        The function takes G (n, n), symmetric, and returns for each hyper-parameter the sum of G
        times the covariances' derivative by it; the noise variance's is left at 0.
        """
        weights = self._weights(theta)
        scaled = A * np.sqrt(weights)
        value, slope = KERNELS[self.name](_squared(scaled, scaled))
        variance = np.exp(theta[1])
        added, by_scale = self._additive(theta, A, A) if self._adds() else (0.0, 0.0)

        def slopes(G: FloatArray) -> FloatArray:
            found = np.zeros(len(theta))
            found[1] = variance * np.sum(G * value)
            pull = variance * G * slope
            by_column = (A**2 * pull.sum(axis=1)[:, None]).sum(axis=0) - (A * (pull @ A)).sum(0)
            by_column = 2.0 * weights * by_column
            kinds = len(self.kinds)
            found[2 : 2 + kinds] = [by_column[kind].sum() for kind in self.kinds]
            found[2 + kinds : 2 + kinds + self.columns] = by_column
            if self._adds():
                found[-2:] = np.sum(G * added), np.sum(G * by_scale)
            return found

        return variance * value + added, slopes

    def _adds(self) -> bool:
        return 0 < len(self.additive) <= _MOST_ADDITIVE

    def _weights(self, theta: FloatArray) -> FloatArray:
        """(d,) weight of each column in the squared distance."""
        kinds = len(self.kinds)
        weights = np.empty(self.columns)
        for kind, scale in zip(self.kinds, theta[2 : 2 + kinds], strict=True):
            weights[kind] = np.exp(scale) / len(kind)
        return weights * np.exp(theta[2 + kinds : 2 + kinds + self.columns])

    def _additive_value(self, theta: FloatArray, A: FloatArray, B: FloatArray) -> FloatArray:
        """(n, m) mean of one-dimensional kernels: what predictions need, without derivatives."""
        root, share = np.sqrt(5.0 * np.exp(theta[-1])), np.exp(theta[-2]) / len(self.additive)
        total = np.zeros((len(A), len(B)))
        for column in self.additive:
            scaled = np.abs(np.subtract.outer(root * A[:, column], root * B[:, column]))
            decay = np.exp(-scaled)
            scaled += scaled**2 / 3.0
            scaled += 1.0
            scaled *= decay
            total += scaled
        return np.asarray(share * total)

    def _additive(
        self, theta: FloatArray, A: FloatArray, B: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """(n, m) mean of one-dimensional kernels, and its derivative by the log scale."""
        scale, share = np.exp(theta[-1]), np.exp(theta[-2]) / len(self.additive)
        total, by_scale = np.zeros((len(A), len(B))), np.zeros((len(A), len(B)))
        for column in self.additive:
            squared = scale * (A[:, column, None] - B[:, column]) ** 2
            value, slope = matern(squared)
            total += value
            by_scale += slope * squared
        return share * total, share * by_scale


def _squared(A: FloatArray, B: FloatArray) -> FloatArray:
    """(n, m) squared distances."""
    squared = (-2.0 * A) @ B.T
    squared += np.einsum("nd,nd->n", A, A)[:, None]
    squared += np.einsum("md,md->m", B, B)
    return np.asarray(np.maximum(squared, 0.0, out=squared))

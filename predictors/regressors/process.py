"""Exact Gaussian process regression, for up to a few thousand rows. Letters: n rows, d columns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from predictors.regressors.kernel import RowKernel

__all__ = ["Process", "in_parts"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_JITTER = 1e-6  # on the diagonal, in variances of the targets
_BOUND = (-9.0, 6.0)  # of hyper-parameters, on a log scale
_IMPOSSIBLE = 1e10  # loss where a covariance has no root
_ROWS_AT_ONCE = 512  # of a prediction: what stays in a cache


def in_parts(predict: Callable[[FloatArray], FloatArray], X: FloatArray) -> FloatArray:
    """Returns what a function says of rows (n, d), asked a few hundred at a time."""
    starts = range(0, len(X), _ROWS_AT_ONCE)
    return np.concatenate([predict(X[start : start + _ROWS_AT_ONCE]) for start in starts])


@dataclass(frozen=True)
class Process:
    """A fitted process.

    Attributes:
        kernel: Of the rows.
        theta: Its hyper-parameters.
        rows: (n, d) it was fitted to.
        root: (n, n) lower Cholesky factor of their covariances, noise included.
        weights: (n,) of the rows in a prediction.
        offset: Mean of the targets.
        scale: Standard deviation of the targets.
    """

    kernel: RowKernel
    theta: FloatArray
    rows: FloatArray
    root: FloatArray
    weights: FloatArray
    offset: float
    scale: float

    @classmethod
    def fitted(
        cls,
        kernel: RowKernel,
        A: FloatArray,
        targets: FloatArray,
        *,
        iterations: int,
        most_rows: int,
        seed: int,
    ) -> Self:
        """Returns the process of greatest posterior density.

        Args:
            kernel: Of the rows.
            A: (n, d) standardised rows.
            targets: (n,) that differ.
            iterations: At most so many steps of L-BFGS.
            most_rows: Hyper-parameters are learned from so many rows, drawn if there are more.
            seed: Of the draw.
        """
        offset, scale = float(targets.mean()), float(targets.std())
        unit = (targets - offset) / scale
        drawn = np.arange(len(A))
        if len(A) > most_rows:
            drawn = np.random.default_rng(seed).choice(len(A), most_rows, replace=False)
        theta = _most_likely(kernel, A[drawn], unit[drawn], iterations)
        covariance = kernel.between(theta, A, A)
        covariance[np.diag_indices(len(A))] += np.exp(theta[0]) + _JITTER
        root = cholesky(covariance, lower=True, check_finite=False)
        weights = cho_solve((root, True), unit, check_finite=False)
        return cls(kernel, theta, A, root, weights, offset, scale)

    def predict(self, A: FloatArray) -> FloatArray:
        """(m,) means at rows A (m, d)."""
        covariance = self.kernel.between(self.theta, A, self.rows)
        return np.asarray(self.offset + self.scale * (covariance @ self.weights))

    def deviation(self, A: FloatArray) -> FloatArray:
        """(m,) standard deviations at rows A (m, d), noise included."""
        covariance = self.kernel.between(self.theta, self.rows, A)
        known = solve_triangular(self.root, covariance, lower=True, check_finite=False)
        noise = float(np.exp(self.theta[0])) + _JITTER
        variance = self.kernel.variance(self.theta) + noise - (known**2).sum(axis=0)
        return np.asarray(self.scale * np.sqrt(np.maximum(variance, noise)))


def _most_likely(
    kernel: RowKernel, A: FloatArray, unit: FloatArray, iterations: int
) -> FloatArray:
    """Returns the hyper-parameters of greatest posterior density."""
    mean, precision = kernel.expected()

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        covariance, slopes = kernel.with_slopes(theta, A)
        noise = np.exp(theta[0])
        covariance[np.diag_indices(len(A))] += noise + _JITTER
        try:
            root = cholesky(covariance, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return _IMPOSSIBLE, np.zeros(len(theta))
        inverse = cho_solve((root, True), np.eye(len(A)), check_finite=False)
        weights = inverse @ unit
        pull = 0.5 * (inverse - np.outer(weights, weights))
        gradient = slopes(pull)
        gradient[0] = noise * np.trace(pull)
        away = theta - mean
        likelihood = 0.5 * unit @ weights + np.log(np.diag(root)).sum()
        return (
            float(likelihood + 0.5 * precision @ away**2),
            gradient + precision * away,
        )

    found = minimize(
        loss,
        mean,
        jac=True,
        method="L-BFGS-B",
        bounds=[_BOUND] * len(mean),
        options={"maxiter": iterations},
    )
    return np.asarray(found.x)

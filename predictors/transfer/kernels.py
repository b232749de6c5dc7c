"""Gaussian process with a sum of fixed kernels, whose weights are learned; made for few rows.

Letters: n rows, m new rows, d columns, k kernels, j kinds of noise, h means.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

__all__ = ["KernelFit", "Scaling", "fit_kernels", "kernel_diagonals", "kernels_between"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CLIP = 5.0  # standardised columns are clipped here
_JITTER = 1e-8  # a share of the mean variance
_REACH = 4.0  # prior deviations that a weight may move: keeps the covariance well conditioned
_STEPS = 25  # the weights need no more than a figure or two


@dataclass(frozen=True)
class Scaling:
    """Mean and scale of columns.

    Attributes:
        mean: (d,).
        scale: (d,) standard deviations; infinite for constant columns, which so become 0.
    """

    mean: FloatArray
    scale: FloatArray

    @classmethod
    def of(cls, X: FloatArray) -> "Scaling":
        """Returns the scaling that standardises rows X (n, d)."""
        deviation = X.std(axis=0)
        return cls(X.mean(axis=0), np.where(deviation > 1e-12, deviation, np.inf))

    def apply(self, X: FloatArray) -> FloatArray:
        """Returns rows (m, d), standardised and clipped at 5 deviations."""
        return np.asarray(np.clip((X - self.mean) / self.scale, -_CLIP, _CLIP))


def kernels_between(A: FloatArray, B: FloatArray, parts: Sequence[IntArray]) -> FloatArray:
    """Returns (k, n, m) kernels between standardised rows: two for each part of the columns.

    A linear one, and a Matern-5/2 one whose length is that of a typical distance.

    Args:
        A: (n, d).
        B: (m, d).
        parts: For each part the indices of its columns, at least one.
    """
    kernels = []
    for part in parts:
        a, b = A[:, part], B[:, part]
        kernels += [a @ b.T / len(part), _matern(cdist(a, b) / np.sqrt(2.0 * len(part)))]
    return np.stack(kernels)


def kernel_diagonals(B: FloatArray, parts: Sequence[IntArray]) -> FloatArray:
    """Returns (k, m): what :func:`kernels_between` has for each row with itself."""
    diagonals = []
    for part in parts:
        diagonals += [(B[:, part] ** 2).mean(axis=1), np.ones(len(B))]
    return np.stack(diagonals)


@dataclass(frozen=True)
class KernelFit:
    """A fitted sum of kernels.

    Attributes:
        weights: (k,) variance that each kernel explains.
        means: (h,) coefficients of the means.
        evidence: Log of the marginal likelihood times the priors of the weights.
        factor: (n, n) lower Cholesky factor of the covariance.
        dual: (n,) covariance^-1 (z - mean).
    """

    weights: FloatArray
    means: FloatArray
    evidence: float
    factor: FloatArray
    dual: FloatArray

    def predict(
        self, cross: FloatArray, own: FloatArray, means: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Returns mean (m,) and standard deviation (m,), without noise, of new rows.

        Args:
            cross: (k, m, n) kernels between new rows and the rows of the fit.
            own: (k, m) kernels of new rows with themselves.
            means: (m, h) of new rows.
        """
        covariance = np.tensordot(self.weights, cross, 1)
        explained = solve_triangular(self.factor, covariance.T, lower=True)
        variance = self.weights @ own - (explained**2).sum(axis=0)
        return means @ self.means + covariance @ self.dual, np.sqrt(np.maximum(variance, 0.0))


def fit_kernels(
    kernels: FloatArray,
    z: FloatArray,
    *,
    noise: FloatArray,
    means: FloatArray,
    centre: FloatArray,
    spread: FloatArray,
) -> KernelFit:
    """Fits the weights of kernels by their posterior mode; means are integrated out.

    Args:
        kernels: (k, n, n).
        z: (n,) targets with a standard deviation near 1.
        noise: (j, n) diagonals, one for each kind of noise.
        means: (n, h) columns of the means.
        centre: (k + j,) prior means of the logarithms of the weights.
        spread: (k + j,) their prior standard deviations.
    """
    stack = np.concatenate([kernels, np.stack([np.diag(each) for each in noise])])

    def loss(logs: FloatArray) -> tuple[float, FloatArray]:
        return _negative_log_posterior(logs, stack, z, means, centre, spread)

    bounds = np.stack([centre - _REACH * spread, centre + _REACH * spread], axis=1)
    found = minimize(
        loss, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    )
    weights = np.exp(found.x)
    factor, inverse = _factor(weights, stack)
    coefficients: FloatArray = np.asarray(
        np.linalg.solve(means.T @ inverse @ means, means.T @ inverse @ z), dtype=np.float64
    )
    dual = inverse @ (z - means @ coefficients)
    return KernelFit(weights[: len(kernels)], coefficients, -float(found.fun), factor, dual)


def _negative_log_posterior(
    logs: FloatArray,
    stack: FloatArray,
    z: FloatArray,
    means: FloatArray,
    centre: FloatArray,
    spread: FloatArray,
) -> tuple[float, FloatArray]:
    """Returns the loss and its gradient (k + j,); Rasmussen and Williams 2006, 5.9 and 2.45."""
    weights = np.exp(logs)
    factor, inverse = _factor(weights, stack)
    covered = inverse @ means
    information = means.T @ covered
    projected = inverse - covered @ np.linalg.solve(information, covered.T)
    dual = projected @ z
    fit = 0.5 * z @ dual + np.log(np.diag(factor)).sum()
    fit += 0.5 * np.linalg.slogdet(information)[1]
    slack = (logs - centre) / spread
    slopes = stack.reshape(len(stack), -1) @ (projected - np.outer(dual, dual)).ravel()
    return float(fit + 0.5 * slack @ slack), 0.5 * weights * slopes + slack / spread


def _factor(weights: FloatArray, stack: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns the Cholesky factor of the covariance and its inverse."""
    covariance = np.tensordot(weights, stack, 1)
    covariance[np.diag_indices_from(covariance)] += (
        _JITTER * np.trace(covariance) / len(covariance)
    )
    factor = cho_factor(covariance, lower=True, check_finite=False)
    inverse = cho_solve(factor, np.eye(len(covariance)), check_finite=False)
    lower: FloatArray = np.tril(factor[0])
    return lower, inverse


def _matern(distance: FloatArray) -> FloatArray:
    scaled = np.sqrt(5.0) * distance
    return np.asarray((1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled))

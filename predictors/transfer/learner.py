"""What learns the step from a base to new targets. Letters: n rows, d columns."""

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from predictors.regressors import BlendPredictor, LinkPredictor, shift_off_fractions
from predictors.transfer.kernels import (
    KernelFit,
    Scaling,
    fit_kernels,
    kernel_diagonals,
    kernels_between,
)

__all__ = ["FewRowsPredictor", "FittedLearner", "fit_learner"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MOST_KERNEL_ROWS = 1000  # the time of the kernels grows with the cube
_KERNEL_CENTRE, _KERNEL_SPREAD = -2.0, 1.5  # of log variances, targets having variance 1
_NOISE_CENTRE, _NOISE_SPREAD = -2.0, 1.0


class FewRowsPredictor(LinkPredictor):
    """Mean of a Gaussian process, whose kernels treat parts of the columns apart, and a blend.

    Parts such as architecture and number formats explain unlike shares of a target, and which do
    is what few rows can tell: the process learns one variance a part and kind of kernel (linear,
    Matern-5/2), with priors that hold them small. Past 1,000 rows the blend stands alone.

    Args:
        ends: Where the parts end, ascending; the last part takes the columns that are left.
        n_estimators: Trees of the blend.
        random_state: Seed.
    """

    def __init__(
        self, ends: tuple[int, ...] = (), n_estimators: int = 100, random_state: int = 0
    ) -> None:
        self.ends = ends
        self.n_estimators = n_estimators
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        self.blend_ = BlendPredictor(self.n_estimators, random_state=self.random_state)
        self.blend_._fit_link(X, z, groups)
        self.kernels_ = None
        if 2 <= len(z) <= _MOST_KERNEL_ROWS and np.ptp(z) > 0.0:
            self.kernels_ = _KernelMember.fitted(X, z, _parts(self.ends, X.shape[1]))

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        z, deviation = self.blend_._predict_link(X)
        if self.kernels_ is None:
            return z, deviation
        other, other_deviation = self.kernels_.predict(X)
        variance = 0.5 * (deviation**2 + other_deviation**2) + 0.25 * (z - other) ** 2
        return 0.5 * (z + other), np.sqrt(variance)


class _KernelMember:
    """A Gaussian process over standardised columns."""

    def __init__(self, fit: KernelFit, scaling: Scaling, rows: FloatArray, scale: float) -> None:
        self.fit, self.scaling, self.rows, self.scale = fit, scaling, rows, scale
        self.parts: list[IntArray] = []

    @classmethod
    def fitted(cls, X: FloatArray, z: FloatArray, parts: list[IntArray]) -> "_KernelMember":
        scaling, scale = Scaling.of(X), float(z.std())
        rows = scaling.apply(X)
        kernels = kernels_between(rows, rows, parts)
        fit = fit_kernels(
            kernels,
            z / scale,
            noise=np.ones((1, len(z))),
            means=np.ones((len(z), 1)),
            centre=np.append(np.full(len(kernels), _KERNEL_CENTRE), _NOISE_CENTRE),
            spread=np.append(np.full(len(kernels), _KERNEL_SPREAD), _NOISE_SPREAD),
        )
        member = cls(fit, scaling, rows, scale)
        member.parts = parts
        return member

    def predict(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        new = self.scaling.apply(X)
        z, deviation = self.fit.predict(
            kernels_between(new, self.rows, self.parts),
            kernel_diagonals(new, self.parts),
            np.ones((len(X), 1)),
        )
        return z * self.scale, deviation * self.scale


def _parts(ends: Sequence[int], columns: int) -> list[IntArray]:
    """Returns the indices of the columns of each part; empty parts are left out."""
    edges = np.unique([0, *(min(each, columns) for each in ends), columns])
    return [np.arange(low, high) for low, high in pairwise(edges)]


class FittedLearner:
    """A learner fitted on the link scale, and what to add to its predictions."""

    def __init__(self, learner: Any, shift: float) -> None:
        self.learner = learner
        self.shift = shift

    def predict(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns predictions (m,) on the link scale and deviations (m,), 0 if there are none."""
        if _takes(self.learner.predict, "return_std"):
            z, deviation = self.learner.predict(X, return_std=True)
            return z + self.shift, deviation
        return self.learner.predict(X) + self.shift, np.zeros(len(X))


def fit_learner(
    learner: Any, X: FloatArray, z: FloatArray, groups: IntArray, **extra: Any
) -> FittedLearner:
    """Fits a clone of a learner to values on the link scale, shifted so as to stay on it.

    Args:
        learner: With ``fit(X, y)``, and ``groups`` if it cares for them.
        X: (n, d).
        z: (n,).
        groups: (n,).
        extra: Further arguments of its ``fit``.
    """
    shift = shift_off_fractions(z)
    learner = clone(learner)
    if _takes(learner.fit, "groups"):
        extra["groups"] = groups
    return FittedLearner(learner.fit(X, z - shift, **extra), shift)


def _takes(function: Any, argument: str) -> bool:
    return argument in inspect.signature(function).parameters

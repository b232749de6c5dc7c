"""Mode "multitask": one Gaussian process over the rows of the base and the new rows.

Coregionalisation (Bonilla et al., Multi-task Gaussian Process Prediction, 2008): a function of the
first columns is shared, times a factor for the new task; a second one of the same columns and one
of the further columns belong to the new task alone. Letters: b rows of the base, n new rows,
m rows to predict, p columns of the base, d columns, k kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.transfer.kernels import (
    KernelFit,
    Scaling,
    fit_kernels,
    kernel_diagonals,
    kernels_between,
)
from predictors.transfer.rows import TransferRows

__all__ = ["BaseRows", "Multitask", "fit_multitask"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_FACTORS = (0.5, 1.0, 1.5)  # of the shared function in the new task, where scales differ
_SHARED, _OWN, _FURTHER = (-1.0, 1.5), (-3.0, 1.5), (-1.0, 1.5)  # log variances: mean, spread
_NOISE = (-2.0, 1.0)


@dataclass(frozen=True)
class BaseRows:
    """Rows that a base was fitted on.

    Attributes:
        X: (b, p).
        z: (b,) on the link scale of the new targets.
    """

    X: FloatArray
    z: FloatArray


@dataclass(frozen=True)
class _Tasks:
    """Standardised rows of both tasks.

    Attributes:
        first: (n, p) columns of the base.
        further: (n, d - p) other columns, 0 for rows of the base.
        new: (n,) 1.0 for rows of the new task, else 0.0.
    """

    first: FloatArray
    further: FloatArray
    new: FloatArray

    def kernels(self, other: "_Tasks", factor: float) -> FloatArray:
        """(k, n, m) kernels with other rows."""
        both = np.outer(self.new, other.new)
        shared = np.outer(_loads(self.new, factor), _loads(other.new, factor))
        common = kernels_between(self.first, other.first, _whole(self.first))
        parts = [common * shared, common * both]
        if self.further.shape[1]:
            further = kernels_between(self.further, other.further, _whole(self.further))
            parts.append(further * both)
        return np.concatenate(parts)

    def diagonals(self, factor: float) -> FloatArray:
        """(k, n) kernels of rows with themselves."""
        common = kernel_diagonals(self.first, _whole(self.first))
        parts = [common * _loads(self.new, factor) ** 2, common * self.new]
        if self.further.shape[1]:
            parts.append(kernel_diagonals(self.further, _whole(self.further)) * self.new)
        return np.concatenate(parts)

    def indicators(self) -> FloatArray:
        """(n, 2) to which task a row belongs."""
        return np.column_stack([1.0 - self.new, self.new])


@dataclass(frozen=True)
class Multitask:
    """A fitted process over two tasks.

    Attributes:
        fit: Of the kernels.
        factor: Of the shared function in the new task.
        tasks: Rows of the fit.
        first: Scaling of the base's columns.
        further: Scaling of the others.
        scale: Standard deviation of the targets.
    """

    fit: KernelFit
    factor: float
    tasks: _Tasks
    first: Scaling
    further: Scaling
    scale: float

    def predict(self, X: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns predictions and deviations (m,) on the link scale."""
        del prior
        columns = len(self.first.mean)
        new = _Tasks(
            self.first.apply(X[:, :columns]), self.further.apply(X[:, columns:]), np.ones(len(X))
        )
        z, deviation = self.fit.predict(
            new.kernels(self.tasks, self.factor), new.diagonals(self.factor), new.indicators()
        )
        return z * self.scale, deviation * self.scale


def fit_multitask(base: BaseRows, rows: TransferRows, *, same_scale: bool) -> Multitask:
    """Fits one process to the rows of the base and the new rows.

    Args:
        base: Rows of the base.
        rows: New rows.
        same_scale: Whether base and targets are both logits; then the shared function acts in full
            on the new task (what it lacks is the own function's part), else by the factor of
            largest evidence, in standard deviations of each task.
    """
    columns = base.X.shape[1]
    first = Scaling.of(np.vstack([base.X, rows.X[:, :columns]]))
    further = Scaling.of(rows.X[:, columns:])
    tasks = _Tasks(
        first.apply(np.vstack([base.X, rows.X[:, :columns]])),
        np.vstack(
            [
                np.zeros((len(base.X), rows.X.shape[1] - columns)),
                further.apply(rows.X[:, columns:]),
            ]
        ),
        np.repeat([0.0, 1.0], [len(base.X), len(rows.X)]),
    )
    base_scale = float(base.z.std()) or 1.0
    scale = base_scale if same_scale else float(rows.z.std()) or 1.0
    z = np.concatenate([base.z / base_scale, rows.z / scale])
    fits = {each: _fit(tasks, z, each) for each in ((1.0,) if same_scale else _FACTORS)}
    factor = max(fits, key=lambda each: fits[each].evidence)
    return Multitask(fits[factor], factor, tasks, first, further, scale)


def _fit(tasks: _Tasks, z: FloatArray, factor: float) -> KernelFit:
    kernels = tasks.kernels(tasks, factor)
    priors = [_SHARED, _SHARED, _OWN, _OWN, _FURTHER, _FURTHER][: len(kernels)]
    centre, spread = np.array([*priors, _NOISE, _NOISE]).T
    return fit_kernels(
        kernels,
        z,
        noise=tasks.indicators().T,
        means=tasks.indicators(),
        centre=centre,
        spread=spread,
    )


def _loads(new: FloatArray, factor: float) -> FloatArray:
    """(n,) what the shared function is multiplied by."""
    return np.where(new > 0.0, factor, 1.0)


def _whole(rows: FloatArray) -> Sequence[IntArray]:
    return [np.arange(rows.shape[1])]

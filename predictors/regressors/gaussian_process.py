"""Gaussian process."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.regressors.base import LinkPredictor
from predictors.regressors.columns import (
    PooledColumns,
    ScaledColumns,
    column_kinds,
    continuous_columns,
)
from predictors.regressors.kernel import KERNELS, RowKernel
from predictors.regressors.normal_scores import NormalScores
from predictors.regressors.process import Process, in_parts

__all__ = ["GaussianProcessPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class GaussianProcessPredictor(LinkPredictor):
    """A Gaussian process on normal scores of the targets' ranks, with a relevance for each column.

    ``matern`` works on standardised columns, joined by sums over like one-hot blocks: smooth
    functions of numbers. ``hamming`` takes every column for a category and compares by equal or
    not: for choices without an order. Hyper-parameters are those of greatest posterior density.

    Args:
        kernel: ``matern`` or ``hamming``.
        iterations: At most so many steps in the search for hyper-parameters.
        most_rows: Hyper-parameters are learned from so many rows, drawn if there are more; all
            rows predict.
        random_state: Seed of the draw.

    Attributes:
        process_: The fitted process; None where all targets were equal.
    """

    def __init__(
        self,
        kernel: str = "matern",
        iterations: int = 50,
        most_rows: int = 300,
        random_state: int = 0,
    ) -> None:
        self.kernel = kernel
        self.iterations = iterations
        self.most_rows = most_rows
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        del groups
        if self.kernel not in KERNELS:
            known = ", ".join(KERNELS)
            raise ValueError(f"kernel must be one of {known}, got {self.kernel!r}")
        self.ranks_ = NormalScores.of(z)
        self.process_: Any = None
        if np.ptp(z) == 0.0:
            return
        kernel = self._prepared(X)
        self.process_ = Process.fitted(
            kernel,
            self._rows(X),
            self.ranks_.to_scores(z),
            iterations=self.iterations,
            most_rows=self.most_rows,
            seed=self.random_state,
        )

    def _prepared(self, X: FloatArray) -> RowKernel:
        """Learns how rows are laid out, and returns the kernel over them."""
        if self.kernel == "hamming":
            self.choices_ = [np.unique(column) for column in X.T]
            width = sum(len(each) + 1 for each in self.choices_)
            return RowKernel(self.kernel, [np.arange(width)], np.zeros(0, dtype=np.int64))
        self.columns_ = PooledColumns().fit(X)
        columns = self.columns_.transform(X)
        self.scaled_ = ScaledColumns().fit(columns)
        return RowKernel(self.kernel, column_kinds(columns), continuous_columns(columns))

    def _rows(self, X: FloatArray) -> FloatArray:
        """Returns rows (n, d) as the kernel takes them."""
        if self.kernel == "hamming":
            return np.hstack(
                [_one_hot(column, seen) for column, seen in zip(X.T, self.choices_, strict=True)]
            )
        return self.scaled_.transform(self.columns_.transform(X))

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        if self.process_ is None:
            return self.ranks_.to_values(np.zeros(len(X))), np.zeros(len(X))
        scores = in_parts(self._scores, X)
        deviation = in_parts(self._deviation, X)
        return self.ranks_.to_values(scores), deviation * self.ranks_.slope(scores)

    def _predict_mean(self, X: FloatArray) -> FloatArray:
        if self.process_ is None:
            return self._predict_link(X)[0]
        return self.ranks_.to_values(in_parts(self._scores, X))

    def _scores(self, X: FloatArray) -> FloatArray:
        return np.asarray(self.process_.predict(self._rows(X)))

    def _deviation(self, X: FloatArray) -> FloatArray:
        return np.asarray(self.process_.deviation(self._rows(X)))


def _one_hot(column: FloatArray, seen: FloatArray) -> FloatArray:
    """(n, k + 1) indicators of the k values seen, and of any other."""
    hot = column[:, None] == seen
    return np.hstack([hot, ~hot.any(axis=1, keepdims=True)]).astype(np.float64)

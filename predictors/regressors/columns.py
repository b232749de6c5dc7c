"""What the shape of the columns tells: blocks of one-hot columns, and sums over like blocks.

Letters: n rows, d columns.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PooledColumns",
    "ScaledColumns",
    "column_kinds",
    "continuous_columns",
    "one_hot_blocks",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LONG_RUN = 8  # blocks; shorter runs are summed as a whole alone
_SMALLEST_WINDOW = 3  # blocks; windows are halved until they are shorter than that
_MOST_SUMS = 256  # columns that a run adds: each costs time, and the shortest windows tell least
_CLIP = 5.0  # standardised columns are clipped here: a far column must not rule the fit
_CONSTANT = 1e-12


def one_hot_blocks(X: FloatArray) -> list[list[int]]:
    """Returns neighbouring columns that look like one decision each, in column order.

    A block is a run of columns of zeros and ones of which no row has two ones; a row without any
    is an inactive decision.

    Args:
        X: (n, d) rows.

    >>> one_hot_blocks(np.array([[1.0, 0, 0, 1, 7], [0, 1, 0, 1, 9], [1, 0, 1, 0, 8]]))
    [[0, 1], [2, 3]]
    """
    binary = ((X == 0.0) | (X == 1.0)).all(axis=0)
    blocks: list[list[int]] = []
    taken = np.ones(len(X))
    for column in range(X.shape[1]):
        if not binary[column]:
            taken = np.ones(len(X))
            continue
        if not blocks or blocks[-1][-1] != column - 1 or (taken + X[:, column]).max() > 1.0:
            blocks.append([])
            taken = np.zeros(len(X))
        blocks[-1].append(column)
        taken = taken + X[:, column]
    return blocks


@dataclass(frozen=True)
class BlockRun:
    """Neighbouring blocks of one width.

    Attributes:
        start: First column.
        length: Number of blocks.
        width: Columns of each.
        windows: First block and the one behind the last, of what is summed.
    """

    start: int
    length: int
    width: int
    windows: list[tuple[int, int]]

    def sums(self, X: FloatArray) -> FloatArray:
        """Returns how often each choice was made in each window, of rows X (n, d)."""
        stop = self.start + self.length * self.width
        blocks = X[:, self.start : stop].reshape(len(X), self.length, self.width)
        total = np.zeros((len(X), self.length + 1, self.width))
        np.cumsum(blocks, axis=1, out=total[:, 1:])
        first, behind = np.array(self.windows).T
        return (total[:, behind] - total[:, first]).reshape(len(X), -1)


@dataclass
class PooledColumns:
    """Adds, to columns of one-hot blocks, how often each choice was made in neighbouring blocks.

    Neighbouring blocks of one width, as layers with the same choices have, are summed as a whole
    and, if there are many, over windows of half the length, a quarter, and so on. With few rows
    the effect of a choice is learned from all layers together long before that of one layer.

    Attributes:
        runs: Of at least two blocks.
    """

    runs: list[BlockRun] = field(default_factory=list)

    def fit(self, X: FloatArray) -> Self:
        """Finds the blocks in rows X (n, d)."""
        found: list[list[list[int]]] = []
        for block in one_hot_blocks(X):
            last = found[-1][-1] if found else []
            if len(last) == len(block) and last[-1] + 1 == block[0]:
                found[-1].append(block)
            elif len(block) > 1:
                found.append([block])
        self.runs = [
            BlockRun(run[0][0], len(run), len(run[0]), _windows(len(run), len(run[0])))
            for run in found
            if len(run) > 1
        ]
        return self

    def transform(self, X: FloatArray) -> FloatArray:
        """Returns rows X (n, d) with the sums behind their own columns."""
        return np.hstack([X, *(run.sums(X) for run in self.runs)])


def _windows(count: int, width: int) -> list[tuple[int, int]]:
    """Returns a run of blocks and, if it is long, its overlapping halves, quarters and so on."""
    found, length = [(0, count)], count
    while count >= _LONG_RUN and length >= _SMALLEST_WINDOW:
        length = (length + 1) // 2
        starts = range(0, count - length // 2, max(length // 2, 1))
        if (len(found) + len(starts)) * width > _MOST_SUMS:
            break
        found.extend((start, min(start + length, count)) for start in starts)
    return found


@dataclass
class ScaledColumns:
    """Standardised columns, clipped; a column that never changes is 0.

    Attributes:
        mean: (d,) of the rows fitted.
        scale: (d,) their standard deviation; infinite where it is 0.
    """

    mean: FloatArray = field(default_factory=lambda: np.zeros(0))
    scale: FloatArray = field(default_factory=lambda: np.ones(0))

    def fit(self, X: FloatArray) -> Self:
        """Learns mean and scale of rows X (n, d)."""
        deviation = X.std(axis=0)
        self.mean = X.mean(axis=0)
        self.scale = np.where(deviation > _CONSTANT, deviation, np.inf)
        return self

    def transform(self, X: FloatArray) -> FloatArray:
        """Returns rows X (n, d), standardised."""
        columns = X - self.mean
        columns /= self.scale
        return np.asarray(np.clip(columns, -_CLIP, _CLIP, out=columns))


def column_kinds(X: FloatArray) -> list[IntArray]:
    """Returns which of d columns are zeros and ones, whole numbers, and any other numbers.

    Kinds that do not occur are left out, so that what is returned is a partition of the columns.

    Args:
        X: (n, d) rows, before they are standardised.
    """
    binary = ((X == 0.0) | (X == 1.0)).all(axis=0)
    whole = (np.round(X) == X).all(axis=0) & ~binary
    kinds = (np.flatnonzero(each) for each in (binary, whole, ~binary & ~whole))
    return [kind for kind in kinds if len(kind)]


def continuous_columns(X: FloatArray) -> IntArray:
    """Returns which of d columns hold other numbers than whole ones."""
    return np.flatnonzero((np.round(X) != X).any(axis=0))

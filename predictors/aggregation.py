"""Several rankings made into one, without any measured row. Letters: n rows, p columns."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_rank"]

FloatArray = NDArray[np.float64]


def mean_rank(columns: FloatArray, population: FloatArray | None = None) -> FloatArray:
    """Returns the mean over the columns of a row's rank in a population.

    Ranks know neither scale nor unit, so columns such as proxies need no weights. Against a fixed
    population a row's value does not depend on the rows that it is asked with; between two members
    of the population it is interpolated, so that rows there stay apart.

    Args:
        columns: (n, p) finite scores, larger is better in each column.
        population: (m, p) the rows that are ranked against; None for the rows themselves.

    Returns:
        (n,) shares of the population that are worse, ties counted half; 0..1.

    Raises:
        ValueError: Shapes that do not fit, an empty population, or scores that are not finite.

    >>> mean_rank(np.array([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]]))
    array([0.16666667, 0.66666667, 0.66666667])
    """
    columns = np.asarray(columns, dtype=np.float64)
    others = columns if population is None else np.asarray(population, dtype=np.float64)
    _check(columns, others)
    shares = np.empty(columns.shape)
    for column in range(columns.shape[1]):
        values, counts = np.unique(others[:, column], return_counts=True)
        worse = (np.cumsum(counts) - 0.5 * counts) / len(others)
        shares[:, column] = np.interp(columns[:, column], values, worse)
    return np.asarray(shares.mean(axis=1))


def _check(columns: FloatArray, others: FloatArray) -> None:
    for name, each in (("columns", columns), ("population", others)):
        if each.ndim != 2 or not each.shape[1]:
            raise ValueError(f"{name} must have shape (rows, columns), got {each.shape}")
        if not np.isfinite(each).all():
            row, column = np.argwhere(~np.isfinite(each))[0]
            raise ValueError(f"{name}[{row}, {column}] is not finite: {each[row, column]}")
    if columns.shape[1] != others.shape[1] or not len(others):
        raise ValueError(
            f"population must have shape (1 or more, {columns.shape[1]}), got {others.shape}"
        )

"""What a transfer starts from. Letters: n rows, d columns."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.frozen import FrozenEstimator

__all__ = ["ColumnReader", "frozen", "read_base"]

FloatArray = NDArray[np.float64]


class ColumnReader(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A base that needs no fit: it predicts what stands in a column, such as a measured accuracy.

    It sees all columns of the rows.

    Args:
        column: Index; negative ones count from the end.
    """

    def __init__(self, column: int = 0) -> None:
        self.column = column

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: FloatArray, y: FloatArray, groups: Any = None) -> Self:
        """Returns itself; there is nothing to learn."""
        del X, y, groups
        return self

    def predict(self, X: FloatArray) -> FloatArray:
        """Returns the column (n,) of rows X (n, d).

        Raises:
            ValueError: There is no such column.
        """
        X = np.asarray(X, dtype=np.float64)
        if not -X.shape[1] <= self.column < X.shape[1]:
            raise ValueError(f"base reads column {self.column}, but X has {X.shape[1]} columns")
        return X[:, self.column]


def frozen(base: Any) -> Any:
    """Returns the base, wrapped so that neither a fit nor a clone undoes its own fit."""
    return base if base is None or isinstance(base, FrozenEstimator) else FrozenEstimator(base)


def read_base(base: Any, X: FloatArray) -> FloatArray:
    """Returns what a fitted base predicts (n,) from rows X (n, d).

    It sees the first ``base.n_features_in_`` columns, or all if it does not say. Rows that are
    equal there, such as one architecture in many formats, are predicted once.

    Raises:
        ValueError: There are too few columns, or it does not predict one finite number a row.
    """
    columns = getattr(base, "n_features_in_", None) or X.shape[1]
    if columns > X.shape[1]:
        raise ValueError(f"base reads {columns} columns, but X has {X.shape[1]}")
    rows, place = _distinct(X[:, :columns])
    predicted = np.asarray(base.predict(rows), dtype=np.float64)
    if predicted.shape != (len(rows),) or not np.isfinite(predicted).all():
        raise ValueError(
            f"base must predict {len(rows)} finite numbers, got shape {predicted.shape} "
            f"with {int(np.isfinite(predicted).sum())} finite"
        )
    return np.asarray(predicted[place])


def _distinct(X: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """Returns the distinct rows, in order of appearance, and for each row the place of its own."""
    places: dict[bytes, int] = {}
    place = np.array([places.setdefault(row.tobytes(), len(places)) for row in X])
    first = np.unique(place, return_index=True)[1]
    return X[first], place

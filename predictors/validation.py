"""Predictions out of fold, split by group. Letters: n rows, d columns."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import GroupKFold

__all__ = ["group_labels", "out_of_fold", "split_by_group"]

IntArray = NDArray[np.int64]


def group_labels(count: int, groups: NDArray[Any] | None) -> IntArray:
    """(n,) groups numbered from 0; None makes each of the ``count`` rows its own.

    Raises:
        ValueError: There is not one group a row.
    """
    if groups is None:
        return np.arange(count)
    if np.shape(groups) != (count,):
        raise ValueError(f"groups must have shape ({count},), got {np.shape(groups)}")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def split_by_group(
    labels: IntArray, *, folds: int = 5, seed: int = 0
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yields the training rows and the rest of each fold; no group is in both.

    Args:
        labels: (n,) of :func:`group_labels`.
        folds: At most so many; fewer where there are fewer groups.
        seed: Of the split.

    Raises:
        ValueError: There are fewer than two groups or folds.
    """
    count = len(np.unique(labels))
    if min(folds, count) < 2:
        raise ValueError(
            f"out-of-fold prediction needs at least 2 groups and 2 folds, "
            f"got {count} groups and {folds} folds"
        )
    splitter = GroupKFold(n_splits=min(folds, count), shuffle=True, random_state=seed)
    yield from splitter.split(labels, labels, labels)


def out_of_fold(
    estimator: Any,
    X: NDArray[np.float64],
    y: NDArray[np.float64],
    groups: IntArray | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Returns for each row the prediction of a clone that never saw the row's group.

    Args:
        estimator: With ``fit(X, y, groups)`` and ``predict(X)``; it is cloned, not changed.
        X: (n, d).
        y: (n,).
        groups: (n,) rows of one architecture share a group; None makes each row its own.
        folds: At most so many; fewer where there are fewer groups.
        seed: Of the split.

    Raises:
        ValueError: There are fewer than two groups or folds, or not one group a row.
    """
    labels = group_labels(len(y), groups)
    predicted = np.empty(len(y))
    for train, test in split_by_group(labels, folds=folds, seed=seed):
        fitted = clone(estimator).fit(X[train], y[train], groups=labels[train])
        predicted[test] = fitted.predict(X[test])
    return predicted

"""Predictions out of fold, split by group. Letters: n rows, d columns."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import GroupKFold

__all__ = ["out_of_fold"]


def out_of_fold(
    estimator: Any,
    X: NDArray[np.float64],
    y: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
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
        ValueError: There are fewer than two groups.
    """
    labels = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(labels.max()) + 1
    if count < 2:
        raise ValueError(f"out-of-fold prediction needs at least 2 groups, got {count}")
    splitter = GroupKFold(n_splits=min(folds, count), shuffle=True, random_state=seed)
    predicted = np.empty(len(y))
    for train, test in splitter.split(X, y, labels):
        fitted = clone(estimator).fit(X[train], y[train], groups=labels[train])
        predicted[test] = fitted.predict(X[test])
    return predicted

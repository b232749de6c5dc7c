"""Which rows each member of an ensemble sees. Letters: m members, n rows."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["bags_by_group", "out_of_bag"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_FOLDS = 5


def bags_by_group(groups: IntArray, members: int, rng: np.random.Generator) -> BoolArray:
    """(m, n) whether a member sees a row: all but a fifth of the groups, another for each.

    Five members in a row leave out every group once. With fewer than five groups every member
    sees all rows: there is too little to leave out.

    Args:
        groups: (n,) numbered from 0.
        members: At least 1.
        rng: Deals the groups.
    """
    count = int(groups.max()) + 1
    bags = np.ones((members, len(groups)), dtype=np.bool_)
    if count < _FOLDS:
        return bags
    for first in range(0, members, _FOLDS):
        dealt = rng.permutation(count) % _FOLDS
        for fold, bag in enumerate(bags[first : first + _FOLDS]):
            bag[:] = dealt[groups] != fold
    return bags


def out_of_bag(predicted: FloatArray, bags: BoolArray) -> FloatArray:
    """(n,) mean predictions of the members (m, n) that did not see a row; NaN where all did."""
    unseen = (~bags).sum(axis=0)
    total = np.where(bags, 0.0, predicted).sum(axis=0)
    return np.asarray(np.where(unseen > 0, total / np.maximum(unseen, 1), np.nan))

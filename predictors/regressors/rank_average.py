"""The mean rank of the members that rank best together."""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from predictors.metrics import kendall_tau
from predictors.regressors.ensemble import EnsemblePredictor

__all__ = ["RankAveragePredictor"]

FloatArray = NDArray[np.float64]

_USUAL = (0, 1)  # a Gaussian process and extremely randomised trees


class RankAveragePredictor(EnsemblePredictor):
    """Mean rank of some of: Gaussian process, extremely randomised trees, boosted trees, a line.

    Which ones is decided out of fold: of all sets of members, the one whose mean rank has the
    largest Kendall's tau. Members are fitted to normal scores of the targets' ranks. A predicted
    rank is that among the member's predictions out of fold, so it does not hang on what else is
    predicted. Where nothing can be left out, the members are the process and the trees.

    Args:
        folds: Of the inner cross-validation, grouped where groups are given; fewer where there are
            fewer groups.
        n_estimators: Number of extremely randomised trees; boosting takes twice as many.
        random_state: Seed.

    Attributes:
        scores_: Kendall's tau of each member, out of fold; 0 where it has none.
        weights_: Of each member: equal shares of those taken, else 0.
        out_of_fold_: (n,) predictions of rows by fits that never saw their group, on the scale of
            the targets; sets and map are those of the other folds. NaN with a single group.
    """

    _members = ("process", "trees", "boosted", "linear")
    _by_rank = True

    def __init__(self, folds: int = 5, n_estimators: int = 100, random_state: int = 0) -> None:
        self.folds = folds
        self.n_estimators = n_estimators
        self.random_state = random_state

    def _weigh(self, unseen: FloatArray, scores: FloatArray) -> FloatArray:
        best, weights = -np.inf, _shares(_USUAL, unseen.shape[1])
        for size in range(1, unseen.shape[1] + 1):
            for chosen in combinations(range(unseen.shape[1]), size):
                shares = _shares(chosen, unseen.shape[1])
                tau = kendall_tau(scores, unseen @ shares)
                if tau > best:
                    best, weights = tau, shares
        return weights


def _shares(chosen: tuple[int, ...], count: int) -> FloatArray:
    """(count,) equal shares of those chosen, 0 of the others."""
    shares = np.zeros(count)
    shares[list(chosen)] = 1.0 / len(chosen)
    return shares

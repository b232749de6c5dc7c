"""The default: several predictors, blended by how they do in inner cross-validation."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from predictors.regressors.ensemble import EnsemblePredictor

__all__ = ["AutoPredictor"]

FloatArray = NDArray[np.float64]

_EQUAL_SHARE = 0.05  # of the rows: so many speak for equal weights


class AutoPredictor(EnsemblePredictor):
    """A Gaussian process, extremely randomised and boosted trees, blended.

    All are fitted to normal scores of the targets' ranks, so that neither skew nor outliers
    matter, and to columns joined by sums over like one-hot blocks. The weights are the
    non-negative ones of least squared error out of fold, drawn towards equal shares; a member that
    does not help gets 0. A rising map, learned out of fold, leads back to targets.

    With a single group nothing can be left out: shares are equal, and the map is that of the
    targets' own ranks. Equal targets are predicted as they are.

    Args:
        folds: Of the inner cross-validation, grouped where groups are given; fewer where there are
            fewer groups.
        n_estimators: Number of extremely randomised trees; boosting takes twice as many.
        random_state: Seed.

    Attributes:
        scores_: Kendall's tau of each member, out of fold; 0 where it has none.
        weights_: Of each member.
        chosen_: Name of the member with the largest weight.
        out_of_fold_: (n,) predictions of rows by fits that never saw their group, on the scale of
            the targets; weights and map are those of the other folds. NaN with a single group.
    """

    _members = ("process", "trees", "boosted")

    def __init__(self, folds: int = 5, n_estimators: int = 100, random_state: int = 0) -> None:
        self.folds = folds
        self.n_estimators = n_estimators
        self.random_state = random_state

    @property
    def chosen_(self) -> str:
        """Name of the member with the largest weight."""
        return max(self.weights_, key=lambda name: self.weights_[name])

    def _weigh(self, unseen: FloatArray, scores: FloatArray) -> FloatArray:
        count = unseen.shape[1]
        strength = np.sqrt(_EQUAL_SHARE * len(scores))
        rows = np.vstack([unseen, strength * np.eye(count)])
        weights = nnls(rows, np.append(scores, np.full(count, strength / count)))[0]
        return np.asarray(weights)

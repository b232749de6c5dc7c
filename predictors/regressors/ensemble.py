"""Several regressions of normal scores, weighed by what they predict out of fold."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.metrics import kendall_tau
from predictors.regressors.base import LinkPredictor
from predictors.regressors.calibration import RisingMap
from predictors.regressors.columns import PooledColumns
from predictors.regressors.link import from_link
from predictors.regressors.members import CrossFit, by_rank, cross_fit, new_members
from predictors.regressors.normal_scores import NormalScores
from predictors.regressors.process import in_parts
from predictors.validation import split_by_group

__all__ = ["EnsemblePredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Splits = list[tuple[IntArray, IntArray]]

_SEEDS_APART = 1000  # of members


class EnsemblePredictor(LinkPredictor):
    """Base of ensembles; subclasses name members and weigh them.

    Targets become normal scores of their ranks, columns are joined by sums over like one-hot
    blocks, every member is fitted without each fold in turn. What the folds' fits say of rows they
    never saw sets the weights and the rising map from scores back to targets.
    """

    _members: tuple[str, ...]
    _by_rank = False  # whether members are averaged by rank

    def _weigh(self, unseen: FloatArray, scores: FloatArray) -> FloatArray:
        """Returns the weights (m,) of members by their scores out of fold (n, m) and the truth."""
        raise TypeError(f"{type(self).__name__} does not weigh")

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        self.columns_ = PooledColumns().fit(X)
        columns, scores = self.columns_.transform(X), NormalScores.of(z)
        splits: Splits = []
        if groups.max() > 0 and np.ptp(z) > 0.0:
            splits = list(split_by_group(groups, folds=self.folds, seed=self.random_state))
        kinds = new_members(self._members, trees=self.n_estimators, folds=max(len(splits), 1))
        self.members_ = {
            name: cross_fit(
                new,
                columns,
                scores.to_scores(z),
                splits,
                seed=self.random_state + _SEEDS_APART * index,
            )
            for index, (name, new) in enumerate(kinds.items())
        }
        if splits and self._by_rank:
            self.members_ = {name: by_rank(each) for name, each in self.members_.items()}
        self._settle(z, scores, splits)

    def _settle(self, z: FloatArray, scores: NormalScores, splits: Splits) -> None:
        """Learns weights, the way back to targets and the error from predictions out of fold."""
        unseen = np.stack([each.unseen for each in self.members_.values()], axis=1)
        self.out_of_fold_ = np.full(len(z), np.nan)
        if not splits:
            self.scores_ = dict.fromkeys(self._members, 0.0)
            self.weights_ = dict.fromkeys(self._members, 1.0 / len(self._members))
            self.map_: Any = scores.to_values
            self.deviation_, self.usual_spread_ = float(z.std()), 1.0
            return
        truth = scores.to_scores(z)
        self.scores_ = {name: _tau(z, each.unseen) for name, each in self.members_.items()}
        for train, test in splits:
            weights = self._weigh(unseen[train], truth[train])
            back = RisingMap.fitted(unseen[train] @ weights, z[train])
            self.out_of_fold_[test] = back(unseen[test] @ weights)
        self.deviation_ = float(np.sqrt(np.mean((z - self.out_of_fold_) ** 2)))
        self.out_of_fold_ = from_link(self.out_of_fold_, logit=self.logit_)
        weights = self._weigh(unseen, truth)
        self.weights_ = dict(zip(self._members, weights.tolist(), strict=True))
        self.map_ = RisingMap.fitted(unseen @ weights, z)
        spread = self._spreading().spread
        self.usual_spread_ = float(np.sqrt(np.mean(spread**2))) or 1.0

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        spread = in_parts(self._spread, X)
        return self._predict_mean(X), self.deviation_ / self.usual_spread_ * spread

    def _predict_mean(self, X: FloatArray) -> FloatArray:
        return in_parts(self._mean, X)

    def _mean(self, X: FloatArray) -> FloatArray:
        columns = self.columns_.transform(X)
        total = np.zeros(len(X))
        for name, weight in self.weights_.items():
            if weight > 0.0:
                total += weight * self.members_[name].predict(columns)
        return np.asarray(self.map_(total))

    def _spread(self, X: FloatArray) -> FloatArray:
        return self._spreading().deviation(self.columns_.transform(X))

    def _spreading(self) -> CrossFit:
        """Returns the member that knows how far it may be off."""
        return self.members_.get("process", next(iter(self.members_.values())))


def _tau(truth: FloatArray, predicted: FloatArray) -> float:
    tau = kendall_tau(truth, predicted)
    return tau if np.isfinite(tau) else 0.0

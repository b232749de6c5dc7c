"""What ensembles are made of: regressions of normal scores. Letters: n rows, d columns.

A member is fitted to rows (n, d), pooled columns among them, and scores (n,).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import BayesianRidge

from predictors.regressors.columns import ScaledColumns, column_kinds, continuous_columns
from predictors.regressors.kernel import RowKernel
from predictors.regressors.normal_scores import NormalScores
from predictors.regressors.process import Process

__all__ = ["MEMBERS", "CrossFit", "Member", "by_rank", "cross_fit", "new_members"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_ITERATIONS = 20  # of the search for hyper-parameters
_MOST_ROWS = 200  # that the search looks at
_MOST_COLUMNS = 128  # tried at a split
_ROUNDS_A_TREE = 2  # boosting rounds for each tree that other members have


class Member(Protocol):
    """A regression."""

    refitted: bool
    """Whether all rows make a better member than the mean of fits without a fold each."""

    def fit(self, X: FloatArray, scores: FloatArray) -> Self:
        """Fits rows X (n, d) to scores (n,)."""

    def predict(self, X: FloatArray) -> FloatArray:
        """Returns scores (n,) of rows X (n, d)."""


@dataclass
class ProcessMember:
    """A Gaussian process on standardised columns."""

    seed: int
    kernel: str = "matern"
    iterations: int = _ITERATIONS
    refitted: bool = True
    columns: ScaledColumns = field(default_factory=ScaledColumns)
    process: Process | None = None
    constant: float = 0.0

    def fit(self, X: FloatArray, scores: FloatArray) -> Self:
        """Fits rows X (n, d) to scores (n,)."""
        self.constant, self.process = float(scores.mean()), None
        if np.ptp(scores) > 0.0:
            kernel = RowKernel(self.kernel, column_kinds(X), continuous_columns(X))
            self.process = Process.fitted(
                kernel,
                self.columns.fit(X).transform(X),
                scores,
                iterations=self.iterations,
                most_rows=_MOST_ROWS,
                seed=self.seed,
            )
        return self

    def predict(self, X: FloatArray) -> FloatArray:
        """Returns scores (n,) of rows X (n, d)."""
        if self.process is None:
            return np.full(len(X), self.constant)
        return self.process.predict(self.columns.transform(X))

    def deviation(self, X: FloatArray) -> FloatArray:
        """Returns standard deviations (n,) of rows X (n, d); 0 where all scores were equal."""
        if self.process is None:
            return np.zeros(len(X))
        return self.process.deviation(self.columns.transform(X))


@dataclass
class TreesMember:
    """Extremely randomised trees."""

    seed: int
    trees: int
    refitted: bool = False
    fitted: Any = None

    def fit(self, X: FloatArray, scores: FloatArray) -> Self:
        """Fits rows X (n, d) to scores (n,)."""
        self.fitted = ExtraTreesRegressor(
            n_estimators=self.trees,
            max_features=min(0.3, _MOST_COLUMNS / X.shape[1]),
            random_state=self.seed,
        ).fit(X.astype(np.float32), scores)
        return self

    def predict(self, X: FloatArray) -> FloatArray:
        """Returns scores (n,) of rows X (n, d)."""
        X = X.astype(np.float32, copy=False)
        total = np.zeros(len(X))
        for tree in self.fitted.estimators_:
            total += tree.tree_.predict(X)[:, 0]
        return total / self.trees


@dataclass
class BoostedMember:
    """Gradient-boosted trees."""

    seed: int
    rounds: int
    refitted: bool = False
    fitted: Any = None

    def fit(self, X: FloatArray, scores: FloatArray) -> Self:
        """Fits rows X (n, d) to scores (n,)."""
        from xgboost import XGBRegressor  # slow to import

        self.fitted = XGBRegressor(
            n_estimators=self.rounds,
            max_depth=4,
            learning_rate=0.07,
            subsample=0.7,
            colsample_bytree=0.4,
            min_child_weight=2,
            random_state=self.seed,
            n_jobs=1,
        ).fit(X, scores)
        return self

    def predict(self, X: FloatArray) -> FloatArray:
        """Returns scores (n,) of rows X (n, d)."""
        return np.asarray(self.fitted.predict(X), dtype=np.float64)


@dataclass
class LinearMember:
    """Bayesian ridge regression on standardised columns."""

    seed: int
    refitted: bool = True
    columns: ScaledColumns = field(default_factory=ScaledColumns)
    line: Any = None

    def fit(self, X: FloatArray, scores: FloatArray) -> Self:
        """Fits rows X (n, d) to scores (n,)."""
        self.line = BayesianRidge().fit(self.columns.fit(X).transform(X), scores)
        return self

    def predict(self, X: FloatArray) -> FloatArray:
        """Returns scores (n,) of rows X (n, d)."""
        return np.asarray(self.line.predict(self.columns.transform(X)))


MEMBERS = ("process", "trees", "boosted", "linear")
"""Names of the members."""


def new_members(
    names: Sequence[str], *, trees: int, folds: int
) -> dict[str, Callable[[int], Member]]:
    """Returns for each name a function from a seed to an unfitted member.

    Args:
        names: Of :data:`MEMBERS`.
        trees: Of the extremely randomised trees, over all folds together.
        folds: Of the cross-validation.
    """
    kinds: dict[str, Callable[[int], Member]] = {
        "process": ProcessMember,
        "trees": partial(TreesMember, trees=max(-(-trees // folds), 1)),
        "boosted": partial(BoostedMember, rounds=_ROUNDS_A_TREE * trees),
        "linear": LinearMember,
    }
    return {name: kinds[name] for name in names}


@dataclass(frozen=True)
class CrossFit:
    """A kind of member, fitted without each fold in turn.

    Attributes:
        fitted: What predicts together: the fits of the folds, or one fit to all rows.
        unseen: (n,) scores of rows by the fit that did not see them.
        spread: (n,) standard deviations likewise; all 1 where the member knows none.
        ranks: Turns predictions into normal scores of their rank; None leaves them as they are.
    """

    fitted: list[Member]
    unseen: FloatArray
    spread: FloatArray
    ranks: NormalScores | None = None

    def predict(self, X: FloatArray) -> FloatArray:
        """Returns scores (n,) of rows X (n, d)."""
        if len(self.fitted) > 1:
            X = X.astype(np.float32)  # once for all trees
        predicted = np.asarray(np.mean([each.predict(X) for each in self.fitted], axis=0))
        return predicted if self.ranks is None else self.ranks.to_scores(predicted)

    def deviation(self, X: FloatArray) -> FloatArray:
        """Returns standard deviations (n,) of rows X (n, d); all 1 where none are known."""
        return np.asarray(np.mean([_deviation(each, X) for each in self.fitted], axis=0))


def by_rank(fit: CrossFit) -> CrossFit:
    """Returns a member whose predictions are scores of their rank among those out of fold."""
    ranks = NormalScores.of(fit.unseen)
    return replace(fit, unseen=ranks.to_scores(fit.unseen), ranks=ranks)


def cross_fit(
    new: Callable[[int], Member],
    X: FloatArray,
    scores: FloatArray,
    splits: list[tuple[IntArray, IntArray]],
    *,
    seed: int,
) -> CrossFit:
    """Fits a member without each fold in turn, each time with another seed.

    Args:
        new: From a seed to an unfitted member.
        X: (n, d).
        scores: (n,).
        splits: Rows to learn and rows left out; none fits all rows once.
        seed: Of the first fit; the others count on.
    """
    unseen, spread = np.full(len(X), np.nan), np.full(len(X), np.nan)
    fitted = []
    for index, (train, test) in enumerate(splits):
        fitted.append(new(seed + index).fit(X[train], scores[train]))
        unseen[test] = fitted[-1].predict(X[test])
        spread[test] = _deviation(fitted[-1], X[test])
    if not splits or fitted[0].refitted:
        fitted = [new(seed + len(splits)).fit(X, scores)]
    return CrossFit(fitted, unseen, spread)


def _deviation(member: Member, X: FloatArray) -> FloatArray:
    return member.deviation(X) if isinstance(member, ProcessMember) else np.ones(len(X))

"""Accuracy predictors in scikit-learn's manner. Letters: n rows, d columns.

Every predictor fits ``(X, y, groups=None)`` and predicts ``(X, return_std=False)``. Targets that
lie in 0..1 are fitted on a logit scale, where effects of architecture and noise add up better;
predictions come back on the scale of the targets.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.metrics import kendall_tau
from predictors.validation import group_labels, out_of_fold, split_by_group

__all__ = [
    "AutoPredictor",
    "BlendPredictor",
    "BoostedTreesPredictor",
    "ExtraTreesPredictor",
    "RidgePredictor",
    "from_link",
    "shift_off_fractions",
    "to_link",
    "uses_logit",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_EDGE = 5e-3  # accuracies are kept this far from 0 and 1 before the logit
_SPREAD_FOLDS = 3  # of boosted trees, to learn how far they err
_CLIP = 5.0  # standardised features are clipped here: a far column must not rule the fit


def uses_logit(y: FloatArray) -> bool:
    """Returns whether targets are fractions, to be fitted on a logit scale."""
    return bool(np.min(y) >= 0.0 and np.max(y) <= 1.0 and np.ptp(y) > 0.0)


def to_link(y: FloatArray, *, logit: bool) -> FloatArray:
    """Returns targets on the scale that is fitted."""
    if not logit:
        return np.asarray(y, dtype=np.float64)
    inside = np.clip(y, _EDGE, 1.0 - _EDGE)
    return np.asarray(np.log(inside / (1.0 - inside)))


def from_link(z: FloatArray, *, logit: bool) -> FloatArray:
    """Returns what :func:`to_link` took."""
    return np.asarray(expit(z)) if logit else z


def shift_off_fractions(z: FloatArray) -> float:
    """Returns what to subtract from values (n,) so that no predictor takes them for fractions.

    What is on the link scale already must not be put on a logit scale again.
    """
    return float(np.max(z)) + 1.0


class _Predictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Target scale and input checks; subclasses fit and predict on the link scale."""

    def fit(self, X: FloatArray, y: FloatArray, groups: IntArray | None = None) -> Self:
        """Fits rows X (n, d) to targets y (n,); inner splits keep groups (n,) together."""
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        self.logit_ = uses_logit(y)
        self._fit_link(X, to_link(y, logit=self.logit_), group_labels(len(y), groups))
        return self

    def predict(
        self, X: FloatArray, return_std: bool = False
    ) -> FloatArray | tuple[FloatArray, FloatArray]:
        """Returns predictions (n,), with standard deviations (n,) if asked for."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        z, deviation = self._predict_link(X)
        y = from_link(z, logit=self.logit_)
        if not return_std:
            return y
        slope = y * (1.0 - y) if self.logit_ else 1.0
        return y, deviation * slope

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        raise TypeError(f"{type(self).__name__} does not fit")

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        raise TypeError(f"{type(self).__name__} does not predict")


class RidgePredictor(_Predictor):
    """Ridge regression on standardised columns; the penalty is chosen by leave-one-out error.

    Args:
        alphas: Penalties to choose from.
    """

    def __init__(self, alphas: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)) -> None:
        self.alphas = alphas

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        del groups
        self.mean_ = X.mean(axis=0)
        deviation = X.std(axis=0)
        self.scale_ = np.where(deviation > 1e-12, deviation, np.inf)
        columns = self._standardised(X)
        if len(z) < 2:  # nothing is left when one is left out
            self.ridge_, self.deviation_ = Ridge().fit(columns, z), 0.0
            return
        self.ridge_ = RidgeCV(alphas=list(self.alphas)).fit(columns, z)
        self.deviation_ = float(np.sqrt(max(-self.ridge_.best_score_, 0.0)))

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        z = self.ridge_.predict(self._standardised(X))
        return z, np.full(len(X), self.deviation_)

    def _standardised(self, X: FloatArray) -> FloatArray:
        return np.asarray(np.clip((X - self.mean_) / self.scale_, -_CLIP, _CLIP))


class ExtraTreesPredictor(_Predictor):
    """Extremely randomised trees.

    Args:
        n_estimators: Number of trees.
        min_samples_leaf: Smallest leaf.
        max_features: Share of the columns tried at a split.
        random_state: Seed.
    """

    def __init__(
        self,
        n_estimators: int = 100,
        min_samples_leaf: int = 2,
        max_features: float = 0.5,
        random_state: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.min_samples_leaf = min_samples_leaf
        self.max_features = max_features
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        del groups
        self.trees_ = ExtraTreesRegressor(
            n_estimators=self.n_estimators,
            min_samples_leaf=self.min_samples_leaf,
            max_features=self.max_features,
            random_state=self.random_state,
        ).fit(X.astype(np.float32), z)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        X = X.astype(np.float32)
        votes = np.stack([tree.tree_.predict(X)[:, 0] for tree in self.trees_.estimators_])
        return votes.mean(axis=0), votes.std(axis=0)


class BoostedTreesPredictor(_Predictor):
    """Gradient-boosted trees of XGBoost, with small, slow steps for few rows.

    The standard deviation is that of rows held out in turn: trees like these learn their own rows
    by heart.

    Args:
        n_estimators: Number of trees.
        learning_rate: Step of each.
        max_depth: Depth of each.
        random_state: Seed.
    """

    def __init__(
        self,
        n_estimators: int = 300,
        learning_rate: float = 0.05,
        max_depth: int = 4,
        random_state: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        self.trees_ = self._new_trees().fit(X, z)
        unseen = np.full(len(z), z.mean())
        if groups.max() > 0:
            for train, test in split_by_group(groups, folds=_SPREAD_FOLDS):
                unseen[test] = self._new_trees().fit(X[train], z[train]).predict(X[test])
        self.deviation_ = float(np.sqrt(np.mean((z - unseen) ** 2)))

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self.trees_.predict(X).astype(np.float64), np.full(len(X), self.deviation_)

    def _new_trees(self) -> Any:
        from xgboost import XGBRegressor  # slow to import, and only this class needs it

        return XGBRegressor(
            n_estimators=self.n_estimators,
            learning_rate=self.learning_rate,
            max_depth=self.max_depth,
            random_state=self.random_state,
            subsample=0.8,
            colsample_bytree=0.5,
            n_jobs=1,
        )


class BlendPredictor(_Predictor):
    """Mean of ridge regression and extra trees on the link scale.

    The two err differently: a line extrapolates, trees catch interactions.

    Args:
        n_estimators: Number of trees.
        random_state: Seed.
    """

    def __init__(self, n_estimators: int = 100, random_state: int = 0) -> None:
        self.n_estimators = n_estimators
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        trees = ExtraTreesPredictor(self.n_estimators, random_state=self.random_state)
        self.members_ = [RidgePredictor(), trees]
        for member in self.members_:
            member._fit_link(X, z, groups)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        means, deviations = zip(*(each._predict_link(X) for each in self.members_), strict=True)
        variance = np.mean(np.square(deviations), axis=0) + np.var(means, axis=0)
        return np.mean(means, axis=0), np.sqrt(variance)


class AutoPredictor(_Predictor):
    """The predictor that ranks best in inner cross-validation, refitted on all rows.

    Args:
        folds: Of the inner cross-validation, grouped where groups are given.
        n_estimators: Number of trees of those that have trees.
        random_state: Seed.

    Attributes:
        scores_: Kendall's tau of each predictor tried, out of fold; 0 where it has none.
        chosen_: Name of the one that was taken.
    """

    def __init__(self, folds: int = 5, n_estimators: int = 100, random_state: int = 0) -> None:
        self.folds = folds
        self.n_estimators = n_estimators
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        trees = {"n_estimators": self.n_estimators, "random_state": self.random_state}
        tried: dict[str, Any] = {
            "ridge": RidgePredictor(),
            "extra_trees": ExtraTreesPredictor(**trees),
            "blend": BlendPredictor(**trees),
        }
        self.scores_ = {name: self._score(each, X, z, groups) for name, each in tried.items()}
        self.chosen_ = max(self.scores_, key=lambda name: self.scores_[name])
        self.predictor_ = clone(tried[self.chosen_])
        self.predictor_._fit_link(X, z, groups)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        link: tuple[FloatArray, FloatArray] = self.predictor_._predict_link(X)
        return link

    def _score(self, tried: Any, X: FloatArray, z: FloatArray, groups: IntArray) -> float:
        if groups.max() < 1:
            return 0.0
        shifted = z - shift_off_fractions(z)
        tau = kendall_tau(z, out_of_fold(tried, X, shifted, groups, folds=self.folds))
        return tau if np.isfinite(tau) else 0.0

import numpy as np
import pytest
from sklearn.base import clone

from predictors import PREDICTORS, RidgePredictor, TransferPredictor
from predictors.testing import check_predictor


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_predictor_in_the_table_conforms(name):
    check_predictor(PREDICTORS[name]())


def test_transfer_from_scratch_conforms():
    check_predictor(TransferPredictor(learner=RidgePredictor()))


def test_the_predictor_that_is_checked_stays_unfitted():
    ridge = RidgePredictor()
    check_predictor(ridge, seed=3)
    assert not hasattr(ridge, "ridge_")


class Broken(RidgePredictor):
    """A ridge regression with one fault a subclass."""

    def __init__(self, depth=1):
        super().__init__()
        self.depth = depth

    def get_params(self, deep=True):
        return {"depth": self.depth}


class Column(Broken):
    def predict(self, X, return_std=False):
        return super().predict(X)[:, None]


class NotFinite(Broken):
    def predict(self, X, return_std=False):
        return np.where(X[:, 0] > 1, np.nan, super().predict(X))


class Drifting(Broken):
    drift = np.random.default_rng(0)

    def fit(self, X, y, groups=None):
        super().fit(X, y)
        self.offset_ = self.drift.random() * 1e-6
        return self

    def predict(self, X, return_std=False):
        return np.clip(super().predict(X) + self.offset_, 0.0, 1.0)


class OutOfRange(Broken):
    def predict(self, X, return_std=False):
        return super().predict(X) + 0.5


class ReturnsNothing(Broken):
    def fit(self, X, y, groups=None):
        super().fit(X, y)


class ChangesItself(Broken):
    def fit(self, X, y, groups=None):
        self.depth = 2
        return super().fit(X, y)


class ChangesRows(Broken):
    def fit(self, X, y, groups=None):
        super().fit(X, y)
        X[:, 0] -= 1.0
        return self


class NoPair(Broken):
    def predict(self, X, return_std=False):
        return super().predict(X)


class OtherMean(Broken):
    def predict(self, X, return_std=False):
        predicted = super().predict(X)
        return (predicted * 0.9, predicted) if return_std else predicted


class OneDeviation(Broken):
    def predict(self, X, return_std=False):
        predicted = super().predict(X)
        return (predicted, 0.1) if return_std else predicted


class NegativeDeviation(Broken):
    def predict(self, X, return_std=False):
        predicted = super().predict(X)
        return (predicted, -predicted) if return_std else predicted


class Blind(Broken):
    def fit(self, X, y, groups=None):
        return super().fit(np.where(np.arange(X.shape[1]) < 2, X, 0.0), y)


class AlwaysUp(Broken):
    """Ranks by the columns, whatever the targets say."""

    def fit(self, X, y, groups=None):
        return super().fit(X, np.sort(y)[np.argsort(np.argsort(X.sum(axis=1)))])


class FractionsOnly(Broken):
    def fit(self, X, y, groups=None):
        return super().fit(X, np.clip(y, 0.0, 1.0))


class ClonesFitted(Broken):
    def __sklearn_clone__(self):
        copy = type(self)(self.depth)
        copy.__dict__.update(self.__dict__)
        return copy


class ForgetsDepth(Broken):
    def __sklearn_clone__(self):
        return type(self)() if hasattr(self, "ridge_") else type(self)(self.depth)


def text(what, tau):
    return f"{what} are ranked with a tau of {tau}, less than 0.6"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Column, "predictions are not one finite number a row"),
        (NotFinite, "predictions are not one finite number a row"),
        (Drifting, "a clone fitted on the same rows predicts otherwise"),
        (OutOfRange, "fractions are predicted outside 0..1"),
        (ReturnsNothing, "fit does not return the predictor"),
        (ChangesItself, "fit changes parameters"),
        (ChangesRows, "fit changes the rows it was given"),
        (NoPair, "predict(return_std=True) returns no pair"),
        (OtherMean, "return_std changes the predictions"),
        (OneDeviation, "standard deviations are not one number a row, 0 or more"),
        (NegativeDeviation, "standard deviations are not one number a row, 0 or more"),
        (Blind, text("fractions", "0.233")),
        (AlwaysUp, text("reversed targets", "-0.733")),
        (FractionsOnly, text("targets that are no fractions", "nan")),
        (ClonesFitted, "a clone predicts before it is fitted"),
        (ForgetsDepth, "a clone has other parameters"),
    ],
)
def test_a_predictor_at_fault_is_told_what_does_not_hold(monkeypatch, kind, expected):
    monkeypatch.setitem(PREDICTORS, "broken", kind)
    with pytest.raises(AssertionError) as caught:
        check_predictor(kind(depth=5))
    assert str(caught.value) == expected


def test_a_predictor_that_is_loaded_as_another_is_told_so(monkeypatch):
    monkeypatch.setattr("predictors.testing.load_predictor", lambda folder: Broken())
    with pytest.raises(AssertionError) as caught:
        check_predictor(RidgePredictor())
    assert str(caught.value) == "it is loaded as another class"


def test_a_predictor_that_is_loaded_with_other_rows_is_told_so(monkeypatch):
    rng = np.random.default_rng(0)
    other = RidgePredictor().fit(rng.random((20, 6)), rng.random(20))
    monkeypatch.setattr("predictors.testing.load_predictor", lambda folder: other)
    with pytest.raises(AssertionError) as caught:
        check_predictor(clone(other))
    assert str(caught.value) == "what is loaded predicts otherwise"


def test_a_predictor_outside_the_table_cannot_be_saved():
    with pytest.raises(ValueError, match="Broken is not in PREDICTORS, so it cannot be saved"):
        check_predictor(Broken())

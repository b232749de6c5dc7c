import numpy as np
import pytest

from predictors import AutoPredictor, rmse
from predictors.regressors.ensemble import EnsemblePredictor


class Unweighed(EnsemblePredictor):
    _members = ("linear",)

    def __init__(self, folds=3, n_estimators=3, random_state=0):
        self.folds = folds
        self.n_estimators = n_estimators
        self.random_state = random_state


class Alone(Unweighed):
    """A single member with the weight 1."""

    def _weigh(self, unseen, scores):
        return np.ones(1)


def rows_of(count, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, 3))
    return X, 30.0 + 4.0 * X[:, 0] + rng.normal(size=count)


def test_an_ensemble_must_say_how_it_weighs():
    with pytest.raises(TypeError) as caught:
        Unweighed().fit(*rows_of(20))
    assert str(caught.value) == "Unweighed does not weigh"


def test_deviations_are_the_error_out_of_fold_where_no_member_knows_better():
    X, y = rows_of(40)
    fitted = Alone().fit(X, y)
    deviation = fitted.predict(X, return_std=True)[1]
    assert deviation == pytest.approx(np.full(40, rmse(y, fitted.out_of_fold_)))


def test_deviations_have_the_size_of_errors_on_new_rows():
    X, y = rows_of(80)
    unseen, truth = rows_of(400, seed=1)
    fitted = AutoPredictor(folds=3, n_estimators=10).fit(X, y)
    mean, deviation = fitted.predict(unseen, return_std=True)
    assert 0.6 < np.sqrt(np.mean(deviation**2)) / rmse(truth, mean) < 1.5


def test_many_rows_are_predicted_as_few_are():
    X, y = rows_of(40)
    fitted = Alone().fit(X, y)
    many = rows_of(1300, seed=2)[0]
    np.testing.assert_allclose(fitted.predict(many)[600:610], fitted.predict(many[600:610]))

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from predictors import BlendPredictor, RidgePredictor, kendall_tau
from predictors.transfer import FewRowsPredictor
from predictors.transfer.learner import fit_learner
from predictors.validation import group_labels


@parametrize_with_checks([FewRowsPredictor((2,), n_estimators=3)])
def test_it_does_what_scikit_learn_asks_of_an_estimator(estimator, check):
    check(estimator)


def layered(count, seed=0):
    """Thirty columns say nothing, three say all."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, 33))
    return X, X[:, 30:] @ np.array([1.0, -2.0, 1.5]) + rng.normal(0.0, 0.3, count) + 20.0


def test_knowing_the_parts_helps_where_one_of_them_says_all():
    taus = []
    for seed in range(4):
        X, y = layered(15, seed)
        unseen, truth = layered(300, seed + 50)
        fits = [FewRowsPredictor((30,), 10), FewRowsPredictor((), 10), BlendPredictor(10)]
        taus.append([kendall_tau(truth, each.fit(X, y).predict(unseen)) for each in fits])
    apart, together, blend = np.mean(taus, axis=0)
    assert apart > together + 0.03
    assert apart > blend + 0.05


def test_the_deviation_falls_with_rows():
    unseen, _ = layered(50, 9)
    deviations = [
        FewRowsPredictor((30,), 10).fit(*layered(count)).predict(unseen, return_std=True)[1].mean()
        for count in (10, 120)
    ]
    assert deviations[1] < deviations[0]


@pytest.mark.parametrize("ends", [(0,), (5, 5), (99,), (3, 40)])
def test_parts_that_are_empty_or_reach_too_far_are_borne(ends):
    X, y = layered(20)
    assert np.isfinite(FewRowsPredictor(ends, 5).fit(X, y).predict(X)).all()


def test_past_a_thousand_rows_the_blend_stands_alone():
    X, y = layered(1001)
    fitted = FewRowsPredictor((), 2).fit(X[:, 30:], y)
    assert np.array_equal(
        fitted.predict(X[:, 30:]), BlendPredictor(2).fit(X[:, 30:], y).predict(X[:, 30:])
    )


@pytest.mark.parametrize("learner", [LinearRegression(), RidgePredictor()])
def test_any_regressor_is_a_learner(learner):
    X, y = layered(40)
    z = (y - y.min()) / np.ptp(y)  # would be taken for fractions
    fitted = fit_learner(learner, X, z, group_labels(40, None))
    found, deviation = fitted.predict(X)
    assert kendall_tau(z, found) > 0.9
    assert found.mean() == pytest.approx(z.mean(), abs=0.05)
    assert deviation.shape == (40,)
    assert not hasattr(clone(learner), "n_features_in_")

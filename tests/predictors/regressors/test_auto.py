import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.linear_model import LinearRegression

from predictors import AutoPredictor, ExtraTreesPredictor, RidgePredictor, kendall_tau, rmse
from predictors.regressors import to_link


def rows_of(count, *, seed=0, noise=0.1, decisions=6):
    """One-hot choices whose effects on the logit add up, with one interaction."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, 3, (count, decisions))
    z = (picks @ np.linspace(0.2, 1.0, decisions)) - 3.0 + 0.5 * (picks[:, 0] == picks[:, 1])
    z += rng.normal(0.0, noise, count)
    return np.eye(3)[picks].reshape(count, -1), 1.0 / (1.0 + np.exp(-z))


def small(**changes):
    return AutoPredictor(**({"folds": 3, "n_estimators": 10} | changes))


def test_the_weights_minimise_the_error_out_of_fold_with_a_pull_to_equal_shares():
    X, y = rows_of(40)
    fitted = small().fit(X, y)
    unseen = np.stack([each.unseen for each in fitted.members_.values()], axis=1)
    truth = norm.ppf((np.argsort(np.argsort(y)) + 0.5) / 40)

    def loss(weights):
        pull = 0.05 * 40 * np.sum((weights - 1.0 / 3.0) ** 2)
        return np.sum((truth - unseen @ weights) ** 2) + pull

    best = minimize(loss, np.full(3, 0.3), bounds=[(0.0, None)] * 3, tol=1e-12)
    np.testing.assert_allclose(list(fitted.weights_.values()), best.x, atol=1e-4)
    assert fitted.chosen_ == max(fitted.weights_, key=fitted.weights_.get)


def test_scores_are_the_taus_of_members_out_of_fold():
    X, y = rows_of(40)
    fitted = small().fit(X, y)
    assert list(fitted.scores_) == ["process", "trees", "boosted"]
    for name, member in fitted.members_.items():
        assert fitted.scores_[name] == pytest.approx(kendall_tau(y, member.unseen))


def test_a_group_is_never_seen_by_the_fit_that_predicts_it():
    """Every network four times, accuracies random: only rows of the same network tell anything."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 4)
    X, y = rng.normal(size=(20, 3))[groups], rng.normal(size=20)[groups]
    alone, together = (small().fit(X, y, groups=each) for each in (None, groups))
    assert kendall_tau(y, alone.out_of_fold_) > 0.8
    assert kendall_tau(y, together.out_of_fold_) < 0.5
    assert alone.scores_["trees"] > 0.8
    assert together.scores_["trees"] < 0.5


def test_what_is_said_out_of_fold_is_worth_as_much_as_what_is_said_of_new_rows():
    """Neither weights nor map may be learned from the rows that they are judged by."""
    inside, outside = [], []
    for seed in range(6):
        X, y = rows_of(40, seed=seed, noise=0.6)
        unseen, truth = rows_of(400, seed=100 + seed, noise=0.6)
        fitted = small(random_state=seed).fit(X, y)
        inside.append(rmse(y, fitted.out_of_fold_))
        outside.append(rmse(truth, fitted.predict(unseen)))
    assert 0.85 < np.mean(inside) / np.mean(outside) < 1.35


def test_it_ranks_better_than_a_line_and_trees_alone():
    gains = []
    for seed in range(3):
        X, y = rows_of(60, seed=seed)
        unseen, truth = rows_of(500, seed=50 + seed)
        taus = [
            kendall_tau(truth, each.fit(X, y).predict(unseen))
            for each in (AutoPredictor(), RidgePredictor(), ExtraTreesPredictor())
        ]
        gains.append(taus[0] - max(taus[1:]))
    assert np.mean(gains) > 0.005


def test_outliers_leave_the_ranking_alone():
    """A network that collapsed is the worst of all, however far it fell."""
    X, y = rows_of(60)
    y = 50.0 + 40.0 * y
    worst = np.argmin(y)
    unseen, truth = rows_of(300, seed=1)
    taus = []
    for low in (y[worst], -1e4):
        y[worst] = low
        taus.append(kendall_tau(truth, small().fit(X, y).predict(unseen)))
    assert taus[1] > taus[0] - 0.03


def test_any_rising_change_of_targets_leaves_the_ranking_as_it_is():
    X, y = rows_of(50)
    unseen = rows_of(200, seed=1)[0]
    first = small().fit(X, 100.0 * y).predict(unseen)
    second = small().fit(X, np.exp(9.0 * y)).predict(unseen)
    assert np.array_equal(np.argsort(first, kind="stable"), np.argsort(second, kind="stable"))


def test_predictions_are_accuracies():
    """A map learned out of fold brings the mean error near 0, on new rows as well."""
    X, y = rows_of(120)
    unseen, truth = rows_of(500, seed=1)
    predicted = small().fit(X, y).predict(unseen)
    assert abs(np.mean(predicted - truth)) < 0.02
    assert rmse(truth, predicted) < 0.35 * truth.std()


def test_a_single_group_has_equal_weights_and_no_scores():
    X, y = rows_of(30)
    fitted = small().fit(X, y, groups=np.zeros(30))
    assert list(fitted.weights_.values()) == pytest.approx([1 / 3] * 3)
    assert set(fitted.scores_.values()) == {0.0}
    assert np.isnan(fitted.out_of_fold_).all()
    assert kendall_tau(y, fitted.predict(X)) > 0.8


def test_trees_of_the_folds_differ_in_seed_and_in_rows():
    X, y = rows_of(40)
    fitted = small().fit(X, y)
    for name in ("trees", "boosted"):
        members = fitted.members_[name].fitted
        assert len(members) == 3
        assert len({each.seed for each in members}) == 3
        columns = fitted.columns_.transform(X)
        said = np.stack([each.predict(columns) for each in members])
        assert said.std(axis=0).mean() > 0.01
    assert len(fitted.members_["process"].fitted) == 1


def test_deviations_are_larger_far_from_the_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 2))
    fitted = small().fit(X, X[:, 0] + 0.1 * rng.normal(size=80))
    near, far = fitted.predict(np.array([[0.0, 0.0], [4.0, -4.0]]), return_std=True)[1]
    assert far > 1.5 * near


def test_logits_that_look_like_fractions_are_not_put_on_that_scale_again():
    X, y = rows_of(60)
    y = 0.5 + 0.23 * (y - y.min()) / np.ptp(y)
    assert 0.0 <= to_link(y, logit=True).min() <= to_link(y, logit=True).max() <= 1.0
    predicted = small().fit(X, y).predict(X)
    line = LinearRegression().fit(y[:, None], predicted)
    assert 0.7 < line.coef_[0] < 1.2

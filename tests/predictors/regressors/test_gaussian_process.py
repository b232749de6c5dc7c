import numpy as np
import pytest

from predictors import GaussianProcessPredictor, kendall_tau


def rows_of(count, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, 4))
    return X, 20.0 + 5.0 * np.sin(1.5 * X[:, 0]) + X[:, 1] + 0.2 * rng.normal(size=count)


def codes_of(count, seed=0):
    """Choices without an order: their codes mean nothing."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 5, (count, 4))
    effects = np.random.default_rng(99).normal(size=(4, 5))
    y = sum(effects[column, X[:, column]] for column in range(4))
    return X.astype(np.float64), 50.0 + y + 0.1 * rng.normal(size=count)


def test_smooth_functions_are_learned_from_few_rows():
    X, y = rows_of(60)
    unseen, truth = rows_of(300, seed=1)
    assert kendall_tau(truth, GaussianProcessPredictor().fit(X, y).predict(unseen)) > 0.75


def test_codes_are_better_compared_than_measured():
    X, y = codes_of(60)
    unseen, truth = codes_of(300, seed=1)
    by_kernel = {
        kernel: kendall_tau(truth, GaussianProcessPredictor(kernel).fit(X, y).predict(unseen))
        for kernel in ("hamming", "matern")
    }
    assert by_kernel["hamming"] > by_kernel["matern"] + 0.05
    assert by_kernel["hamming"] > 0.65


def test_other_codes_for_the_same_choices_change_nothing_under_hamming():
    X, y = codes_of(40)
    other = 7.0 * X - 3.0
    first, second = (
        GaussianProcessPredictor("hamming").fit(rows, y).predict(rows) for rows in (X, other)
    )
    np.testing.assert_allclose(first, second)


def test_choices_never_seen_are_all_equally_unlike_what_was_seen():
    X, y = codes_of(40)
    fitted = GaussianProcessPredictor("hamming").fit(X, y)
    strange = X[:2].copy()
    strange[:, 0] = [17.0, -4.0]
    strange[:, 1:] = X[0, 1:]
    mean, deviation = fitted.predict(strange, return_std=True)
    assert mean[0] == pytest.approx(mean[1])
    assert deviation[0] > fitted.predict(X[:1], return_std=True)[1][0]


def test_far_rows_are_uncertain():
    X, y = rows_of(60)
    near, far = np.zeros((1, 4)), np.full((1, 4), 4.0)
    deviation = GaussianProcessPredictor().fit(X, y).predict(np.vstack([near, far]), True)[1]
    assert deviation[1] > 1.5 * deviation[0]


def test_deviations_are_those_of_errors_on_new_rows():
    X, y = rows_of(80)
    unseen, truth = rows_of(400, seed=1)
    mean, deviation = GaussianProcessPredictor().fit(X, y).predict(unseen, return_std=True)
    off = np.abs(truth - mean) / deviation
    assert 0.55 < np.mean(off < 1.0) < 0.95


def test_an_unknown_kernel_is_named():
    X, y = rows_of(10)
    with pytest.raises(ValueError, match="kernel") as caught:
        GaussianProcessPredictor("rbf").fit(X, y)
    assert str(caught.value) == "kernel must be one of matern, hamming, got 'rbf'"


def test_a_thousand_rows_take_seconds_and_all_predict():
    X, y = rows_of(600)
    fitted = GaussianProcessPredictor(iterations=10, most_rows=100).fit(X, y)
    assert fitted.process_.rows.shape == (600, 4)
    assert kendall_tau(y, fitted.predict(X)) > 0.8

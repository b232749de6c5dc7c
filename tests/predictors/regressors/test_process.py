import numpy as np
import pytest
from scipy.stats import multivariate_normal

from predictors.regressors.kernel import RowKernel
from predictors.regressors.process import Process, in_parts

NONE = np.zeros(0, dtype=np.int64)


def fitted_to(A, targets, **changes):
    kernel = RowKernel("matern", [np.arange(A.shape[1])], NONE)
    return Process.fitted(
        kernel, A, targets, **({"iterations": 60, "most_rows": 500, "seed": 0} | changes)
    )


def rows_of(count, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(count, 3))
    return A, 7.0 + 3.0 * np.sin(2.0 * A[:, 0]) + 0.1 * rng.normal(size=count)


def test_predictions_are_those_of_the_conditional_normal():
    """The mean and variance of a joint normal, given what was seen, by plain inversion."""
    A, targets = rows_of(20)
    process = fitted_to(A, targets)
    new = np.random.default_rng(1).normal(size=(4, 3))
    noise = np.exp(process.theta[0]) + 1e-6
    known = process.kernel.between(process.theta, A, A) + noise * np.eye(20)
    cross = process.kernel.between(process.theta, new, A)
    own = process.kernel.between(process.theta, new, new)
    mean = targets.mean() + cross @ np.linalg.inv(known) @ (targets - targets.mean())
    variance = np.diag(own - cross @ np.linalg.inv(known) @ cross.T) + noise
    np.testing.assert_allclose(process.predict(new), mean, rtol=1e-6)
    np.testing.assert_allclose(
        process.deviation(new), targets.std() * np.sqrt(variance), rtol=1e-4
    )


def density(process, theta, A, targets):
    """Log posterior density of hyper-parameters, up to a constant."""
    unit = (targets - targets.mean()) / targets.std()
    covariance = process.kernel.between(theta, A, A) + (np.exp(theta[0]) + 1e-6) * np.eye(len(A))
    mean, precision = process.kernel.expected()
    prior = -0.5 * np.sum(precision * (theta - mean) ** 2)
    return multivariate_normal(np.zeros(len(A)), covariance).logpdf(unit) + prior


def test_no_near_hyper_parameters_have_a_greater_posterior_density():
    A, targets = rows_of(25)
    process = fitted_to(A, targets, iterations=500)
    best = density(process, process.theta, A, targets)
    rng = np.random.default_rng(2)
    for _ in range(40):
        other = process.theta + 0.05 * rng.normal(size=len(process.theta))
        assert density(process, other, A, targets) < best + 1e-3
    assert best > density(process, process.kernel.expected()[0], A, targets) + 1.0


def test_the_column_that_matters_weighs_most():
    A, targets = rows_of(60)
    relevance = fitted_to(A, targets).theta[3:]
    assert relevance[0] > max(relevance[1:]) + 0.5


def test_hyper_parameters_are_learned_from_a_draw_but_all_rows_predict():
    A, targets = rows_of(120)
    part, other = (fitted_to(A, targets, most_rows=30, seed=seed) for seed in (0, 1))
    assert not np.array_equal(part.theta, other.theta)
    assert part.weights.shape == (120,)
    assert np.abs(part.predict(A) - targets).mean() < 1.0


def test_equal_rows_do_not_break_the_root():
    A = np.repeat(np.eye(3), 10, axis=0)
    targets = np.repeat([1.0, 2.0, 3.0], 10)
    assert fitted_to(A, targets).predict(np.eye(3)) == pytest.approx([1.0, 2.0, 3.0], abs=0.05)


def test_parts_are_put_together_in_order():
    X = np.arange(2600.0).reshape(1300, 2)
    sizes = []

    def first(rows):
        sizes.append(len(rows))
        return rows[:, 0]

    np.testing.assert_array_equal(in_parts(first, X), X[:, 0])
    assert sizes == [512, 512, 276]

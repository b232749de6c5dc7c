import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern

from predictors.transfer.kernels import (
    Scaling,
    _negative_log_posterior,
    fit_kernels,
    kernel_diagonals,
    kernels_between,
)

PARTS = [np.array([0, 1, 2]), np.array([3])]


def rows(count, seed=0):
    return Scaling.of(np.random.default_rng(9).normal(size=(50, 4))).apply(
        np.random.default_rng(seed).normal(size=(count, 4))
    )


def fitted(A, z):
    kernels = kernels_between(A, A, PARTS)
    return fit_kernels(
        kernels, z, noise=np.ones((1, len(z))), means=np.ones((len(z), 1)),
        centre=np.full(5, -1.0), spread=np.full(5, 1.0),
    )  # fmt: skip


def test_kernels_are_those_of_scikit_learn():
    A, B = rows(6), rows(4, 1)
    found = kernels_between(A, B, PARTS)
    for part, (linear, matern) in zip(PARTS, (found[:2], found[2:]), strict=True):
        length = np.sqrt(2.0 * len(part))
        a, b = A[:, part], B[:, part]
        np.testing.assert_allclose(linear, DotProduct(0.0)(a, b) / len(part))
        np.testing.assert_allclose(matern, Matern(length, nu=2.5)(a, b))
    whole = kernels_between(A, A, PARTS)
    np.testing.assert_allclose(
        kernel_diagonals(A, PARTS), np.diagonal(whole, axis1=1, axis2=2), atol=1e-12
    )


def test_the_gradient_is_that_of_finite_differences():
    A, z = rows(12), np.random.default_rng(2).normal(size=12)
    stack = np.concatenate([kernels_between(A, A, PARTS), np.eye(12)[None]])
    means, centre, spread = np.ones((12, 1)), np.full(5, -1.0), np.full(5, 1.5)
    logs = np.array([-1.0, 0.5, -2.0, 0.0, -1.5])

    def loss(x):
        return _negative_log_posterior(x, stack, z, means, centre, spread)

    np.testing.assert_allclose(
        loss(logs)[1], approx_fprime(logs, lambda x: loss(x)[0], 1e-6), rtol=1e-3, atol=1e-4
    )


def test_predictions_are_those_of_a_process_with_the_same_weights():
    A, B = rows(20), rows(7, 1)
    z = A @ np.array([0.5, -0.2, 0.1, 0.7]) + np.random.default_rng(3).normal(0, 0.2, 20)
    fit = fitted(A, z)
    mean, deviation = fit.predict(
        kernels_between(B, A, PARTS), kernel_diagonals(B, PARTS), np.ones((7, 1))
    )
    covariance = np.tensordot(fit.weights, kernels_between(A, A, PARTS), 1)
    whole = fit.factor @ fit.factor.T
    noise = np.diagonal(whole - covariance).mean()
    np.testing.assert_allclose(whole, covariance + noise * np.eye(20), atol=1e-9)
    cross = np.tensordot(fit.weights, kernels_between(B, A, PARTS), 1)
    ones, inverse = np.ones(20), np.linalg.inv(whole)
    level = (ones @ inverse @ z) / (ones @ inverse @ ones)
    np.testing.assert_allclose(mean, level + cross @ inverse @ (z - level))
    own = fit.weights @ kernel_diagonals(B, PARTS)
    expected = np.sqrt(own - np.einsum("ij,jk,ik->i", cross, inverse, cross))
    np.testing.assert_allclose(deviation, expected, rtol=1e-6)


def test_one_kernel_gives_what_scikit_learn_gives():
    A, B = rows(15), rows(5, 1)
    z = np.sin(A[:, 3])
    part = [np.array([3])]
    kernels = kernels_between(A, A, part)[1:]
    fit = fit_kernels(
        kernels, z, noise=np.ones((1, 15)), means=np.ones((15, 1)),
        centre=np.log([2.0, 0.01]), spread=np.full(2, 1e-6),
    )  # fmt: skip
    found, deviation = fit.predict(
        kernels_between(B, A, part)[1:], kernel_diagonals(B, part)[1:], np.ones((5, 1))
    )
    process = GaussianProcessRegressor(
        ConstantKernel(2.0, "fixed") * Matern(np.sqrt(2.0), "fixed", nu=2.5), alpha=0.01,
        optimizer=None,
    ).fit(A[:, 3:], z - fit.means[0])  # fmt: skip
    mean, spread = process.predict(B[:, 3:], return_std=True)
    np.testing.assert_allclose(found, mean + fit.means[0], atol=1e-5)
    np.testing.assert_allclose(deviation, spread, atol=1e-4)


def test_the_part_that_matters_gets_the_weight():
    A = rows(60)
    fit = fitted(A, A[:, 3] + np.random.default_rng(0).normal(0, 0.1, 60))
    assert fit.weights[2:].sum() > 3.0 * fit.weights[:2].sum()


@pytest.mark.parametrize("count", [2, 3, 200])
def test_few_rows_equal_rows_and_many_rows_are_borne(count):
    A = np.repeat(rows(count // 2 + 1), 2, axis=0)[:count]
    fit = fitted(A, np.arange(float(count)))
    assert np.isfinite(fit.dual).all()


def test_constant_columns_become_0_and_far_values_are_clipped():
    scaling = Scaling.of(np.array([[1.0, 5.0], [3.0, 5.0]]))
    found = scaling.apply(np.array([[2.0, 9.0], [1e9, 5.0]]))
    assert found.tolist() == [[0.0, 0.0], [5.0, 0.0]]

import numpy as np
import pytest

from predictors.regressors.kernel import KERNELS, RowKernel

NONE = np.zeros(0, dtype=np.int64)
KINDS = [np.array([0, 1]), np.array([2, 3, 4])]


def kernel_of(name, additive=NONE):
    return RowKernel(name, KINDS, additive)


def theta_of(kernel, seed=0):
    mean, precision = kernel.expected()
    assert mean.shape == precision.shape
    return mean + 0.3 * np.random.default_rng(seed).normal(size=len(mean))


def plain_value(kernel, theta, a, b):
    """The covariance of two rows, written out."""
    squared = 0.0
    for index, kind in enumerate(KINDS):
        for column in kind:
            weight = np.exp(theta[2 + index] + theta[4 + column]) / len(kind)
            squared += weight * (a[column] - b[column]) ** 2
    r = np.sqrt(squared)
    shape = {
        "matern": (1 + 5**0.5 * r + 5 * r**2 / 3) * np.exp(-(5**0.5) * r),
        "hamming": np.exp(-squared),
    }
    value = np.exp(theta[1]) * shape[kernel.name]
    for column in kernel.additive:
        r = np.exp(theta[-1] / 2) * abs(a[column] - b[column])
        one = (1 + 5**0.5 * r + 5 * r**2 / 3) * np.exp(-(5**0.5) * r)
        value += np.exp(theta[-2]) * one / len(kernel.additive)
    return value


CASES = [(name, additive) for name in KERNELS for additive in (NONE, np.array([3, 4]))]


@pytest.mark.parametrize(("name", "additive"), CASES)
def test_covariances_are_what_the_formula_says(name, additive):
    kernel, rng = kernel_of(name, additive), np.random.default_rng(1)
    theta, A, B = theta_of(kernel), rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    expected = [[plain_value(kernel, theta, a, b) for b in B] for a in A]
    np.testing.assert_allclose(kernel.between(theta, A, B), expected, rtol=1e-10)
    np.testing.assert_allclose(kernel.with_slopes(theta, A)[0], kernel.between(theta, A, A))
    assert kernel.variance(theta) == pytest.approx(plain_value(kernel, theta, A[0], A[0]))


@pytest.mark.parametrize(("name", "additive"), CASES)
def test_slopes_are_those_of_finite_differences(name, additive):
    kernel, rng = kernel_of(name, additive), np.random.default_rng(2)
    theta, A = theta_of(kernel), rng.normal(size=(6, 5))
    G = rng.normal(size=(6, 6))
    G = G + G.T
    found = kernel.with_slopes(theta, A)[1](G)
    step = 1e-6
    for index, direction in enumerate(np.eye(len(theta)) * step):
        ends = [np.sum(G * kernel.between(theta + s * direction, A, A)) for s in (1, -1)]
        assert found[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def test_more_additive_columns_than_a_few_are_taken_for_none():
    many = RowKernel("matern", [np.arange(40)], np.arange(33))
    few = RowKernel("matern", [np.arange(40)], np.arange(32))
    assert len(few.expected()[0]) == len(many.expected()[0]) + 2


def test_the_hamming_kernel_is_a_product_over_decisions_that_differ():
    """With equal weights it falls by one factor for each."""
    picks = np.array([[0, 0, 0], [0, 0, 1], [0, 2, 1], [1, 2, 1]])
    A = np.eye(3)[picks].reshape(4, -1)
    kernel = RowKernel("hamming", [np.arange(9)], NONE)
    theta = kernel.expected()[0]
    row = kernel.between(theta, A[:1], A)[0]
    steps = row[1:] / row[:-1]
    np.testing.assert_allclose(steps, steps[0])
    assert steps[0] < 1.0

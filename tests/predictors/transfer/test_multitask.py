import numpy as np
import pytest

from predictors import kendall_tau
from predictors.transfer.multitask import BaseRows, fit_multitask
from predictors.transfer.rows import TransferRows

COLUMNS, EXTRA = 8, 3


def tasks(count=12, factor=1.0, seed=0):
    """Rows of a base, and new rows in which its function acts by a factor."""
    rng = np.random.default_rng(seed)
    weights, damage = rng.normal(size=COLUMNS), rng.normal(size=EXTRA)
    base_X = rng.normal(size=(80, COLUMNS))
    X = rng.normal(size=(count + 200, COLUMNS + EXTRA))
    clean = factor * X[:, :COLUMNS] @ weights + X[:, COLUMNS:] @ damage + 7.0
    z = clean + rng.normal(0.0, 0.2, len(X))
    new = TransferRows(X[:count], np.zeros(count), z[:count], np.arange(count))
    base = BaseRows(base_X, base_X @ weights + rng.normal(0.0, 0.2, 80))
    return base, new, X[count:], clean[count:]


@pytest.mark.parametrize(("factor", "same_scale"), [(1.0, True), (30.0, False)])
def test_rows_of_the_base_teach_the_new_task(factor, same_scale):
    base, new, unseen, truth = tasks(12, factor)
    fit = fit_multitask(base, new, same_scale=same_scale)
    found, deviation = fit.predict(unseen, np.zeros(200))
    nothing = BaseRows(base.X, np.random.default_rng(1).permutation(base.z))
    without = fit_multitask(nothing, new, same_scale=same_scale).predict(unseen, np.zeros(200))[0]
    assert kendall_tau(truth, found) > 0.75
    assert kendall_tau(truth, found) > kendall_tau(truth, without) + 0.15
    assert (deviation > 0.0).all()


def test_the_covariance_is_coregionalised():
    """Two rows of unlike tasks share the common function times its factor, and nothing else."""
    base, new, _, _ = tasks()
    fit = fit_multitask(base, new, same_scale=True)
    kernels = np.tensordot(fit.fit.weights, fit.tasks.kernels(fit.tasks, 0.5), 1)
    first, other = fit.tasks.first[0], fit.tasks.first[85]
    distance = np.sqrt(5.0) * np.linalg.norm(first - other) / np.sqrt(2.0 * COLUMNS)
    matern = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
    expected = 0.5 * np.dot(fit.fit.weights[:2], [first @ other / COLUMNS, matern])
    assert kernels[0, 85] == pytest.approx(expected)
    assert np.linalg.eigvalsh(kernels).min() > -1e-9
    np.testing.assert_allclose(
        np.diagonal(fit.tasks.kernels(fit.tasks, 0.5), axis1=1, axis2=2),
        fit.tasks.diagonals(0.5), atol=1e-12,
    )  # fmt: skip


def test_a_base_of_all_columns_leaves_none_further():
    _, new, unseen, _ = tasks()
    rng = np.random.default_rng(0)
    wide = BaseRows(rng.normal(size=(30, COLUMNS + EXTRA)), rng.normal(size=30))
    found, deviation = fit_multitask(wide, new, same_scale=True).predict(unseen, np.zeros(200))
    assert np.isfinite(found).all()
    assert np.isfinite(deviation).all()


def test_each_task_has_a_level_of_its_own():
    base, new, unseen, truth = tasks(20)
    found, _ = fit_multitask(base, new, same_scale=True).predict(unseen, np.zeros(200))
    assert found.mean() == pytest.approx(truth.mean(), abs=0.5)

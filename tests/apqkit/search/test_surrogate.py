import time

import numpy as np
import pytest
from scipy.stats import kendalltau

from apqkit.search.surrogate import fit_surrogate, normal_scores


def rows_of(count, columns=12, seed=0):
    return np.random.default_rng(seed).integers(0, 4, (count, columns)) / 3.0


def additive(rows):
    return rows @ np.linspace(-1.0, 2.0, rows.shape[1])


def bent(rows):
    return np.exp(3.0 * additive(rows)) + 4.0 * rows[:, 0] * rows[:, 1]


@pytest.mark.parametrize(("truth", "least"), [(additive, 0.9), (bent, 0.8)])
def test_it_ranks_rows_that_it_has_not_seen(truth, least):
    train, test = rows_of(80), rows_of(300, seed=1)
    found = fit_surrogate(train, normal_scores(truth(train)[:, None])).predict(test)
    assert found.shape == (300, 1)
    assert kendalltau(found[:, 0], truth(test)).statistic > least


def test_each_target_is_predicted_by_itself():
    train, test = rows_of(60), rows_of(200, seed=1)
    targets = np.column_stack([additive(train), normal_scores(-bent(train))])
    both = fit_surrogate(train, targets).predict(test)
    assert kendalltau(both[:, 0], additive(test)).statistic > 0.9
    assert kendalltau(both[:, 1], -bent(test)).statistic > 0.75


def test_scores_heed_order_alone():
    values = np.array([[3.0, 1.0], [900.0, 1.0], [4.0, 2.0]])
    found = normal_scores(values)
    np.testing.assert_allclose(found, normal_scores(np.log(values)))
    assert found[:, 0].tolist() == pytest.approx([-0.967421566101701, 0.967421566101701, 0.0])
    assert found[0, 1] == found[1, 1] < found[2, 1]


def test_targets_keep_their_mean():
    train = rows_of(60)
    found = fit_surrogate(train, additive(train)[:, None] + 50.0).predict(train)
    np.testing.assert_allclose(found[:, 0], additive(train) + 50.0, atol=0.5)


def test_noise_is_smoothed_rather_than_followed():
    train, test = rows_of(120), rows_of(300, seed=1)
    noise = np.random.default_rng(2).normal(0.0, 1.0, 120)
    found = fit_surrogate(train, (additive(train) + noise)[:, None]).predict(test)
    assert kendalltau(found[:, 0], additive(test)).statistic > 0.6


@pytest.mark.parametrize("rows", [np.zeros((6, 3)), np.repeat(rows_of(1), 5, axis=0)])
def test_rows_that_are_all_alike_are_borne(rows):
    found = fit_surrogate(rows, np.arange(len(rows), dtype=float)[:, None]).predict(rows)
    assert np.isfinite(found).all()


def test_five_hundred_rows_take_a_moment():
    train = rows_of(500, 60)
    began = time.process_time()
    fit_surrogate(train, np.column_stack([additive(train), bent(train)]))
    assert time.process_time() - began < 5.0

from itertools import combinations

import numpy as np
import pytest

from predictors import RankAveragePredictor, kendall_tau


def rows_of(count, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, 5))
    return X, X @ np.array([3.0, 1.0, 0.5, 0.0, 0.0]) + 0.5 * rng.normal(size=count)


def small(**changes):
    return RankAveragePredictor(**({"folds": 3, "n_estimators": 10} | changes))


def test_the_members_are_those_whose_mean_rank_has_the_largest_tau_out_of_fold():
    X, y = rows_of(50)
    fitted = small().fit(X, y)
    unseen = {name: each.unseen for name, each in fitted.members_.items()}
    taus = {
        chosen: kendall_tau(y, np.mean([unseen[name] for name in chosen], axis=0))
        for size in range(1, 5)
        for chosen in combinations(unseen, size)
    }
    best = max(taus, key=taus.get)
    expected = {name: (1.0 / len(best) if name in best else 0.0) for name in unseen}
    assert fitted.weights_ == pytest.approx(expected)


def test_a_prediction_does_not_hang_on_what_else_is_predicted():
    X, y = rows_of(50)
    unseen = rows_of(20, seed=1)[0]
    fitted = small().fit(X, y)
    alone = np.concatenate([fitted.predict(row[None]) for row in unseen])
    np.testing.assert_allclose(fitted.predict(unseen), alone, rtol=1e-6)


def test_ranks_have_one_scale_whatever_the_members_predict():
    X, y = rows_of(50)
    fitted = small().fit(X, y)
    for each in fitted.members_.values():
        assert each.unseen.mean() == pytest.approx(0.0, abs=1e-9)
        assert each.unseen.std() == pytest.approx(0.95, abs=0.06)


def test_new_rows_are_ranked_well():
    X, y = rows_of(60)
    unseen, truth = rows_of(300, seed=1)
    assert kendall_tau(truth, small().fit(X, y).predict(unseen)) > 0.7
    assert kendall_tau(y, small().fit(X, y).out_of_fold_) > 0.6

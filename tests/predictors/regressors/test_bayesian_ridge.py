import numpy as np
from sklearn.linear_model import BayesianRidge

from predictors import BayesianRidgePredictor


def rows_of(count, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, 3))
    return X, 9.0 + X @ np.array([2.0, 1.0, 0.0]) + 0.3 * rng.normal(size=count)


def test_it_is_the_evidence_line_through_standardised_columns():
    X, y = rows_of(40)
    unseen = rows_of(10, seed=1)[0]
    mean, scale = X.mean(axis=0), X.std(axis=0)
    line = BayesianRidge().fit((X - mean) / scale, y)
    expected = line.predict((unseen - mean) / scale, return_std=True)
    found = BayesianRidgePredictor().fit(X, y).predict(unseen, return_std=True)
    np.testing.assert_allclose(found, expected)


def test_deviations_grow_with_the_distance_and_reach_the_noise():
    X, y = rows_of(200)
    near, far = np.zeros((1, 3)), np.full((1, 3), 4.0)
    deviation = BayesianRidgePredictor().fit(X, y).predict(np.vstack([near, far]), True)[1]
    assert 0.25 < deviation[0] < 0.35
    assert deviation[1] > 1.01 * deviation[0]

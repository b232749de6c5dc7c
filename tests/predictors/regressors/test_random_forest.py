import numpy as np
from sklearn.ensemble import RandomForestRegressor

from predictors import RandomForestPredictor


def test_it_is_the_mean_vote_of_a_forest_on_the_targets_own_scale():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 4)).astype(np.float32).astype(np.float64)
    y = 10.0 + X[:, 0]
    forest = RandomForestRegressor(9, max_features=0.3, random_state=3).fit(X, y)
    found = RandomForestPredictor(9, random_state=3).fit(X, y)
    mean, deviation = found.predict(X, return_std=True)
    np.testing.assert_allclose(mean, forest.predict(X))
    votes = np.stack([tree.predict(X) for tree in forest.estimators_])
    np.testing.assert_allclose(deviation, votes.std(axis=0), atol=1e-12)


def test_every_tree_has_rows_of_its_own():
    """With all columns tried, trees that saw the same rows would vote alike."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 4)), 10.0 * rng.random(50) + 2.0
    fitted = RandomForestPredictor(9, max_features=1.0).fit(X, y)
    assert fitted.predict(X, return_std=True)[1].mean() > 0.5

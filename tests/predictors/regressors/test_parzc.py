import numpy as np
import pytest
import torch
from scipy.special import expit

from predictors import (
    ParZCPredictor,
    kendall_tau,
    layer_columns,
    load_predictor,
    save_predictor,
)

SMALL = {"channels": 4, "units": 8, "members": 2, "epochs": 40, "learning_rate": 0.03}
LAYERS = SMALL | {"positions": 6, "statistics": 2}


def networks(count, seed=0):
    """Networks of 4 to 6 layers whose accuracy depends on logarithms of their statistics."""
    rng = np.random.default_rng(seed)
    present = np.ones((count, 6), dtype=bool)
    present[:, 4:] = rng.random((count, 2)) < 0.5
    values = np.exp(3.0 * rng.normal(size=(count, 6, 2)))
    values[:, :, 1] *= 1e-9
    logs = np.log(values) * present[:, :, None]
    z = 0.2 * (logs[:, 0, 0] + logs[:, 2, 1] + 9.0 * np.log(10.0)) + 0.5 * present[:, 4]
    return layer_columns(values, present), expit(z)


def message_of(columns=18, **params):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        ParZCPredictor(**params).fit(np.ones((10, columns)), np.arange(10.0))
    return str(caught.value)


def test_networks_are_ranked_by_what_their_layers_hold():
    X, y = networks(120)
    unseen, truth = networks(300, seed=1)
    predicted, deviation = ParZCPredictor(**LAYERS).fit(X, y).predict(unseen, return_std=True)
    assert kendall_tau(truth, predicted) > 0.6
    assert 0.85 < np.mean(np.abs(truth - predicted) < 2.0 * deviation) <= 1.0


def test_the_unit_of_a_statistic_does_not_matter():
    X, y = networks(40)
    unit = np.ones(18)
    unit[:12] = np.tile([1e6, 1e-3], 6)
    first, second = (ParZCPredictor(**LAYERS).fit(each, y).predict(each) for each in (X, X * unit))
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_what_an_absent_layer_holds_is_not_read():
    X, y = networks(40)
    other = X.copy()
    for position in range(6):
        absent = X[:, 12 + position] == 0.0
        other[absent, 2 * position : 2 * position + 2] = 77.0
    first, second = (ParZCPredictor(**LAYERS).fit(each, y).predict(each) for each in (X, other))
    assert np.array_equal(first, second)


def test_a_layer_that_no_training_network_has_no_say():
    X, y = networks(40)
    X[:, 17] = 0.0
    fitted = ParZCPredictor(**LAYERS).fit(X, y)
    with_layer = X.copy()
    with_layer[:, 17], with_layer[:, 10:12] = 1.0, 5.0
    np.testing.assert_array_equal(fitted.predict(with_layer), fitted.predict(X))


def test_predictions_are_means_and_repeat():
    X, y = networks(40)
    fitted = ParZCPredictor(**LAYERS).fit(X, y)
    assert np.array_equal(fitted.predict(X), fitted.predict(X))
    np.testing.assert_allclose(fitted.predict(X[:3]), fitted.predict(X)[:3], rtol=1e-9)


def test_a_fit_draws_from_no_global_generator():
    X, y = networks(20)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    ParZCPredictor(**LAYERS).fit(X, y).predict(X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_what_was_saved_is_fitted_to_the_same_again(tmp_path):
    X, y = networks(30)
    fitted = ParZCPredictor(**LAYERS, random_state=2).fit(X, y)
    save_predictor(tmp_path, fitted, X, y)
    loaded = load_predictor(tmp_path)
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_allclose(loaded.predict(X), fitted.predict(X), rtol=1e-9)


def test_columns_must_hold_the_layers_asked_for():
    assert message_of(17, positions=6, statistics=2) == (
        "X must have 18 columns, 6 positions of 2 statistics and a mask of 6, got 17"
    )
    assert message_of(statistics=2) == "statistics must be 1 without positions, got 2"


def test_parameters_out_of_range_are_named():
    for name in ("channels", "units", "members", "epochs"):
        assert message_of(**{name: 0}) == f"{name} must be 1 or more, got 0"
    assert message_of(positions=6, statistics=0) == "statistics must be 1 or more, got 0"
    assert message_of(positions=0) == "positions must be 1 or more, got 0"
    assert message_of(blocks=-1) == "blocks must be 0 or more, got -1"
    for name in ("temperature", "prior_deviation"):
        assert message_of(**{name: 0.0}) == f"{name} must be more than 0, got 0.0"

import time

import numpy as np
import pytest
import torch
from scipy.special import expit

from predictors import MLPPredictor, kendall_tau, load_predictor, save_predictor
from predictors.regressors.link import to_link

SMALL = {"hidden": (8,), "members": 3, "epochs": 40, "learning_rate": 0.05}


def rows_of(count, *, columns=6, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, columns))
    return X, expit(X @ np.linspace(0.2, 1.0, columns) + 0.1 * rng.normal(size=count))


def message_of(**params):
    X, y = rows_of(20)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        MLPPredictor(**params).fit(X, y)
    return str(caught.value)


def test_the_prediction_is_the_mean_of_networks_in_plain_loops():
    X, y = rows_of(30)
    fitted = MLPPredictor(**SMALL | {"hidden": (8, 4)}).fit(X, y)
    for row, found in zip(X[:5], to_link(fitted.predict(X[:5]), logit=True), strict=True):
        outputs = []
        for member in range(3):
            values = np.clip((row - X.mean(axis=0)) / X.std(axis=0), -5.0, 5.0)
            for index, layer in enumerate(fitted.layers_):
                values = np.append(values, 1.0) @ layer[member]
                values = values if index == 2 else np.maximum(values, 0.0)
            outputs.append(values[0])
        expected = fitted.ranks_.to_values(np.mean(outputs))
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", ["mse", "ranknet", "hinge", "listmle", "soft_tau"])
def test_every_loss_ranks_unseen_rows_and_keeps_the_scale_of_targets(loss):
    X, y = rows_of(80)
    unseen, truth = rows_of(200, seed=1)
    predicted = MLPPredictor(**SMALL, loss=loss).fit(X, y).predict(unseen)
    assert kendall_tau(truth, predicted) > 0.7
    assert np.sqrt(np.mean((truth - predicted) ** 2)) < 0.5 * truth.std()


def test_members_differ_in_weights_and_in_what_they_see():
    X, y = rows_of(40)
    fitted = MLPPredictor(**SMALL).fit(X, y)
    assert not np.allclose(fitted.layers_[0][0], fitted.layers_[0][1])
    assert (fitted.predict(X, return_std=True)[1] > 0.0).all()


def test_a_fit_draws_from_no_global_generator():
    X, y = rows_of(20)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    MLPPredictor(**SMALL).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_rows_predict_the_same_alone_and_among_others():
    X, y = rows_of(40)
    fitted = MLPPredictor(**SMALL).fit(X, y)
    many = np.tile(X, (60, 1))  # more than are predicted at once
    np.testing.assert_allclose(fitted.predict(many), np.tile(fitted.predict(X), 60), rtol=1e-12)


def test_what_was_saved_is_fitted_to_the_same_again(tmp_path):
    X, y = rows_of(40)
    fitted = MLPPredictor(**SMALL, random_state=3).fit(X, y)
    save_predictor(tmp_path, fitted, X, y)
    loaded = load_predictor(tmp_path)
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_allclose(loaded.predict(X), fitted.predict(X), rtol=1e-9)


def warm(**changes):
    """A fitted start, and an unfitted predictor that hardly moves from it."""
    X, y = rows_of(60, columns=4)
    start = MLPPredictor(**SMALL).fit(X, y)
    still = SMALL | {"epochs": 1, "learning_rate": 1e-12}
    return start, MLPPredictor(**still | changes)


def test_descent_begins_at_the_start_and_new_columns_have_no_say():
    start, predictor = warm()
    X, y = rows_of(30, columns=6, seed=2)
    fitted = predictor.fit(X, y, start=start)
    base = start.predict(X[:, :4])
    assert kendall_tau(base, fitted.predict(X)) > 0.999
    moved = X.copy()
    moved[:, 4:] += 3.0
    np.testing.assert_allclose(fitted.predict(moved), fitted.predict(X), rtol=1e-6)


def test_the_start_is_brought_to_the_scale_of_the_new_targets():
    start, predictor = warm(loss="mse")
    X, _ = rows_of(80, columns=4, seed=2)
    y = 300.0 + 20.0 * to_link(start.predict(X), logit=True)
    predicted = predictor.fit(X, y, start=start).predict(X)
    assert np.abs(predicted - y).mean() < 0.1 * y.std()


def test_a_start_turned_round_is_not_followed_down():
    """The line that re-anchors a start always rises."""
    start, predictor = warm()
    X, _ = rows_of(40, columns=4, seed=2)
    fitted = predictor.fit(X, 1.0 - start.predict(X), start=start)
    assert kendall_tau(start.predict(X), fitted.predict(X)) > 0.99


def test_a_start_saves_labels():
    X, y = rows_of(12, columns=8, seed=5)
    first, base_y = rows_of(200, columns=8)
    start = MLPPredictor(**SMALL).fit(first[:, :6], base_y)
    unseen, truth = rows_of(200, columns=8, seed=6)
    taus = [
        kendall_tau(truth, MLPPredictor(**SMALL).fit(X, y, start=each).predict(unseen))
        for each in (start, None)
    ]
    assert taus[0] > taus[1] + 0.05


def test_the_start_itself_stays_as_it_is():
    start, _ = warm()
    before = [each.copy() for each in start.layers_]
    MLPPredictor(**SMALL).fit(*rows_of(30), start=start)
    assert all(np.array_equal(*each) for each in zip(start.layers_, before, strict=True))


def test_a_start_of_another_shape_is_refused():
    start, _ = warm()
    X, y = rows_of(20)
    with pytest.raises(ValueError, match="start") as caught:
        MLPPredictor(**SMALL | {"hidden": (4,)}).fit(X, y, start=start)
    assert str(caught.value) == ("start must have members and hidden 3 and (4,), got 3 and (8,)")
    with pytest.raises(ValueError, match="start") as caught:
        MLPPredictor(**SMALL).fit(X[:, :3], y, start=start)
    assert str(caught.value) == "X must have the 4 columns of start first, got 3"


def test_parameters_out_of_range_are_named():
    assert message_of(loss="kendall") == (
        "no loss named 'kendall'; there are: mse, ranknet, hinge, listmle, soft_tau"
    )
    assert message_of(members=0) == "members must be 1 or more, got 0"
    assert message_of(epochs=0) == "epochs must be 1 or more, got 0"
    assert message_of(hidden=(4, 0)) == "hidden must hold numbers of 1 or more, got (4, 0)"


def test_no_hidden_layer_is_a_linear_model():
    X, y = rows_of(60)
    fitted = MLPPredictor(hidden=(), members=1, epochs=200, weight_decay=0.1).fit(X, y)
    assert kendall_tau(y, fitted.predict(X)) > 0.8


@pytest.mark.slow
def test_a_thousand_rows_of_500_columns_take_seconds():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 500))
    y = expit(X[:, :20].sum(axis=1) / 4.0)
    began = time.perf_counter()
    fitted = MLPPredictor().fit(X, y)
    assert time.perf_counter() - began < 10.0
    many = rng.normal(size=(50_000, 500))
    began = time.perf_counter()
    fitted.predict(many)
    assert len(many) / (time.perf_counter() - began) > 100_000

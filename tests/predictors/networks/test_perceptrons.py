import numpy as np
import torch

from predictors.networks.perceptrons import fit_perceptrons, initial_layers
from predictors.networks.training import Descent

BAGS = np.ones((2, 40), dtype=bool)
DESCENT = Descent(epochs=30, batch_rows=64, learning_rate=0.02, weight_decay=0.0)


def rows_of(count=40):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(count, 3))
    return X, X @ np.array([1.0, -1.0, 0.5])


def outputs_of(layers, X):
    """(members, n) in plain loops."""
    found = np.zeros((len(layers[0]), len(X)))
    for member in range(len(found)):
        for row, values in enumerate(X):
            for index, layer in enumerate(layers):
                values = np.append(values, 1.0) @ layer[member]
                if index < len(layers) - 1:
                    values = np.maximum(values, 0.0)
            found[member, row] = values[0]
    return found


def fitted(layers, loss="mse", bags=BAGS, descent=DESCENT):
    X, targets = rows_of()
    return fit_perceptrons(layers, X, targets, bags, loss, descent, np.random.default_rng(1))


def test_first_layers_have_the_sizes_asked_for_and_differ_by_member():
    layers = initial_layers((3, 8, 4, 1), 2, np.random.default_rng(0))
    assert [each.shape for each in layers] == [(2, 4, 8), (2, 9, 4), (2, 5, 1)]
    assert all((each[:, -1] == 0.0).all() for each in layers)
    assert not np.array_equal(layers[0][0], layers[0][1])


def test_units_keep_the_size_of_their_inputs():
    layers = initial_layers((400, 400, 400, 1), 1, np.random.default_rng(0))
    X = np.random.default_rng(1).normal(size=(200, 400))
    assert 0.5 < outputs_of(layers, X).std() < 2.0


def test_descent_lowers_the_error_that_plain_loops_find():
    X, targets = rows_of()
    start = initial_layers((3, 8, 1), 2, np.random.default_rng(0))
    before, after = (
        ((outputs_of(each, X) - targets) ** 2).mean(axis=1) for each in (start, fitted(start))
    )
    assert (after < 0.4 * before).all()


def test_a_linear_network_comes_to_least_squares():
    start = initial_layers((3, 1), 2, np.random.default_rng(0))
    long = Descent(epochs=600, batch_rows=64, learning_rate=0.05, weight_decay=0.0)
    (layer,) = fitted(start, descent=long)
    np.testing.assert_allclose(layer[:, :, 0], [[1.0, -1.0, 0.5, 0.0]] * 2, atol=1e-3)


def test_the_layers_it_starts_from_stay_as_they_are():
    start = initial_layers((3, 8, 1), 2, np.random.default_rng(0))
    before = [each.copy() for each in start]
    fitted(start)
    assert all(np.array_equal(*each) for each in zip(start, before, strict=True))


def test_a_member_learns_from_its_bag_alone():
    X, targets = rows_of()
    bags = BAGS.copy()
    bags[0, 20:] = False
    start = initial_layers((3, 8, 1), 2, np.random.default_rng(0))
    found = []
    for shift in (0.0, 5.0):
        moved = targets + shift * (np.arange(40) >= 20)
        rng = np.random.default_rng(1)
        found.append(fit_perceptrons(start, X, moved, bags, "mse", DESCENT, rng)[0])
    assert np.array_equal(found[0][0], found[1][0])
    assert not np.allclose(found[0][1], found[1][1])


def test_no_global_generator_is_drawn_from():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fitted(initial_layers((3, 8, 1), 2, np.random.default_rng(0)), loss="soft_tau")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from predictors.networks.losses import LOSSES, hinge, listmle, mse, ranknet, soft_tau

PAIRWISE = {"ranknet": ranknet, "hinge": hinge, "soft_tau": soft_tau}

FORMULAS = {
    "ranknet": lambda difference: math.log1p(math.exp(-difference)),
    "hinge": lambda difference: max(0.0, 0.1 - difference),
    "soft_tau": lambda difference: -math.tanh(difference / 0.5),
}

values = st.lists(st.tuples(st.floats(-3, 3), st.integers(-3, 3)), min_size=1, max_size=9).map(
    lambda rows: tuple(torch.tensor(each, dtype=torch.float64) for each in zip(*rows, strict=True))
)


def over_pairs(formula, predicted, target):
    """The mean over pairs i < j in plain loops."""
    found = [
        formula((predicted[i] - predicted[j]) * (1.0 if target[i] > target[j] else -1.0))
        for j in range(len(target))
        for i in range(j)
        if target[i] != target[j]
    ]
    return sum(found) / len(found) if found else 0.0


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=count)), torch.from_numpy(rng.permutation(count) * 1.0)


def test_the_table_names_every_loss():
    assert set(LOSSES.items()) == set({"mse": mse, "listmle": listmle, **PAIRWISE}.items())


@pytest.mark.parametrize("name", PAIRWISE)
@settings(max_examples=50, deadline=None)
@given(values)
def test_losses_of_pairs_are_means_over_pairs_of_different_targets(name, rows):
    predicted, target = rows
    expected = over_pairs(FORMULAS[name], predicted.tolist(), target.tolist())
    assert float(PAIRWISE[name](predicted, target)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(values)
def test_listmle_draws_the_best_first(rows):
    predicted, target = (each.tolist() for each in rows)
    left = sorted(range(len(target)), key=lambda row: -target[row])
    expected = 0.0
    while left:
        expected -= math.log(
            math.exp(predicted[left[0]]) / sum(math.exp(predicted[row]) for row in left)
        )
        left = left[1:]
    found = float(listmle(*rows))
    assert found == pytest.approx(expected / len(target), rel=1e-9, abs=1e-12)


def test_mse_is_the_mean_of_squares():
    found = mse(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert float(found) == pytest.approx((0.0 + 4.0 + 9.0) / 3.0)


def test_soft_tau_of_the_right_order_is_minus_1_and_of_the_reverse_1():
    target = torch.arange(7.0, dtype=torch.float64)
    assert float(soft_tau(2.0 * target, target, 1e-3)) == pytest.approx(-1.0, abs=1e-12)
    assert float(soft_tau(-2.0 * target, target, 1e-3)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_soft_tau_at_a_low_temperature_is_kendalls_tau(seed):
    predicted, target = drawn(40, seed)
    expected = kendalltau(predicted.numpy(), target.numpy()).statistic
    assert -float(soft_tau(predicted, target, 1e-9)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(values, st.floats(1e-3, 10.0))
def test_soft_tau_lies_in_minus_1_to_1(rows, temperature):
    assert -1.0 <= float(soft_tau(*rows, temperature)) <= 1.0


@pytest.mark.parametrize("name", [*PAIRWISE, "listmle"])
def test_a_shift_of_the_predictions_changes_no_rank_loss(name):
    predicted, target = drawn(12)
    found = LOSSES[name](predicted + 3.0, target)
    assert float(found) == pytest.approx(float(LOSSES[name](predicted, target)), rel=1e-9)


@pytest.mark.parametrize("name", [*PAIRWISE, "listmle"])
def test_rank_losses_know_the_order_of_the_targets_alone(name):
    predicted, target = drawn(12)
    assert torch.equal(LOSSES[name](predicted, target), LOSSES[name](predicted, target**3 - 7.0))


@pytest.mark.parametrize("name", PAIRWISE)
def test_equal_targets_pull_at_no_prediction(name):
    predicted = torch.tensor([1.0, 5.0, 2.0], requires_grad=True)
    loss = PAIRWISE[name](predicted, torch.tensor([3.0, 3.0, 3.0]))
    loss.backward()
    assert loss.item() == 0.0
    assert predicted.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", LOSSES)
def test_every_member_has_a_loss_of_its_own(name):
    pairs = [drawn(10, seed) for seed in range(3)]
    together = LOSSES[name](*(torch.stack(each) for each in zip(*pairs, strict=True)))
    alone = [float(LOSSES[name](*each)) for each in pairs]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_descending_a_loss_finds_the_order(name):
    predicted, target = drawn(8)
    predicted = predicted.requires_grad_()
    for _ in range(1500):
        (gradient,) = torch.autograd.grad(LOSSES[name](predicted, target), predicted)
        predicted = (predicted - 0.3 * gradient).detach().requires_grad_()
    assert kendalltau(predicted.detach().numpy(), target.numpy()).statistic == pytest.approx(1.0)

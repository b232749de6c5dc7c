import numpy as np
import pytest
import torch

from predictors.networks.training import Descent, batches_of_bags, descend

DESCENT = Descent(epochs=3, batch_rows=4, learning_rate=0.1, weight_decay=0.0)


def test_an_epoch_meets_every_row_of_a_bag_and_no_other():
    bags = np.ones((3, 10), dtype=bool)
    bags[1, ::2] = False
    bags[2, :7] = False
    batches = list(batches_of_bags(bags, DESCENT, np.random.default_rng(0)))
    assert len(batches) == 3 * 3
    assert all(batch.shape[0] == 3 and 1 <= batch.shape[1] <= 4 for batch in batches)
    for epoch in range(3):
        met = np.concatenate(batches[3 * epoch : 3 * epoch + 3], axis=1)
        for member, bag in enumerate(bags):
            assert set(met[member]) == set(np.flatnonzero(bag))


def test_epochs_differ_in_their_order_and_seeds_repeat():
    bags = np.ones((2, 30), dtype=bool)
    first, again = (
        np.concatenate(list(batches_of_bags(bags, DESCENT, np.random.default_rng(0))), axis=1)
        for _ in range(2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:, :30], first[:, 30:60])
    assert not np.array_equal(first[0], first[1])


def test_descent_finds_a_minimum():
    leaf = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    goal = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    batches = [np.zeros((1, 1), dtype=np.int64)] * 400
    descend([leaf], [], lambda rows: (leaf - goal).square(), batches, DESCENT)
    assert leaf.tolist() == pytest.approx(goal.tolist(), abs=1e-4)


def test_decay_pulls_at_what_is_named_for_it_alone():
    free, pulled = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    batches = [np.zeros((1, 1), dtype=np.int64)] * 200
    descent = Descent(epochs=1, batch_rows=1, learning_rate=0.1, weight_decay=1.0)
    descend([free], [pulled], lambda rows: 0.0 * (free + pulled), batches, descent)
    assert free.item() == 1.0
    assert 0.0 < pulled.item() < 0.01


def test_the_learning_rate_rises_and_falls_to_almost_nothing():
    """With a constant gradient a step of Adam is the learning rate."""
    leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    seen = []

    def loss_of(rows):
        seen.append(leaf.item())
        return leaf.clone()

    descend([leaf], [], loss_of, [np.zeros((1, 1), dtype=np.int64)] * 100, DESCENT)
    steps = -np.diff([*seen, leaf.item()])
    assert steps.argmax() in range(8, 12)
    assert steps.max() == pytest.approx(0.1, rel=0.01)
    assert steps[0] < 0.02
    assert steps[-1] < 1e-3

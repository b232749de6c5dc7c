import numpy as np
import pytest

from predictors.regressors.bags import bags_by_group, out_of_bag


def test_five_members_leave_out_every_group_once():
    groups = np.repeat(np.arange(12), 3)
    bags = bags_by_group(groups, 10, np.random.default_rng(0))
    for five in (bags[:5], bags[5:]):
        assert ((~five).sum(axis=0) == 1).all()
    for bag in bags:
        left_out = set(groups[~bag])
        assert len(left_out) in (2, 3)
        assert not left_out & set(groups[bag])
    assert len({bag.tobytes() for bag in bags}) == 10


def test_members_that_are_no_multiple_of_five_differ_too():
    bags = bags_by_group(np.arange(20), 7, np.random.default_rng(0))
    assert bags.shape == (7, 20)
    assert (bags.sum(axis=1) == 16).all()


@pytest.mark.parametrize("count", [1, 4])
def test_with_fewer_than_five_groups_nothing_is_left_out(count):
    assert bags_by_group(np.repeat(np.arange(count), 9), 3, np.random.default_rng(0)).all()


def test_predictions_out_of_bag_are_means_over_who_did_not_see_the_row():
    predicted = np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0], [9.0, 1.0, 2.0]])
    bags = np.array([[False, True, True], [False, False, True], [True, True, True]])
    found = out_of_bag(predicted, bags)
    assert found[:2].tolist() == [3.0, 6.0]
    assert np.isnan(found[2])

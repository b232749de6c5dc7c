import numpy as np
import pytest
from transfer import _below, _crossing, _halves, _needed


def test_a_tau_is_reached_between_two_sizes_on_a_logarithmic_line():
    sizes, taus = np.array([10.0, 40.0]), np.array([0.5, 0.7])
    assert _crossing(sizes, taus, 0.6) == pytest.approx(20.0)
    assert _crossing(sizes, taus, 0.4) == pytest.approx(10.0)
    assert np.isnan(_crossing(sizes, taus, 0.8))


def test_samples_needed_are_read_from_the_mean_curves():
    rows = [
        {
            "transferred, 25 mixed": (0.6, 0.0),
            "from scratch, 25 mixed": (0.4, 0.0),
            "transferred, 50 mixed": (0.7 + shift, 0.0),
            "from scratch, 50 mixed": (0.6 + shift, 0.0),
        }
        for shift in (-0.1, 0.1)
    ]
    assert _needed(rows) == {
        "0.600": {"from_scratch": 50.0, "transferred": pytest.approx(25.0)},
    }


def test_splits_below_the_base_are_counted():
    rows = [{"base": (0.5, 0.0), "transferred, 10 mixed": (tau, 0.0)} for tau in (0.6, 0.45, 0.5)]
    found = _below(rows, "transferred", "base")["transferred, 10 mixed"]
    assert found == {
        "mean": pytest.approx(0.05 / 3),
        "worst": pytest.approx(-0.05),
        "splits_below": 1,
        "splits": 3,
    }


def test_no_group_is_in_both_halves():
    groups = np.repeat(np.arange(20), 3)[np.random.default_rng(0).permutation(60)]
    test, train = _halves(groups, 1)
    assert len(test) == 30
    assert not set(groups[test]) & set(groups[train])
    assert not set(test) & set(train)

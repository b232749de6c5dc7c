import numpy as np
import pytest

from apqkit.cost.compiled.trials import Trials, changed
from apqkit.types import Dim

DIMS = (
    Dim("w.a", ("x", "y", "z"), "quant"),
    Dim("w.b", ("x", "y", "z"), "quant"),
    Dim("depth", (1, 2), "arch"),
)


def price(picks):
    """Two rows and two terms."""
    first = picks[:, 0] * 1.5
    second = np.where(picks[:, 2] == 1, np.nan, picks[:, 1])
    return np.stack([np.stack([first, second], 1), np.ones((len(picks), 2))], axis=2)


@pytest.fixture
def trials():
    return Trials(price, DIMS, 2, np.random.default_rng(0))


def test_draws_reach_every_choice_and_hold_mixtures_and_equals(trials):
    picks = trials.drawn(4000)
    assert [set(column) for column in picks.T.tolist()] == [{0, 1, 2}, {0, 1, 2}, {0, 1}]
    equal = (picks[:, 0] == picks[:, 1]).mean()
    assert 0.45 < equal < 0.75  # a third by chance alone
    assert abs((picks[:, 0] == picks[:, 2]).mean() - 1 / 3) < 0.05


def test_marks_are_equal_where_terms_are():
    values = np.array([1.0, 1.0 + 1e-15, 1.0 + 1e-9, -1.0, 0.0, -0.0, np.nan, -np.nan, np.inf])
    trials = Trials(lambda picks: values[picks[:, :1], None], DIMS, 1, np.random.default_rng(0))
    marks = trials.marks_of(np.arange(len(values))[:, None])[:, 0]
    one, near, off, minus, zero, negative_zero, nan, negative_nan, infinite = marks.tolist()
    assert one == near
    assert zero == negative_zero
    assert nan == negative_nan
    assert len({one, off, minus, zero, nan, infinite}) == 6


def test_marks_tell_terms_apart_by_place():
    def swapped(picks):
        return np.where(picks[:, :1, None] == 0, [1.0, 2.0], [2.0, 1.0])

    marks = Trials(swapped, DIMS, 1, np.random.default_rng(0)).marks_of(np.eye(3, dtype=int))
    assert marks[0] != marks[1]
    assert marks[1] == marks[2]


def test_terms_come_back_for_marks_of_samples(trials):
    for _ in range(2):
        trials.sample(trials.drawn(50))
    expected = price(trials.columns.T)
    for row in range(2):
        np.testing.assert_array_equal(trials.terms(trials.marks[:, row]), expected[:, row])
    assert trials.networks == 100


def test_parts_are_priced_as_if_alone(trials):
    parts = [trials.drawn(count) for count in (3, 0, 5000)]
    found = trials.marks_of_parts(parts)
    assert [len(marks) for marks in found] == [3, 0, 5000]
    assert np.array_equal(found[0], trials.marks_of(parts[0]))
    assert np.array_equal(found[2][-4:], trials.marks_of(parts[2][-4:]))


def test_every_choice_of_a_dim_is_put_into_every_network():
    picks = np.array([[0, 1, 2], [3, 4, 5]])
    assert changed(picks, 1, 2).tolist() == [[0, 0, 2], [0, 1, 2], [3, 0, 5], [3, 1, 5]]

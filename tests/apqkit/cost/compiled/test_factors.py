import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apqkit.cost.compiled.factors import (
    Leaf,
    Pair,
    assign,
    classes_of,
    dims_of,
    entries,
    entry_of,
    joined,
    leaves_of,
    refined,
    scaled,
)

CHOICES = (4, 3, 5, 2)


def marks(*values):
    return np.array(values, dtype=np.uint64)


def whole(dim):
    return Leaf(dim, np.zeros(CHOICES[dim], dtype=np.int64), 1)


@pytest.fixture
def factors():
    """A pair within a pair, and a lone dim."""
    first = refined(whole(0), marks(7, 7, 9, 7))
    second = refined(whole(2), marks(1, 2, 3, 1, 2))
    inner = joined(first, second, marks(5, 5, 5, 5, 6, 6))
    outer = joined(refined(whole(3), marks(0, 1)), inner, marks(2, 2, 3, 2))
    return (outer, refined(whole(1), marks(3, 4, 4)))


def every_pick():
    return np.array([index.ravel() for index in np.indices(CHOICES)])


def by_hand(picks):
    """The classes of the fixture in plain conditions."""
    state = picks[0] == 2 and picks[2] in (1, 2, 4)
    met = picks[3] == 1 and not state
    return (met, picks[1] > 0)


def test_classes_are_those_of_plain_conditions(factors):
    columns = every_pick()
    entry = entry_of(factors, columns)
    assert entries(factors) == 4 == len(set(entry.tolist()))
    groups = {}
    for index, picks in enumerate(columns.T.tolist()):
        groups.setdefault(by_hand(picks), set()).add(int(entry[index]))
    assert sorted(map(len, groups.values())) == [1, 1, 1, 1]


def test_factors_know_their_dims_and_leaves(factors):
    assert dims_of(factors[0]) == (3, 0, 2)
    assert [leaf.dim for leaf in leaves_of(factors[0])] == [3, 0, 2]
    assert [leaf.count for leaf in leaves_of(factors[0])] == [2, 2, 3]
    assert isinstance(factors[0], Pair)


def test_refining_keeps_what_was_apart_apart():
    once = refined(whole(0), marks(1, 1, 2, 2))
    twice = refined(once, marks(8, 9, 8, 8))
    assert (once.count, twice.count) == (2, 3)
    first, second, third, fourth = twice.classes
    assert third == fourth
    assert len({first, second, third}) == 3


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_assigned_choices_have_the_entries_asked_for(entry, seed):
    factors = (
        joined(refined(whole(0), marks(7, 7, 9, 7)), refined(whole(1), marks(1, 2, 1)),
               marks(1, 0, 0, 1)),
        refined(whole(2), marks(1, 1, 1, 1, 2)),
    )  # fmt: skip
    columns = np.full((4, len(entry)), -5)
    assign(factors, np.array(entry), columns, np.random.default_rng(seed))
    assert entry_of(factors, columns).tolist() == entry
    assert (columns[3] == -5).all()


def test_assigned_choices_reach_every_member_of_a_class(factors):
    columns = np.zeros((4, 4000), dtype=np.int64)
    assign(factors, np.arange(4000) % 4, columns, np.random.default_rng(0))
    assert len(np.unique(columns, axis=1).T) == np.prod(CHOICES)


def test_scaled_classes_add_up_to_the_entry(factors):
    def summed(factor, columns):
        if isinstance(factor, Leaf):
            return factor.classes[columns[factor.dim]]
        return factor.classes[summed(factor.left, columns) + summed(factor.right, columns)]

    columns = every_pick()
    outer, lone = factors
    found = summed(scaled(outer, lone.count), columns) + summed(scaled(lone, 1), columns)
    assert np.array_equal(found, entry_of(factors, columns))
    assert np.array_equal(classes_of(outer, columns), found // lone.count)

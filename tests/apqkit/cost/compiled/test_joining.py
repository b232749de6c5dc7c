import numpy as np
import pytest

from apqkit.cost.compiled.factors import Leaf, classes_of, dims_of, entries
from apqkit.cost.compiled.joining import Joiner
from apqkit.cost.compiled.trials import Trials
from apqkit.types import Dim


def joiner(price, dims, contexts=24):
    rng = np.random.default_rng(0)
    trials = Trials(lambda picks: price(picks)[:, None, None] * 1.0, dims, 1, rng)
    return Joiner(trials, 0, trials.drawn(contexts), rng)


def dims_with(*choices):
    return [
        Dim(f"d{index}.{index}", tuple(range(count)), "arch")
        for index, count in enumerate(choices)
    ]


def leaves(dims):
    return [Leaf(i, np.arange(len(dim.choices)), len(dim.choices)) for i, dim in enumerate(dims)]


def test_a_chain_of_dims_ends_in_one_state():
    """Parity of twelve bits, times a third number."""
    dims = dims_with(*[2] * 12, 10)
    found = joiner(
        lambda picks: picks[:, :12].sum(axis=1) % 2 * (picks[:, 12] + 1.0), dims
    ).joined(leaves(dims), 20)
    assert entries(found) == 20
    assert sorted(dims_of(max(found, key=lambda each: len(dims_of(each))))) == list(range(12))
    picks = np.random.default_rng(1).integers(0, 2, (13, 200))
    parity = picks[:12].sum(axis=0) % 2
    chain = next(each for each in found if len(dims_of(each)) == 12)
    classes = classes_of(chain, picks)
    assert np.array_equal(classes == classes[0], parity == parity[0])


def test_joining_ends_where_combinations_are_few_enough():
    dims = dims_with(*[2] * 6)
    found = joiner(lambda picks: picks.sum(axis=1) % 2, dims).joined(leaves(dims), 16)
    assert entries(found) == 16


def test_what_acts_through_all_combinations_stays_as_it_is():
    dims = dims_with(3, 3, 2)
    given = leaves(dims)
    found = joiner(lambda picks: picks @ np.array([100, 10, 1]), dims).joined(given, 1)
    assert found == given


@pytest.mark.parametrize("contexts", [1, 200])
def test_dims_whose_effect_does_not_show_are_not_joined(contexts):
    """Two bits act where a dim of fifty takes one value: few contexts show nothing of them."""
    dims = dims_with(2, 2, 50)
    given = leaves(dims)
    acts = joiner(lambda picks: (picks[:, 0] & picks[:, 1]) * (picks[:, 2] == 7), dims, contexts)
    found = acts.joined(given, 1)
    assert (len(found) < 3) == (contexts == 200)

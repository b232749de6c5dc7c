import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost.knapsack import Knapsack, solve

WIDTHS = [(30, 300, 3000), (2, 5), (1,), ()]  # the narrower, the more the integer program decides


def drawn(rng, values, groups=5, choices=3, limits=1, edges=0):
    """A knapsack whose limits lie around the sums of a random solution."""
    own, pairs = (
        values((1 + limits, groups, choices)),
        values((1 + limits, edges, choices, choices)),
    )
    allowed = rng.random((groups, choices)) < 0.9
    chosen = rng.integers(choices, size=groups)
    allowed[np.arange(groups), chosen] = True
    ends = rng.integers(groups, size=(edges, 2))
    knapsack = Knapsack(own, pairs, ends, allowed, np.zeros(limits))
    return replace(knapsack, limits=sums(knapsack, chosen)[1:] * rng.uniform(0.8, 1.2, limits))


def sums(knapsack, chosen):
    total = np.array([each[np.arange(len(chosen)), chosen].sum() for each in knapsack.own])
    for edge, (first, second) in enumerate(knapsack.ends):
        total += knapsack.pairs[:, edge, chosen[first], chosen[second]]
    return total


def least_of_all(knapsack):
    """The least loss by trying every solution, or None."""
    found = []
    for chosen in itertools.product(*(np.flatnonzero(each) for each in knapsack.allowed)):
        lost, *spent = sums(knapsack, np.array(chosen))
        if (spent <= knapsack.limits + 1e-9 * np.abs(knapsack.limits)).all():
            found.append(lost)
    return min(found, default=None)


def assert_best(knapsack, widths=WIDTHS[0]):
    least, chosen = least_of_all(knapsack), solve(knapsack, widths=widths)
    if least is None:
        assert chosen is None
        return
    lost, *spent = sums(knapsack, chosen)
    assert knapsack.allowed[np.arange(len(chosen)), chosen].all()
    assert (spent <= knapsack.limits + 2e-9 * np.abs(knapsack.limits)).all()
    assert lost == pytest.approx(least, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("widths", WIDTHS)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 6))
def test_no_other_solution_is_better(widths, seed, limits, edges):
    rng = np.random.default_rng(seed)
    assert_best(drawn(rng, rng.random, limits=limits, edges=edges), widths)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2), st.integers(0, 6))
def test_choices_that_cost_the_same_can_be_told_apart_by_nothing_but_loss(seed, limits, edges):
    """Few distinct whole numbers: equal sums, equal rows of edges, limits that are met exactly."""
    rng = np.random.default_rng(seed)
    knapsack = drawn(rng, lambda shape: rng.integers(3, size=shape) * 1.0, 4, 4, limits, edges)
    assert_best(replace(knapsack, limits=np.round(knapsack.limits)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2), st.integers(0, 4))
def test_losses_and_costs_may_be_negative(seed, limits, edges):
    rng = np.random.default_rng(seed)
    assert_best(drawn(rng, lambda shape: rng.normal(size=shape), limits=limits, edges=edges))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2))
def test_costs_may_span_orders_of_magnitude(seed, limits):
    rng = np.random.default_rng(seed)
    assert_best(drawn(rng, lambda shape: 10.0 ** rng.uniform(-6, 6, shape), limits=limits))


def test_almost_whole_choices_do_not_pass_for_whole_ones():
    """The best choices exceed the limit by 4e-9 of it; to the integer program 0.999999 is 1."""
    loss = [[2.45, 4.4e-6, 9.0], [6.2e-4, 1.1e-7, 9.0], [0.038, 2.8e-6, 1.7e-3]]
    cost = [[2.4e-4, 0.058, 99.0], [26.270339, 29.571834, 99.0], [8.8e-4, 8046706.0, 1135161.9]]
    knapsack = Knapsack(
        np.array([loss, cost]),
        np.zeros((2, 0, 3, 3)),
        np.zeros((0, 2), dtype=int),
        np.ones((3, 3), dtype=bool),
        np.array([8046735.6]),
    )
    for widths in WIDTHS:
        assert_best(knapsack, widths)


@pytest.mark.parametrize("seed", [2653, 2768, 2817])
def test_limits_that_can_only_be_met_exactly_are_met(seed):
    """The linear relaxation has no solution here, to its tolerance."""
    rng = np.random.default_rng(seed)
    knapsack = drawn(rng, lambda shape: rng.integers(3, size=shape) * 1.0, 4, 3, limits=3)
    assert_best(replace(knapsack, limits=np.round(knapsack.limits)))


@pytest.mark.parametrize("seed", range(10))
def test_units_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    knapsack = drawn(rng, rng.random, limits=2, edges=4)
    units = np.array([1e-9, 1e9, 1e-6])[:, None, None]
    scaled = replace(
        knapsack,
        own=knapsack.own * units,
        pairs=knapsack.pairs * units[..., None],
        limits=knapsack.limits * units[1:, 0, 0],
    )
    for widths in (WIDTHS[0], ()):
        found = solve(knapsack, widths=widths)
        assert (found is None) == (solve(scaled, widths=widths) is None)
        assert found is None or np.array_equal(found, solve(scaled, widths=widths))


def test_the_integer_program_does_not_replace_a_better_solution():
    """It sees the choices that may be better; together they can be worse."""
    rng = np.random.default_rng(36)
    assert_best(drawn(rng, rng.random, limits=1, edges=6), widths=(1,))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("widths", WIDTHS)
def test_what_cannot_be_avoided_does_not_drown_what_can(widths, seed):
    rng = np.random.default_rng(seed)
    knapsack = drawn(rng, rng.random, groups=7, limits=2)
    own = knapsack.own.copy()
    own[0, 2] += 1e11
    found = solve(replace(knapsack, own=own), widths=widths)
    assert np.array_equal(found, solve(knapsack, widths=widths))


@pytest.mark.parametrize("widths", WIDTHS)
def test_limits_are_met_up_to_rounding(widths):
    rng = np.random.default_rng(0)
    own = np.stack([rng.random((6, 3)), rng.random((6, 3))])
    least = own[1].min(axis=1).sum()
    allowed, none = np.ones((6, 3), dtype=bool), np.zeros((2, 0, 3, 3))
    knapsack = Knapsack(own, none, np.zeros((0, 2), dtype=int), allowed, np.zeros(1))
    exact = replace(knapsack, limits=np.array([least * (1 - 1e-12)]))
    assert np.array_equal(solve(exact, widths=widths), own[1].argmin(axis=1))
    assert solve(replace(knapsack, limits=np.array([least * (1 - 1e-7)])), widths=widths) is None


def test_edges_within_a_group_cost_what_the_same_choice_at_both_ends_costs():
    own = np.array([[[0.0, 0.3]], [[0.0, 0.0]]])
    pairs = np.array([[[[1.0, 0.0], [0.0, 0.5]]], [[[0.0, 9.0], [9.0, 0.0]]]])
    knapsack = Knapsack(own, pairs, np.array([[0, 0]]), np.ones((1, 2), dtype=bool), np.ones(1))
    assert solve(knapsack).tolist() == [1]


def test_limits_that_exclude_each_other_have_no_solution():
    own = np.array([[[0.0, 0.0]], [[1.0, 2.0]], [[2.0, 1.0]]])
    allowed, none = np.ones((1, 2), dtype=bool), np.zeros((3, 0, 2, 2))
    knapsack = Knapsack(own, none, np.zeros((0, 2), dtype=int), allowed, np.array([1.5, 1.5]))
    for widths in WIDTHS:
        assert solve(knapsack, widths=widths) is None

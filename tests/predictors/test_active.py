import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.active import (
    choose_by_cost,
    choose_by_hypervolume,
    choose_random,
    choose_uncertain,
    expected_hypervolume_gain,
)


def hypervolume(points, reference):
    """Area that points to minimise dominate, by plain loops over a sorted front."""
    area, roof = 0.0, reference[1]
    for x, y in sorted(map(tuple, points)):
        if x < reference[0] and y < roof:
            area += (reference[0] - x) * (roof - y)
            roof = y
    return area


def gain(points, new, reference):
    """Growth of the area by one point, both objectives to be minimised."""
    return hypervolume([*points, new], reference) - hypervolume(points, reference)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_known_objectives_gain_their_area(seed, count):
    rng = np.random.default_rng(seed)
    front, new = rng.uniform(0, 1, (count, 2)), rng.uniform(0, 1.2, (5, 2))
    found = expected_hypervolume_gain(
        new, np.zeros((5, 2)), front, np.ones(2), directions=("min", "min")
    )
    expected = [gain(front, each, (1.0, 1.0)) for each in new]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uncertain_objectives_gain_the_mean_of_many_draws(seed):
    rng = np.random.default_rng(seed)
    front = rng.uniform(0.2, 0.9, (4, 2))
    mean, deviation = rng.uniform(0.1, 1.1, (3, 2)), rng.uniform(0.05, 0.3, (3, 2))
    deviation[2, 1] = 0.0
    found = expected_hypervolume_gain(
        mean, deviation, front, np.ones(2), directions=("min", "min")
    )
    for row in range(3):
        draws = rng.normal(mean[row], deviation[row], (4000, 2))
        gains = np.array([gain(front, each, (1.0, 1.0)) for each in draws])
        error = gains.std() / np.sqrt(len(gains))
        assert found[row] == pytest.approx(gains.mean(), abs=4 * error + 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_directions_and_dominated_points_change_nothing(seed):
    rng = np.random.default_rng(seed)
    front, mean = rng.uniform(0, 1, (5, 2)), rng.uniform(0, 1, (4, 2))
    deviation = rng.uniform(0, 0.2, (4, 2))
    found = expected_hypervolume_gain(
        mean, deviation, front, np.ones(2), directions=("min", "min")
    )
    turned = np.array([-1.0, 1.0])
    other = expected_hypervolume_gain(
        mean * turned, deviation, front * turned, turned, directions=("max", "min")
    )
    worse = np.vstack([front, front + 0.1, front[:1]])
    more = expected_hypervolume_gain(mean, deviation, worse, np.ones(2), directions=("min", "min"))
    np.testing.assert_allclose(other, found, rtol=1e-12)
    np.testing.assert_allclose(more, found, rtol=1e-9, atol=1e-12)
    assert (found >= 0.0).all()


def test_a_batch_does_not_crowd_together():
    mean = np.array([[0.9, 2.0], [0.9, 2.01], [0.6, 1.0]])
    deviation = np.full((3, 2), 1e-3)
    front, reference = np.array([[0.5, 1.5]]), np.array([0.4, 3.0])
    gains = expected_hypervolume_gain(mean, deviation, front, reference)
    assert sorted(np.argsort(-gains)[:2].tolist()) == [0, 1]
    assert choose_by_hypervolume(mean, deviation, front, reference, 2).tolist() == [0, 2]


def test_without_a_front_the_area_to_the_reference_counts():
    found = expected_hypervolume_gain(
        np.array([[0.9, 1.0], [0.3, 9.0]]), np.zeros((2, 2)), np.zeros((0, 2)), np.array([0.5, 4])
    )
    np.testing.assert_allclose(found, [0.4 * 3.0, 0.0])


def test_random_choices_are_even():
    counts = np.bincount(
        np.concatenate([choose_random(20, 5, seed=seed) for seed in range(2000)]), minlength=20
    )
    assert counts.min() > 400
    assert counts.max() < 600


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.data())
def test_one_candidate_is_chosen_in_each_stratum_of_cost(seed, candidates, data):
    count = data.draw(st.integers(1, candidates))
    cost = np.random.default_rng(seed).permutation(candidates).astype(float)
    chosen = choose_by_cost(cost, count, seed=seed)
    edges = np.linspace(0, candidates, count + 1).astype(int)
    for rank, low, high in zip(np.sort(cost[chosen]), edges[:-1], edges[1:], strict=True):
        assert low <= rank < high


def test_the_most_uncertain_come_first_and_ties_fall_by_seed():
    deviation = np.array([0.1, 0.5, 0.3, 0.5, 0.0])
    assert choose_uncertain(deviation, 3)[2] == 2
    firsts = {int(choose_uncertain(deviation, 1, seed=seed)[0]) for seed in range(20)}
    assert firsts == {1, 3}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_all_choices_are_distinct_repeatable_and_in_range(seed, count):
    rng = np.random.default_rng(seed)
    mean, deviation = rng.normal(size=(12, 2)), rng.uniform(0, 1, (12, 2))
    for choose in (
        lambda: choose_random(12, count, seed=seed),
        lambda: choose_by_cost(mean[:, 0].round(), count, seed=seed),
        lambda: choose_uncertain(deviation[:, 0], count, seed=seed),
        lambda: choose_by_hypervolume(mean, deviation, mean[:2], np.full(2, 3.0), count,
                                      directions=("min", "min"), seed=seed),
    ):  # fmt: skip
        chosen = choose()
        assert len(set(chosen.tolist())) == count == len(chosen)
        assert set(chosen.tolist()) <= set(range(12))
        assert np.array_equal(chosen, choose())


FLAT, PAIR = np.zeros(3), np.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: choose_random(3, 4),
            "count must lie in 0..3, the number of candidates, got 4",
        ),
        (
            lambda: choose_by_cost(FLAT, -1),
            "count must lie in 0..3, the number of candidates, got -1",
        ),
        (
            lambda: choose_by_cost(np.array([1.0, np.nan]), 1),
            "cost must be finite, got 1 that are not",
        ),
        (
            lambda: choose_uncertain(np.array([1.0, -0.5]), 1),
            "deviation must be 0 or more, got -0.5",
        ),
        (
            lambda: expected_hypervolume_gain(PAIR, PAIR, PAIR, np.ones(2), directions=("up", 1)),
            "directions must be two of 'max' and 'min', got ('up', 1)",
        ),
        (
            lambda: expected_hypervolume_gain(PAIR, FLAT, PAIR, np.ones(2)),
            "deviation must have shape (3, 2), got (3,)",
        ),
        (
            lambda: expected_hypervolume_gain(PAIR, PAIR, PAIR, np.ones(3)),
            "reference must have shape (2,), got (3,)",
        ),
        (
            lambda: choose_by_hypervolume(np.zeros((3, 1)), PAIR, PAIR, np.ones(2), 1),
            "mean must have shape (3, 2), got (3, 1)",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=r"^(count|cost|deviation|dir|ref|mean)") as caught:
        call()
    assert str(caught.value) == message

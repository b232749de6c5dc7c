import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors import RidgePredictor
from predictors.learning_curve import LearningCurve, how_many_more, measure_learning_curve

SIZES = np.array([10.0, 20.0, 40.0, 80.0, 160.0])


def curve_of(limit, loss, exponent, noise=0.0, seed=0, rows=200):
    rng = np.random.default_rng(seed)
    taus = (limit - loss * SIZES**-exponent)[:, None] + rng.normal(0.0, noise, (5, 8))
    return LearningCurve(SIZES, taus, rows)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.6, 0.95), st.floats(0.3, 1.2), st.floats(0.35, 0.8))
def test_a_curve_that_follows_the_law_is_continued(limit, loss, exponent):
    target = limit - loss * 500.0**-exponent
    found = how_many_more(curve_of(limit, loss, exponent), target)
    assert found.more == pytest.approx(300.0, rel=0.35)
    assert found.tau_now == pytest.approx(limit - loss * 200.0**-exponent, abs=0.01)
    assert found.limit == pytest.approx(limit, abs=0.05)


def test_the_interval_holds_the_truth_about_as_often_as_asked():
    target = 0.85 - 0.9 * 400.0**-0.5
    held = []
    for seed in range(30):
        found = how_many_more(
            curve_of(0.85, 0.9, 0.5, 0.02, seed), target, coverage=0.8, seed=seed
        )
        held.append(found.low <= 200.0 <= found.high)
        assert found.low <= found.more <= found.high
    assert np.mean(held) >= 0.65


def test_what_is_reached_takes_nothing_and_what_is_out_of_reach_all():
    curve = curve_of(0.8, 0.9, 0.5, 0.005)
    reached = how_many_more(curve, 0.6)
    assert (reached.more, reached.low, reached.high) == (0.0, 0.0, 0.0)
    never = how_many_more(curve, 0.95)
    assert never.more == never.high == np.inf


def test_the_ceiling_bounds_the_limit():
    curve = curve_of(1.3, 1.0, 0.3)
    assert how_many_more(curve, 0.8, ceiling=0.9).limit <= 0.9
    assert how_many_more(curve, 0.95, ceiling=0.9).more == np.inf


def test_a_falling_curve_promises_nothing():
    falling = LearningCurve(SIZES, np.linspace(0.6, 0.4, 5)[:, None], 200)
    assert how_many_more(falling, 0.7).more == np.inf


def test_more_is_needed_for_more():
    curve = curve_of(0.9, 0.9, 0.5, 0.01)
    needs = [how_many_more(curve, target).more for target in (0.83, 0.85, 0.87)]
    assert needs == sorted(needs)
    assert needs[0] < needs[2]


def linear(count, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, 8))
    return X, X @ np.arange(1.0, 9.0) + rng.normal(0.0, 6.0, count)


def test_a_measured_curve_rises_and_foretells_what_more_rows_bring():
    X, y = linear(120)
    curve = measure_learning_curve(RidgePredictor(), X, y, repeats=6)
    assert curve.sizes.tolist() == [12, 18, 30, 48, 72, 96]
    assert curve.taus.shape == (6, 6)
    means = curve.taus.mean(axis=1)
    assert means[-1] > means[0] + 0.05
    found = how_many_more(curve, float(means[-1]) - 0.05)
    assert found.more == 0.0
    assert np.array_equal(
        curve.taus, measure_learning_curve(RidgePredictor(), X, y, repeats=6).taus
    )


def test_groups_are_not_torn():
    """Targets are noise that rows of a group share: only a leak can rank them."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    X, y = rng.normal(size=(30, 12))[groups], rng.normal(size=30)[groups]
    kept = measure_learning_curve(RidgePredictor(), X, y, groups, sizes=[20, 40, 60])
    torn = measure_learning_curve(RidgePredictor(), X, y, None, sizes=[20, 40, 60])
    assert abs(kept.taus.mean()) < 0.2
    assert torn.taus[-1].mean() > kept.taus[-1].mean() + 0.2


def test_wrong_input_is_named():
    X, y = linear(40)
    curve = curve_of(0.8, 0.5, 0.5)
    for call, message in (
        (
            lambda: measure_learning_curve(RidgePredictor(), X, y, sizes=[5, 10, 35]),
            "sizes must lie in 2..30, which leaves 10 of 40 rows to rank, got [5, 10, 35]",
        ),
        (lambda: how_many_more(curve, 1.5), "target_tau must lie in -1..1, got 1.5"),
        (lambda: how_many_more(curve, 0.5, ceiling=2), "ceiling must lie in -1..1, got 2"),
        (
            lambda: how_many_more(curve, 0.5, coverage=1),
            "coverage must lie between 0 and 1, got 1",
        ),
        (
            lambda: LearningCurve(SIZES[:2], np.zeros((2, 3)), 9),
            "a learning curve needs sizes (s,) and taus (s, r) with 3 sizes or more, "
            "got shapes (2,) and (2, 3)",
        ),
        (
            lambda: LearningCurve(SIZES[::-1], np.zeros((5, 3)), 9),
            "a learning curve needs finite taus and ascending sizes",
        ),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            call()
        assert str(caught.value) == message

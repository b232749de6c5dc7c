import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors import RidgePredictor, conformal_half_width, out_of_fold


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 120), st.integers(1, 99))
def test_it_is_the_residual_at_the_exact_place(count, percent):
    residuals = np.random.default_rng(count).permutation(np.arange(1.0, count + 1.0))
    residuals *= np.where(np.arange(count) % 2, -1.0, 1.0)
    place = math.ceil(Fraction(percent, 100) * (count + 1))
    expected = float(place) if place <= count else math.inf
    assert conformal_half_width(residuals, percent / 100) == expected


def test_rounding_does_not_move_the_place():
    assert 25 * 0.56 > 14.0
    assert conformal_half_width(np.arange(1.0, 25.0), 0.56) == 14.0


def test_the_ends_of_the_range():
    residuals = np.array([3.0, -1.0, 2.0])
    assert conformal_half_width(residuals, 0.0) == 1.0
    assert conformal_half_width(residuals, 1.0) == math.inf
    assert conformal_half_width(residuals[:0], 0.0) == math.inf


def test_missing_residuals_are_left_out():
    residuals = np.array([np.nan, 0.1, np.nan, -0.3, 0.2, 0.4])
    assert conformal_half_width(residuals, 0.8) == 0.4
    assert conformal_half_width(np.full(5, np.nan), 0.5) == math.inf


@pytest.mark.parametrize(("coverage", "shown"), [(90, "90"), (-0.1, "-0.1"), (np.nan, "nan")])
def test_a_coverage_out_of_range_is_refused(coverage, shown):
    with pytest.raises(ValueError, match="coverage") as caught:
        conformal_half_width(np.ones(3), coverage)
    assert str(caught.value) == f"coverage must lie in 0..1, got {shown}"


@pytest.mark.parametrize("count", [9, 19, 60])
@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "exponential"])
def test_intervals_cover_as_often_as_asked_whatever_the_distribution(count, draw):
    """The chance is ceil((m + 1) * coverage) / (m + 1) exactly."""
    rng = np.random.default_rng(count)
    rows = getattr(rng, draw)(size=(4000, count + 1))
    covered = [abs(row[0]) <= conformal_half_width(row[1:], 0.8) for row in rows]
    exact = math.ceil((count + 1) * 0.8) / (count + 1)
    assert np.mean(covered) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


def linear(rng, count):
    X = rng.normal(size=(count, 6))
    return X, X @ np.arange(1.0, 7.0) + rng.normal(size=count)


def test_intervals_of_a_predictor_cover_new_rows_over_many_data_sets():
    covered, widths = [], {60: [], 240: []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        unseen = linear(rng, 500)
        for count, found in widths.items():
            X, y = linear(rng, count)
            width = conformal_half_width(y - out_of_fold(RidgePredictor(), X, y), 0.9)
            errors = unseen[1] - RidgePredictor().fit(X, y).predict(unseen[0])
            covered.append(np.mean(np.abs(errors) <= width))
            found.append(width)
    assert 0.88 <= np.mean(covered) <= 0.93
    assert np.mean(widths[240]) < np.mean(widths[60])

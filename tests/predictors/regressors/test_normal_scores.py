import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from predictors.regressors.normal_scores import NormalScores

numbers = st.lists(st.integers(-1000, 1000), min_size=2, max_size=30).map(
    lambda values: np.array(values) / 8.0
)


@settings(max_examples=50, deadline=None)
@given(numbers)
def test_a_score_is_the_normal_quantile_of_the_mean_rank(values):
    found = NormalScores.of(values).to_scores(values)
    for value, score in zip(values, found, strict=True):
        rank = np.sum(values < value) + 0.5 * (np.sum(values == value) + 1)
        assert score == pytest.approx(norm.ppf((rank - 0.5) / len(values)), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(numbers, st.floats(-6, 6))
def test_the_map_rises_and_comes_back_also_beyond_the_ends(values, score):
    ranks = NormalScores.of(values)
    if np.ptp(values) == 0.0:
        assert ranks.to_values(np.array([score])) == values[0]
        return
    there = ranks.to_values(np.array([score, score + 0.01]))
    assert there[1] > there[0]
    assert ranks.to_scores(there) == pytest.approx([score, score + 0.01], abs=1e-6)


def test_beyond_the_ends_it_goes_on_along_the_line_through_them():
    ranks = NormalScores.of(np.array([1.0, 2.0, 10.0]))
    end = ranks.scores[-1]
    slope = 9.0 / (2.0 * end)
    assert ranks.to_values(np.array([end + 2.0])) == pytest.approx(10.0 + 2.0 * slope)
    assert ranks.to_values(np.array([-end - 2.0])) == pytest.approx(1.0 - 2.0 * slope)


def test_deviations_and_slopes_are_those_of_the_map():
    ranks = NormalScores.of(np.arange(40.0))
    scores = np.array([-0.5, 0.0, 1.0])
    rise = ranks.to_values(scores + 0.3) - ranks.to_values(scores - 0.3)
    assert ranks.to_deviations(scores, np.full(3, 0.3)) == pytest.approx(rise / 2.0)
    rise = ranks.to_values(scores + 0.05) - ranks.to_values(scores - 0.05)
    assert ranks.slope(scores) == pytest.approx(rise / 0.1)
    assert ranks.to_deviations(scores, np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_any_shape_goes_both_ways():
    ranks = NormalScores.of(np.arange(5.0))
    assert ranks.to_values(ranks.to_scores(np.ones((2, 3)))) == pytest.approx(np.ones((2, 3)))

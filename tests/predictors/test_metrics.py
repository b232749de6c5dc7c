import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from predictors import (
    METRICS,
    bootstrap_interval,
    kendall_tau,
    rmse,
    spearman,
    top_quartile_tau,
)

SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def pairs(draw, low=2, high=25):
    count = draw(st.integers(low, high))
    values = st.lists(st.integers(0, 6).map(float), min_size=count, max_size=count)
    return np.array(draw(values)), np.array(draw(values))


def brute_tau(truth, predicted) -> float:
    count = len(truth)
    score, tied_truth, tied_predicted = 0.0, 0, 0
    for i in range(count):
        for j in range(i):
            a, b = np.sign(truth[i] - truth[j]), np.sign(predicted[i] - predicted[j])
            score += a * b
            tied_truth += a == 0
            tied_predicted += b == 0
    every = count * (count - 1) / 2
    below = np.sqrt((every - tied_truth) * (every - tied_predicted))
    return float(score / below) if below else float("nan")


@SETTINGS
@given(pairs())
def test_tau_counts_pairs_and_corrects_for_ties(pair):
    np.testing.assert_allclose(kendall_tau(*pair), brute_tau(*pair), atol=1e-12)


@SETTINGS
@given(pairs())
def test_spearman_is_the_correlation_of_ranks(pair):
    found = spearman(*pair)
    if any(np.ptp(each) == 0 for each in pair):
        assert np.isnan(found)
    else:
        ranks = [stats.rankdata(each) for each in pair]
        assert found == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


@SETTINGS
@given(pairs())
def test_the_top_quartile_is_the_best_quarter_of_the_truth(pair):
    truth, predicted = pair
    place = 0.75 * (len(truth) - 1)
    ordered = sorted(truth)
    low, high = ordered[int(place)], ordered[min(int(place) + 1, len(truth) - 1)]
    edge = low + (high - low) * (place - int(place))
    best = [index for index in range(len(truth)) if truth[index] >= edge - 1e-12]
    np.testing.assert_allclose(
        top_quartile_tau(truth, predicted), brute_tau(truth[best], predicted[best]), atol=1e-12
    )


@SETTINGS
@given(pairs(low=1))
def test_rmse_is_what_a_plain_loop_finds(pair):
    squares = [(a - b) ** 2 for a, b in zip(*pair, strict=True)]
    assert rmse(*pair) == pytest.approx((sum(squares) / len(squares)) ** 0.5, abs=1e-12)


@pytest.mark.parametrize("name", ["tau", "spearman", "top_quartile_tau"])
def test_signs_are_kept_and_scale_does_not_matter(name):
    metric = METRICS[name]
    truth = np.random.default_rng(0).random(40)
    assert metric(truth, truth) == pytest.approx(1.0)
    assert metric(truth, -truth) == pytest.approx(-1.0)
    assert metric(truth, np.exp(9.0 * truth)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_few_rows_give_a_number_or_nan_and_no_warning(name, count):
    rows = np.arange(count, dtype=np.float64)
    value = METRICS[name](rows, rows)
    assert isinstance(value, float)
    assert np.isnan(value) or value == pytest.approx(0.0 if name == "rmse" else 1.0)


@pytest.mark.parametrize("name", ["tau", "spearman", "top_quartile_tau"])
def test_a_constant_ranks_nothing(name):
    rows = np.arange(12.0)
    assert np.isnan(METRICS[name](rows, np.zeros(12)))
    assert np.isnan(METRICS[name](np.zeros(12), rows))


def test_an_interval_is_the_quantiles_of_redrawn_scores():
    rng = np.random.default_rng(1)
    truth, predicted = rng.random(30), rng.random(30)
    found = bootstrap_interval(rmse, truth, predicted, draws=50, coverage=0.8, seed=7)
    again = np.random.default_rng(7)
    scores = []
    for _ in range(50):
        rows = again.integers(0, 30, 30)
        scores.append(rmse(truth[rows], predicted[rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(scores, [0.1, 0.9])))
    assert found.value == rmse(truth, predicted)
    assert found.low < found.value < found.high


def test_rows_of_one_group_are_drawn_together():
    def count_groups(truth, predicted):
        drawn, times = np.unique(truth, return_counts=True)
        assert (times % 3 == 0).all()
        return float(len(drawn))

    groups = np.repeat([5, 9, 2, 7], 3)
    found = bootstrap_interval(count_groups, groups * 1.0, groups * 1.0, groups=groups, draws=40)
    assert found.value == 4.0
    assert 1.0 <= found.low < found.high <= 4.0


def test_repeated_rows_widen_the_interval_only_as_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 8)
    truth, predicted = rng.random(25)[groups], rng.random(25)[groups]
    wide = bootstrap_interval(kendall_tau, truth, predicted, groups=groups)
    narrow = bootstrap_interval(kendall_tau, truth, predicted)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    """The mean error of standard normal noise is known: sqrt(1) for rmse."""
    inside = []
    for seed in range(150):
        noise = np.random.default_rng(1000 + seed).normal(size=100)
        found = bootstrap_interval(rmse, noise, np.zeros(100), draws=200, coverage=0.9, seed=seed)
        inside.append(found.low <= 1.0 <= found.high)
    assert 0.8 <= np.mean(inside) <= 0.96


def test_where_no_draw_has_a_score_the_interval_is_nan():
    found = bootstrap_interval(kendall_tau, np.arange(8.0), np.ones(8))
    assert np.isnan([found.value, found.low, found.high]).all()


def test_draws_without_a_score_are_left_out():
    found = bootstrap_interval(kendall_tau, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(2)
    truth, predicted = rng.random(20), rng.random(20)
    first, again, other = (
        bootstrap_interval(spearman, truth, predicted, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other

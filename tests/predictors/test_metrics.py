from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from predictors import (
    METRICS,
    bootstrap_interval,
    ceiling_tau,
    compare_paired,
    kendall_tau,
    noise_ceiling,
    precision_at,
    rank_of_best,
    regret_at,
    rmse,
    spearman,
    top_quartile_tau,
    unbiased_rmse,
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


def brute_precision(truth, predicted, k):
    """The mean over all orders that the predictions allow."""
    good = truth >= sorted(truth)[-k]
    shares = [
        np.mean(good[list(order[:k])])
        for order in permutations(range(len(truth)))
        if all(predicted[a] >= predicted[b] for a, b in pairwise(order))
    ]
    return np.mean(shares)


def brute_regret(truth, predicted, k):
    """The worst over all orders that the predictions allow."""
    return max(
        max(truth) - max(truth[list(order[:k])])
        for order in permutations(range(len(truth)))
        if all(predicted[a] >= predicted[b] for a, b in pairwise(order))
    )


FEW = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        *(st.lists(st.integers(0, 3), min_size=n, max_size=n) for _ in range(2)),
        st.integers(1, n),
    )
)


@SETTINGS
@given(FEW)
def test_precision_and_regret_are_those_of_all_orders_that_ties_allow(rows):
    truth, predicted, k = np.array(rows[0], float), np.array(rows[1], float), rows[2]
    assert precision_at(truth, predicted, k) == pytest.approx(brute_precision(truth, predicted, k))
    assert regret_at(truth, predicted, k) == brute_regret(truth, predicted, k)


@SETTINGS
@given(FEW)
def test_the_rank_of_the_best_is_its_place_behind_equal_predictions(rows):
    truth, predicted, _ = np.array(rows[0], float), np.array(rows[1], float), rows[2]
    places = [
        sum(other >= predicted[row] for other in predicted)
        for row in range(len(truth))
        if truth[row] == max(truth)
    ]
    assert rank_of_best(truth, predicted) == min(places)


def test_a_reversed_prediction_finds_the_worst():
    truth = np.arange(10.0)
    assert precision_at(truth, truth, 3) == 1.0
    assert precision_at(truth, -truth, 3) == 0.0
    assert regret_at(truth, -truth, 3) == 7.0
    assert (rank_of_best(truth, truth), rank_of_best(truth, -truth)) == (1, 10)


@pytest.mark.parametrize("function", [precision_at, regret_at])
@pytest.mark.parametrize("k", [0, 4])
def test_more_rows_than_there_are_cannot_be_taken(function, k):
    with pytest.raises(ValueError, match="k must") as caught:
        function(np.zeros(3), np.zeros(3), k)
    assert str(caught.value) == f"k must lie in 1..3, the number of rows, got {k}"


def test_among_no_rows_none_is_best():
    with pytest.raises(ValueError, match="k must") as caught:
        rank_of_best(np.zeros(0), np.zeros(0))
    assert str(caught.value) == "k must lie in 1..0, the number of rows, got 1"


@SETTINGS
@given(pairs(low=1), st.floats(-9, 9))
def test_an_offset_does_not_count_in_the_unbiased_error(pair, offset):
    truth, predicted = pair
    off = [p - t for t, p in zip(truth, predicted, strict=True)]
    mean = sum(off) / len(off)
    expected = (sum((each - mean) ** 2 for each in off) / len(off)) ** 0.5
    assert unbiased_rmse(truth, predicted) == pytest.approx(expected, abs=1e-9)
    assert unbiased_rmse(truth, predicted + offset) == pytest.approx(expected, abs=1e-9)
    assert np.isnan(unbiased_rmse(truth[:0], predicted[:0]))


def test_the_ceiling_is_the_tau_of_each_repeat_with_the_mean_of_the_others():
    repeats = np.random.default_rng(0).normal(size=(30, 3)) + np.arange(30.0)[:, None] / 5.0
    taus = [
        brute_tau(repeats[:, one], np.delete(repeats, one, axis=1).mean(axis=1))
        for one in range(3)
    ]
    assert noise_ceiling(repeats) == pytest.approx(np.mean(taus))
    truth, predicted = repeats[:, 0], repeats[:, 1]
    assert ceiling_tau(truth, predicted, 0.8) == pytest.approx(brute_tau(truth, predicted) / 0.8)
    assert ceiling_tau(truth, -predicted, 0.8) < 0.0


def test_the_ceiling_of_nas_bench_macro_is_the_published_one(public_data):
    path = public_data / "nas_bench_macro" / "nas_bench_macro_cifar10.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is missing: github.com/xiusu/NAS-Bench-Macro has the table")
    table = np.genfromtxt(path, delimiter=",", names=True)
    repeats = np.stack([table[f"acc{seed}"] for seed in (1, 2, 3)], axis=1)
    assert noise_ceiling(repeats) == pytest.approx(0.896, abs=1e-3)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_a_ceiling_needs_repeats(shape):
    with pytest.raises(ValueError, match="repeats") as caught:
        noise_ceiling(np.zeros(shape))
    assert str(caught.value) == f"repeats must have shape (n, 2 or more), got {shape}"


@pytest.mark.parametrize("ceiling", [0.0, -0.1, 1.1])
def test_a_ceiling_out_of_range_is_refused(ceiling):
    with pytest.raises(ValueError, match="ceiling") as caught:
        ceiling_tau(np.arange(3.0), np.arange(3.0), ceiling)
    assert str(caught.value) == f"ceiling must lie in 0..1 and above 0, got {ceiling}"


def test_a_paired_comparison_is_students_and_counts_wins():
    first, second = np.array([0.8, 0.7, 0.9, 0.6]), np.array([0.7, 0.7, 0.6, 0.65])
    found = compare_paired(first, second)
    test = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.0875)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    assert (found.wins, found.losses, found.seeds) == (2, 1, 4)
    turned = compare_paired(second, first)
    assert (turned.mean, turned.wins) == (pytest.approx(-0.0875), 1)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1,), (1,)), ((2, 2), (2, 2))])
def test_a_comparison_needs_the_same_seeds(shapes):
    with pytest.raises(ValueError, match="scores") as caught:
        compare_paired(np.zeros(shapes[0]), np.zeros(shapes[1]))
    assert str(caught.value) == (
        f"scores must have the same shape (2 or more seeds,), got {shapes[0]} and {shapes[1]}"
    )


@pytest.mark.parametrize("coverage", [0.0, 1.0])
def test_a_comparison_needs_a_coverage_between_0_and_1(coverage):
    with pytest.raises(ValueError, match="coverage") as caught:
        compare_paired(np.zeros(3), np.ones(3), coverage=coverage)
    assert str(caught.value) == f"coverage must lie between 0 and 1, got {coverage}"

import copy
import math

import numpy as np
import pytest

from apqkit.pipeline.ranking import (
    Measured,
    Ranking,
    fit_base,
    fp32_rows,
    measured_samples,
    mixed_rows,
    proxy_gain,
    reordered,
)
from apqkit.pipeline.samples_stage import read_samples
from apqkit.spaces.base import picks_of_values
from apqkit.spaces.draws import draw_uniform


@pytest.fixture(scope="module")
def base(context):
    return fit_base(context)


@pytest.fixture(scope="module")
def mixed(context):
    return measured_samples(context, "mixed")


@pytest.fixture(scope="module")
def fresh(context):
    return draw_uniform(context.space, 30, np.random.default_rng(3))


def test_rows_are_the_samples_of_the_run(context, mixed):
    samples = read_samples(context, "mixed")
    assert len(samples) == context.config.samples.mixed
    assert mixed.accuracy.tolist() == [each.accuracy for each in samples]
    for row, sample in zip(mixed.picks, samples, strict=True):
        assert np.array_equal(picks_of_values(context.space.dims, sample.picks)[0], row)


def test_rows_hold_features_accuracy_and_groups(context, mixed):
    rows = mixed_rows(context, mixed)
    assert np.array_equal(rows.features, context.features.mixed(mixed.picks))
    assert np.array_equal(rows.accuracy, mixed.accuracy)
    fp32 = measured_samples(context, "fp32")
    assert np.array_equal(fp32_rows(context).features, context.features.fp32(fp32.picks))
    assert len(rows.groups) == len(mixed.accuracy)


def test_joined_candidates_follow(mixed):
    both = mixed.joined(mixed.picks[:2], np.array([0.25, 0.75]))
    assert np.array_equal(both.picks[-2:], mixed.picks[:2])
    assert both.accuracy.tolist() == [*mixed.accuracy.tolist(), 0.25, 0.75]
    assert np.array_equal(both.picks[:-2], mixed.picks)


def test_without_proxies_there_is_one_predictor(context, base, mixed, fresh):
    ranking = Ranking.fitted(context, base, mixed, ())
    assert ranking.full is None
    assert np.array_equal(ranking.score(fresh), ranking.quick_score(fresh))
    assert ranking.half_width == ranking.quick.half_width
    expected = ranking.quick.predictor.predict(context.features.mixed(fresh))
    assert np.array_equal(ranking.quick_score(fresh), expected)


def test_with_proxies_the_full_predictor_reads_their_columns(context, base, mixed, fresh):
    ranking = Ranking.fitted(context, base, mixed, ["snip"])
    columns = context.proxies.columns(fresh, ["snip"])
    features = np.hstack([context.features.mixed(fresh), columns])
    assert np.array_equal(ranking.score(fresh), ranking.full.predictor.predict(features))
    assert ranking.full.predictor.n_features_in_ == features.shape[1]
    assert ranking.half_width == ranking.full.half_width
    assert ranking.proxies == ("snip",)
    without = Ranking.fitted(context, base, mixed, ())
    assert np.array_equal(ranking.quick_score(fresh), without.quick_score(fresh))


def test_accuracy_in_fp32_comes_from_the_base(context, base, mixed, fresh):
    ranking = Ranking.fitted(context, base, mixed, ())
    expected = base.predictor.predict(context.features.fp32(fresh))
    assert np.array_equal(ranking.fp32_score(fresh), expected)


def test_more_measurements_change_the_prediction(context, base, mixed, fresh):
    before = Ranking.fitted(context, base, mixed, ())
    more = mixed.joined(fresh, np.linspace(0.2, 0.9, len(fresh)))
    after = Ranking.fitted(context, base, more, ())
    assert not np.array_equal(before.score(fresh), after.score(fresh))


def test_proxies_by_rank_deal_the_same_predictions_out_in_the_order_of_the_mean_rank():
    predicted = np.array([0.9, 0.5, 0.7, 0.6])
    columns = np.array([[1.0, -3.0], [2.0, -9.0], [9.0, -8.0], [8.0, -7.0]])
    down = {"plain": -1.0, "snip": 1.0}
    ranks = [np.argsort(np.argsort(each)) for each in (predicted, *(columns * [*down.values()]).T)]
    order = np.argsort(np.mean(ranks, axis=0), kind="stable")
    found = reordered(predicted, list(down), columns * [1.0, 1.0])
    assert np.array_equal(found[order], np.sort(predicted))
    assert np.array_equal(reordered(predicted, [], np.zeros((4, 0))), predicted)


def test_a_run_that_combines_by_rank_scores_by_reordering(context, base, mixed, fresh):
    by_rank = copy.copy(context)
    predictor = context.config.predictor.model_copy(update={"combine": "ranks"})
    by_rank.config = context.config.model_copy(update={"predictor": predictor})
    ranking = Ranking.fitted(by_rank, base, mixed, ("snip",))
    assert ranking.full is None
    columns = context.proxies.columns(fresh, ("snip",))
    expected = reordered(ranking.quick_score(fresh), ("snip",), columns)
    assert np.array_equal(ranking.score(fresh), expected)


def test_the_gain_of_proxies_is_the_squared_error_that_they_take_away():
    rng = np.random.default_rng(0)
    truth, without, helped = rng.uniform(0.2, 0.9, (3, 40))

    def logit(share):
        return math.log(share / (1 - share))

    gains = [
        (logit(t) - logit(a)) ** 2 - (logit(t) - logit(b)) ** 2
        for t, a, b in zip(truth, without, helped, strict=True)
    ]
    mean = sum(gains) / 40
    deviation = math.sqrt(sum((each - mean) ** 2 for each in gains) / 39)
    gain, error = proxy_gain(truth, without, helped)
    assert gain == pytest.approx(mean)
    assert error == pytest.approx(deviation / math.sqrt(40))
    assert proxy_gain(truth, without, without) == (0.0, 0.0)
    assert proxy_gain(truth, without, truth)[0] > 0


def test_measured_candidates_keep_their_shape():
    empty = Measured(np.zeros((0, 3), dtype=np.int64), np.zeros(0))
    assert empty.joined(np.ones((2, 3), dtype=np.int64), np.ones(2)).picks.shape == (2, 3)

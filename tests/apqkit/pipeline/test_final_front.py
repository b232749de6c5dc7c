from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from apqkit.config import load_config
from apqkit.errors import LimitError
from apqkit.front import read_evaluated
from apqkit.pipeline import resolved
from apqkit.pipeline.context import RunContext, candidate_key
from apqkit.pipeline.final_front import (
    UNIFORM_INT4,
    _finalists,
    evaluated_trials,
    final_front,
    measure_references,
    networks_of,
    reference_networks,
    rounds_report,
)
from apqkit.search.study import MeasuredTrial
from apqkit.training.evaluate import calibrated_subnet, evaluate
from apqkit.types import SilentProgress


@pytest.fixture(scope="module")
def evaluated(context):
    return read_evaluated(context.run.path / "search" / "evaluated.csv")


def trial(round_number, accuracy, latency_ms, predicted=0.5):
    return MeasuredTrial(
        candidate={}, key="k", round_number=round_number, origin="evolution", accuracy=accuracy,
        parts={"plain": accuracy}, predicted=predicted, predicted_low=predicted - 0.1,
        predicted_high=predicted + 0.1, costs={"latency_ms": latency_ms, "size_kib": latency_ms},
    )  # fmt: skip


def searching(limits, **objectives):
    """The part of a context that rounds are reported by."""
    objectives = objectives or {"accuracy": "max", "latency_ms": "min"}
    search = SimpleNamespace(objectives=objectives, limits=limits)
    return SimpleNamespace(config=SimpleNamespace(search=search))


def test_rounds_are_reported_by_hand():
    """Scaled to 0..1 the first round's front is (0, 1) and (1, 0), its corner at 1.1."""
    trials = [trial(0, 0.9, 2.0), trial(0, 0.5, 1.0, 0.25), trial(1, 0.9, 1.0, 0.8)]
    first, second = rounds_report(searching({}), trials)
    assert first == {
        "round": 0,
        "measured": 2,
        "bias": pytest.approx((0.4 + 0.25) / 2),
        "rmse": pytest.approx(np.sqrt((0.4**2 + 0.25**2) / 2)),
        "share_inside_interval": 0.0,
        "hypervolume": pytest.approx(2 * 0.1 * 1.1 - 0.1 * 0.1),
    }
    assert second["measured"] == 1
    assert second["share_inside_interval"] == 1.0
    assert second["hypervolume"] == pytest.approx(1.1 * 1.1)


def test_candidates_beyond_a_limit_add_no_hypervolume():
    trials = [trial(0, 0.5, 1.0), trial(1, 0.9, 2.0)]
    within, beyond = rounds_report(searching({"size_kib": 1.5}), trials)
    assert beyond["hypervolume"] == within["hypervolume"] > 0
    (nobody, *_) = rounds_report(searching({"size_kib": 0.5}), trials)
    assert np.isnan(nobody["hypervolume"])


def test_hypervolume_is_for_two_objectives():
    three = searching({}, accuracy="max", latency_ms="min", size_kib="min")
    (only,) = rounds_report(three, [trial(0, 0.5, 1.0)])
    assert np.isnan(only["hypervolume"])


def test_trials_become_arrays_in_their_order(context, evaluated):
    trials = [
        replace(trial(0, accuracy, 1.0), key=key, candidate=candidate)
        for key, accuracy, candidate in zip(
            evaluated.keys, evaluated.accuracy, evaluated.candidates, strict=True
        )
    ]
    again = evaluated_trials(context, trials)
    assert again.keys == evaluated.keys
    assert again.candidates == evaluated.candidates
    assert np.array_equal(again.accuracy, evaluated.accuracy)
    assert np.isnan(again.test_accuracy).all()
    assert np.array_equal(again.parts["validation_plain"], evaluated.accuracy)
    for name, values in evaluated.costs.items():
        np.testing.assert_allclose(again.costs[name], values, rtol=1e-12)


def brute_force_front(accuracy, latency_ms):
    rows = range(len(accuracy))
    return [
        i
        for i in rows
        if not any(
            accuracy[j] >= accuracy[i]
            and latency_ms[j] <= latency_ms[i]
            and (accuracy[j] > accuracy[i] or latency_ms[j] < latency_ms[i])
            for j in rows
        )
    ]


def test_the_front_is_what_the_second_measurement_leaves_undominated(context, evaluated):
    few = evaluated.take(range(8))
    members, knee_key = final_front(context, few)
    within = few.take(np.flatnonzero(few.costs["size_kib"] <= 6.0))
    table = networks_of(context, within.candidates)
    images = context.calibration_images(final=True)
    accuracy = [
        evaluate(
            calibrated_subnet(context.supernet, table.layers(row), images),
            context.splits.validation,
        ).mean()
        for row in range(len(within))
    ]
    expected = brute_force_front(accuracy, within.costs["latency_ms"].tolist())
    expected = sorted(expected, key=lambda row: -accuracy[row])
    assert members.keys == tuple(within.keys[row] for row in expected)
    assert members.accuracy.tolist() == [accuracy[row] for row in expected]
    assert knee_key in members.keys
    assert np.isfinite(members.test_accuracy).all()
    assert set(members.parts) == {
        f"{split}_{part}" for split in ("validation", "test") for part in ("plain", "corrupted")
    }


def test_no_member_of_the_measured_front_is_left_out_of_the_final():
    """However late it was measured: ranks are tied on a front, and a cut would go by order."""
    count = 40
    front = np.stack([np.arange(count), -np.arange(count)], axis=1).astype(float)
    dominated = front + 0.5
    losses = np.concatenate([dominated, front])
    violations = np.zeros(2 * count)
    violations[[0, count]] = 1.0
    chosen = _finalists(losses, violations)
    assert set(chosen.tolist()) >= set(range(count + 1, 2 * count))
    assert not {0, count} & set(chosen.tolist())


def test_a_small_front_is_filled_up_from_the_fronts_behind_it():
    losses = np.repeat(np.arange(30.0)[:, None], 2, axis=1)
    assert _finalists(losses, np.zeros(30)).tolist() == list(range(24))
    assert _finalists(losses[:5], np.zeros(5)).tolist() == [0, 1, 2, 3, 4]


def test_limits_that_nobody_meets_are_listed_with_the_best_values(context, evaluated):
    limits = ["search.limits={size_kib=0.5, accuracy=0.99}"]
    strict = RunContext(resolved(load_config("smoke", limits)), context.run, SilentProgress())
    with pytest.raises(LimitError) as caught:
        final_front(strict, evaluated)
    assert str(caught.value) == (
        "no measured candidate meets all of search.limits: size_kib <= 0.5 (best "
        f"{min(evaluated.costs['size_kib']):.4g}), accuracy >= 0.99 (best "
        f"{max(evaluated.accuracy):.4g})"
    )


@pytest.fixture
def optimistic(evaluated):
    """Candidates whose first measurement was far too good."""
    few = evaluated.take(range(8))
    return replace(few, accuracy=np.full(len(few), 0.999))


def limited(context, accuracy):
    config = resolved(load_config("smoke", [f"search.limits={{accuracy={accuracy}}}"]))
    strict = RunContext(config, context.run, SilentProgress())
    strict.supernet, strict.space = context.supernet, context.space
    return strict


def test_members_meet_the_limits_in_the_second_measurement_too(context, optimistic):
    everyone, _ = final_front(limited(context, 0.01), optimistic)
    limit = float(np.median(everyone.accuracy))
    assert everyone.accuracy.min() < limit
    members, _ = final_front(limited(context, limit), optimistic)
    assert (members.accuracy >= limit).all()
    assert set(members.keys) < set(everyone.keys)


def test_a_limit_that_the_second_measurement_takes_away_is_named(context, optimistic):
    with pytest.raises(LimitError) as caught:
        final_front(limited(context, 0.99), optimistic)
    everyone, _ = final_front(limited(context, 0.01), optimistic)
    assert str(caught.value) == (
        "no measured candidate meets all of search.limits: accuracy >= 0.99 (best "
        f"{everyone.accuracy.max():.4g})"
    )


def test_the_best_uniform_int4_network_is_a_reference(context, evaluated):
    references = reference_networks(context, evaluated)
    assert list(references) == [
        "largest, fp32", "largest, int8", "smallest, int8", "best uniform int4",
    ]  # fmt: skip
    uniform = [index for index, name in enumerate(evaluated.origins) if name == UNIFORM_INT4]
    within = [i for i in uniform if evaluated.costs["size_kib"][i] <= 6.0]
    best = max(within, key=lambda index: evaluated.accuracy[index])
    picks, _, key = references["best uniform int4"]
    described = context.space.describe(picks)[0]
    assert described == evaluated.candidates[best]
    assert key == evaluated.keys[best] == candidate_key(described)
    formats = {value for name, value in described.items() if "_format." in name}
    assert formats == {"int4"}


def test_without_a_uniform_candidate_the_largest_int4_network_stands_in(context, evaluated):
    others = [i for i, name in enumerate(evaluated.origins) if name != UNIFORM_INT4]
    references = reference_networks(context, evaluated.take(others))
    assert "best uniform int4" not in references
    picks, table, key = references["largest, int4"]
    assert key == candidate_key(context.space.describe(picks)[0])
    formats = {each.weight_format for each in table.layers()} - {None}
    assert formats == {"int4", "int8"}  # the first and the last layer offer int8 alone


def test_references_are_measured_like_members(context, evaluated):
    written = read_evaluated(context.run.path / "search" / "references.csv")
    measured = measure_references(context, evaluated)
    assert measured.keys == written.keys
    assert np.array_equal(measured.accuracy, written.accuracy)
    assert np.array_equal(measured.test_accuracy, written.test_accuracy)
    largest, int8, smallest = (measured.origins.index(n) for n in (
        "largest, fp32", "largest, int8", "smallest, int8"))  # fmt: skip
    assert np.isnan(measured.costs["latency_ms"][largest])
    sizes = measured.costs["size_kib"]
    assert sizes[largest] > sizes[int8] > sizes[smallest]

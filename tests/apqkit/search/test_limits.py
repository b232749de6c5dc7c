import time

import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.cost.network import NetworkCost
from apqkit.errors import ConfigError, LimitError
from apqkit.search.limits import check_limits, check_metrics, explain_limits
from apqkit.spaces.apq import ApqOptions, ApqSpace
from apqkit.spaces.draws import draw_uniform

METRICS = ("latency_ms", "size_kib", "bops")


def test_objectives_and_limits_may_name_accuracy_and_every_cost():
    check_metrics({"accuracy": "max", "bops": "min"}, {"size_kib": 1.0, "accuracy": 0.5}, METRICS)


@pytest.mark.parametrize(
    ("objectives", "limits", "text"),
    [
        (
            {"accuracy": "max", "latency": "min"},
            {},
            "search.objectives.latency is no metric (did you mean 'latency_ms'?); "
            "there are: accuracy, latency_ms, size_kib, bops",
        ),
        (
            {"accuracy": "max"},
            {"zzz": 3.0},
            "search.limits.zzz is no metric; there are: accuracy, latency_ms, size_kib, bops",
        ),
        (
            {"accuracy": "min", "bops": "min"},
            {},
            "search.objectives.accuracy must be 'max', got 'min'",
        ),
        (
            {"accuracy": "max", "bops": "max"},
            {},
            "search.objectives.bops must be 'min', got 'max'",
        ),
        ({}, {}, "search.objectives must name at least one metric"),
        (
            {"accuracy": "max", "bops": None},
            {},
            "search.objectives.bops must be 'max' or 'min', got None",
        ),
    ],
)
def test_a_metric_that_makes_no_sense_is_named(objectives, limits, text):
    with pytest.raises(ConfigError) as caught:
        check_metrics(objectives, limits, METRICS)
    assert str(caught.value) == text


def test_limits_that_some_candidate_meets_pass(toy_space, score_of):
    check_limits(toy_space, score_of(toy_space), {"size_kib": 4.0, "latency_ms": 4.0})


def test_limits_on_accuracy_wait_for_measurements(toy_space):
    def refuse(picks):
        raise AssertionError("no cost is needed")

    check_limits(toy_space, refuse, {"accuracy": 1.0})


def test_a_limit_that_cannot_be_met_alone_is_named_with_the_best_value(toy_space, score_of):
    score = score_of(toy_space)
    best = score(toy_space.everyone())["latency_ms"].min()
    assert best == 4.0
    with pytest.raises(LimitError) as caught:
        check_limits(toy_space, score, {"size_kib": 10.0, "latency_ms": 3.95})
    assert str(caught.value) == (
        "no candidate meets search.limits.latency_ms <= 3.95: "
        "the smallest attainable value is about 4"
    )


def opposed(picks):
    """Costs that cannot both be small: wide candidates are fast, narrow ones are small."""
    width = picks[:, 1].astype(np.float64)
    return {"latency_ms": 3.0 - width, "size_kib": 1.0 + width, "bops": width + 1.0}


def test_limits_that_exclude_each_other_are_named_with_the_nearest_values(toy_space):
    check_limits(toy_space, opposed, {"latency_ms": 2.0, "size_kib": 2.0, "bops": 9.0})
    with pytest.raises(LimitError) as caught:
        check_limits(toy_space, opposed, {"latency_ms": 1.5, "size_kib": 1.9, "bops": 9.0})
    assert str(caught.value) == (
        "no candidate meets all of search.limits together; "
        "the nearest one exceeds latency_ms <= 1.5 (best 2), size_kib <= 1.9 (best 2); "
        "least within the others: latency_ms about 3, size_kib about 3"
    )


def test_a_device_that_runs_either_cost_but_never_both_is_named(toy_space):
    def costs(picks):
        narrow = picks[:, 1] == 0
        return {
            "latency_ms": np.where(narrow, 1.0, np.nan),
            "energy_mj": np.where(narrow, np.nan, 2.0),
        }

    with pytest.raises(LimitError) as caught:
        check_limits(toy_space, costs, {"latency_ms": 5.0, "energy_mj": 6.0})
    assert str(caught.value) in [
        "no candidate meets all of search.limits together; "
        f"the nearest one exceeds {name} <= {limit} (best nan)"
        for name, limit in (("latency_ms", 5), ("energy_mj", 6))
    ]


def test_a_device_that_runs_nothing_is_named(toy_space):
    with pytest.raises(LimitError) as caught:
        check_limits(
            toy_space, lambda picks: {"energy_mj": np.full(len(picks), np.nan)}, {"energy_mj": 6.0}
        )
    assert str(caught.value) == (
        "no candidate meets search.limits.energy_mj <= 6: "
        "none that was tried has a finite energy_mj"
    )


def test_a_real_space_answers_within_two_seconds(mobilenet):
    def costs(picks):
        return NetworkCost().cost(mobilenet.network(picks))

    drawn = costs(draw_uniform(mobilenet, 200, np.random.default_rng(0)))
    limits = {name: float(np.median(each)) for name, each in drawn.items()}
    smallest = costs(np.zeros((1, len(mobilenet.dims)), dtype=np.int64))["size_kib"][0]
    start = time.process_time()
    check_limits(mobilenet, costs, {name: limits[name] for name in ("size_kib", "bops")})
    assert time.process_time() - start < 2.0
    with pytest.raises(LimitError) as caught:
        check_limits(mobilenet, costs, limits | {"size_kib": 0.01})
    assert str(caught.value) == (
        "no candidate meets search.limits.size_kib <= 0.01: "
        f"the smallest attainable value is about {smallest:.4g}"
    )


def test_a_report_says_what_each_limit_allows(toy_space):
    report = explain_limits(toy_space, opposed, {"latency_ms": 1.5, "size_kib": 1.9, "bops": 9.0})
    assert report.alone == {"latency_ms": 1.0, "size_kib": 1.0, "bops": 1.0}
    assert report.within_others == {"latency_ms": 3.0, "size_kib": 3.0, "bops": np.inf}
    assert report.binding == ("latency_ms", "size_kib")
    alone = explain_limits(toy_space, opposed, {"latency_ms": 0.5, "size_kib": 1.9})
    assert alone.binding == ("latency_ms",)
    assert alone.alone["latency_ms"] == 1.0


def test_limits_that_can_be_met_bind_nobody(toy_space):
    report = explain_limits(toy_space, opposed, {"latency_ms": 2.0, "size_kib": 2.0})
    assert report.binding == ()
    assert report.problem is None
    assert report.within_others == {}


def test_the_best_attainable_value_of_131_dims_is_exact_in_two_seconds():
    formats = ("int4", "int6", "int8")
    config = SpaceConfig(
        weight_formats=formats, activation_formats=formats, first_last_formats=("int8",)
    )
    space = ApqSpace(config, ApqOptions(), (3, 224, 224), 1000)
    weights = np.random.default_rng(0).uniform(0.1, 1.0, (len(space.dims), 49))
    weights[[dim.name.startswith("depth") for dim in space.dims]] = 0.0

    def costs(picks):
        """The least is in the shallowest network, but neither narrow nor in narrow formats."""
        values = weights[np.arange(len(space.dims)), picks] * space.active(picks)
        return {"latency_ms": values.sum(axis=1), "size_kib": picks.sum(axis=1) * 1.0}

    began = time.process_time()
    report = explain_limits(space, costs, {"size_kib": 900.0, "latency_ms": 1.0})
    assert time.process_time() - began < 2.0
    assert report.binding == ("latency_ms",)
    used = space.active(np.zeros((1, len(space.dims)), dtype=np.int64))[0]
    least = [row[: len(dim.choices)].min() for row, dim in zip(weights, space.dims, strict=True)]
    assert report.alone["latency_ms"] == pytest.approx(np.dot(least, used))

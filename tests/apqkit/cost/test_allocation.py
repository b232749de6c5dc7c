import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost.allocation import AllocationProblem, allocate, allocation_front, least_cost
from apqkit.errors import CostError, LimitError

HAWQ_SOURCE = "https://github.com/Zhen-Dong/HAWQ, ILP.ipynb"
HAQ_SOURCE = "https://github.com/mit-han-lab/haq, lib/simulator/lookup_tables"


def data_file(name, source):
    folder = os.environ.get("APQKIT_DATA")
    path = None if folder is None else Path(folder) / name
    if path is None or not path.exists():
        pytest.skip(f"needs APQKIT_DATA with {name} ({source})")
    return path


def drawn(rng, layers, formats, metrics=("size", "time")):
    return AllocationProblem(
        layers=[f"layer{index}" for index in range(layers)],
        formats=[f"format{index}" for index in range(formats)],
        sensitivity=rng.random((layers, formats)),
        costs={name: rng.random((layers, formats)) for name in metrics},
    )


def with_parts(problem, **parts):
    return AllocationProblem(**{**vars(problem), **parts})


def tried(problem):
    """Every allocation, with its sensitivity and costs, by brute force."""
    rows = np.arange(len(problem.layers))
    for choice in itertools.product(range(len(problem.formats)), repeat=len(rows)):
        choice = np.array(choice)
        if any(len(set(choice[list(tie)])) > 1 for tie in problem.ties):
            continue
        costs = {name: each[rows, choice].sum() for name, each in problem.costs.items()}
        for name, each in problem.edge_costs.items():
            for edge, (producer, consumer) in enumerate(problem.edges):
                costs[name] += each[edge, choice[producer], choice[consumer]]
        if all(costs[name] <= limit + 1e-9 for name, limit in problem.limits.items()):
            yield problem.sensitivity[rows, choice].sum(), choice, costs


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_the_optimum_is_that_of_all_allocations(seed, tied, chained):
    rng = np.random.default_rng(seed)
    problem = drawn(rng, 5, 3)
    problem = with_parts(problem, limits={"size": 2.2, "time": 2.4})
    if tied:
        problem = with_parts(problem, ties=[(0, 3), (3, 4)])
    if chained:
        edges = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [0, 3]])
        problem = with_parts(
            problem, edges=edges, edge_costs={"time": 0.4 * rng.random((5, 3, 3))}
        )
    best = min(tried(problem), key=lambda each: each[0], default=None)
    if best is None:
        with pytest.raises(LimitError):
            allocate(problem)
        return
    found = allocate(problem)
    assert found.sensitivity == pytest.approx(best[0])
    assert found.costs == pytest.approx(dict(best[2]))
    for tie in problem.ties:
        assert len(set(found.choice[list(tie)])) == 1


def test_changes_of_format_cost_so_layers_stay_together():
    """Each layer alone would take its own best format; edges make one of them cheaper."""
    sensitivity = np.zeros((4, 2))
    time_ms = np.array([[1.0, 1.2], [1.2, 1.0], [1.0, 1.2], [1.2, 1.0]])
    change = np.tile(np.array([[0.0, 1.0], [1.0, 0.0]]), (3, 1, 1))
    plain = AllocationProblem("abcd", ["fp32", "int8"], sensitivity, {"time": time_ms})
    assert least_cost(plain, "time") == pytest.approx(4.0)
    edged = with_parts(
        plain, edges=np.array([[0, 1], [1, 2], [2, 3]]), edge_costs={"time": change}
    )
    assert least_cost(edged, "time") == pytest.approx(4.4)
    found = allocate(with_parts(edged, limits={"time": 4.4}))
    assert len(set(found.choice)) == 1
    assert found.costs["time"] == pytest.approx(4.4)


@pytest.mark.parametrize(
    ("limit", "share", "bits", "objective", "used"),
    [
        ("size", 0.25, "8888888888888844444", -1.189414, 6.6406),
        ("size", 0.5, "8888888888888884844", -1.233207, 7.2656),
        ("size", 0.75, "8888888888888488884", -1.274273, 9.2344),
        ("bops", 0.25, "8884848444444444444", -0.847289, 45.7605),
        ("bops", 0.5, "8884888848884444444", -1.092024, 65.0281),
        ("bops", 0.75, "8888888848888484884", -1.227748, 84.2957),
        ("latency", 0.25, "8884848444444444444", -0.847289, 3.6147),
        ("latency", 0.5, "8888848848884484844", -1.105039, 4.2201),
        ("latency", 0.75, "8888888848888484884", -1.227748, 4.7063),
    ],
)
def test_the_published_allocations_of_resnet18_are_found(limit, share, bits, objective, used):
    frame = pd.read_csv(data_file("hawq_v3/resnet18_layers.csv.gz", HAWQ_SOURCE))
    gain = frame["Hutchinson_trace"] * (
        frame["delta_weights_8bit_square"] - frame["delta_weights_4bit_square"]
    )
    costs = {
        "size": np.stack([frame["params"] / 2**20 * 0.5, frame["params"] / 2**20], axis=1),
        "bops": np.stack([frame["macs_M"] / 64, frame["macs_M"] / 16], axis=1),
        "latency": frame[["latency_int4_ms_T4", "latency_int8_ms_T4"]].to_numpy(),
    }
    low, high = costs[limit].sum(axis=0)
    problem = AllocationProblem(
        layers=list(map(str, range(19))),
        formats=["int4", "int8"],
        sensitivity=np.stack([np.zeros(19), gain], axis=1),
        costs=costs,
        limits={limit: low + share * (high - low)},
        ties=[(4, 6), (9, 11), (14, 16)],
    )
    found = allocate(problem)
    assert "".join("48"[each] for each in found.choice) == bits
    assert found.sensitivity == pytest.approx(objective, abs=1e-6)
    assert found.costs[limit] == pytest.approx(used, abs=1e-4)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_a_large_table_is_solved_exactly(share):
    """53 layers x 49 pairs of bits; the referee is a dynamic program on the whole cycles."""
    path = data_file(
        "haq_latency_lut/qmobilenetv2_imagenet100_batch16_latency_table.npz", HAQ_SOURCE
    )
    cycles = np.load(path)["latency"][:, 1:, 1:].reshape(53, 49).astype(float)
    bits = np.arange(2, 9)
    noise = (4.0 ** -bits[:, None] + 4.0 ** -bits[None, :]).ravel()
    scale = np.random.default_rng(0).lognormal(size=53)
    sensitivity = scale[:, None] * noise
    least, most = cycles.min(axis=1).sum(), cycles.max(axis=1).sum()
    limit = least + share * (most - least)
    formats = [f"w{w}a{a}" for w in bits for a in bits]
    problem = AllocationProblem(
        list(map(str, range(53))), formats, sensitivity, {"cycles": cycles}, {"cycles": limit}
    )
    found = allocate(problem)
    assert found.costs["cycles"] <= limit
    assert found.sensitivity <= dynamic_program(sensitivity, cycles, limit) * (1 + 1e-9)


def dynamic_program(sensitivity, cycles, limit, steps=20_000):
    """The best sum with costs rounded up to a grid: feasible, so never below the optimum."""
    whole = np.ceil(cycles / limit * steps).astype(int)
    best = np.zeros(steps + 1)
    for lost, price in zip(sensitivity, whole, strict=True):
        following = np.full(steps + 1, np.inf)
        for each, cost in zip(lost, price, strict=True):
            if cost <= steps:
                following[cost:] = np.minimum(following[cost:], best[: steps + 1 - cost] + each)
        best = following
    return best.min()


def test_tiny_sensitivities_are_told_apart():
    """Solvers have absolute tolerances, so scores of 1e-9 must not all look alike."""
    rng = np.random.default_rng(3)
    problem = with_parts(drawn(rng, 6, 4), limits={"size": 2.0})
    small = with_parts(problem, sensitivity=problem.sensitivity * 1e-9)
    assert np.array_equal(allocate(small).choice, allocate(problem).choice)
    large = with_parts(
        problem,
        costs={name: each * 1e9 for name, each in problem.costs.items()},
        limits={"size": 2.0e9},
    )
    assert np.array_equal(allocate(large).choice, allocate(problem).choice)


def test_a_limit_that_equals_a_sum_is_met():
    rng = np.random.default_rng(0)
    problem = drawn(rng, 8, 3)
    least = least_cost(problem, "size")
    assert allocate(with_parts(problem, limits={"size": least})).costs["size"] == least


def test_choices_that_are_not_finite_are_left_out_by_name():
    problem = drawn(np.random.default_rng(0), 3, 3)
    problem.sensitivity[1, 0] = np.nan
    problem.sensitivity[1, 2] = np.inf
    problem.costs["time"][2, 1] = np.nan
    found = allocate(problem)
    assert found.left_out == (
        "layer1 in format0", "layer1 in format2", "layer2 in format1",
    )  # fmt: skip
    assert found.choice[1] == 1
    problem.sensitivity[1, 1] = -np.inf
    with pytest.raises(CostError) as caught:
        allocate(problem)
    assert str(caught.value) == (
        "layer1 has no format that can be chosen: in each of format0, format1, format2 a "
        "sensitivity or a cost is not finite"
    )


def test_tied_layers_leave_out_what_one_of_them_cannot_have():
    problem = with_parts(drawn(np.random.default_rng(0), 3, 2), ties=[(0, 2)])
    problem.sensitivity[0, 0] = np.nan
    assert allocate(problem).choice[2] == 1
    problem.sensitivity[2, 1] = np.nan
    with pytest.raises(CostError, match="layer0 with layer2 has no format"):
        allocate(problem)


def test_edge_costs_of_formats_that_are_left_out_do_not_matter():
    problem = drawn(np.random.default_rng(0), 2, 2)
    problem.sensitivity[0, 0] = np.nan
    change = np.array([[[np.nan, np.inf], [1.0, 0.0]]])
    edged = with_parts(problem, edges=np.array([[0, 1]]), edge_costs={"time": change})
    found = allocate(with_parts(edged, limits={"time": problem.costs["time"][:, 1].sum()}))
    assert found.choice.tolist() == [1, 1]


def test_an_impossible_limit_says_what_is_possible():
    problem = drawn(np.random.default_rng(0), 4, 2)
    least = problem.costs["size"].min(axis=1).sum()
    with pytest.raises(LimitError) as caught:
        allocate(with_parts(problem, limits={"time": 99.0, "size": 0.5 * least}))
    assert str(caught.value) == (
        f"no allocation meets size <= {0.5 * least:g}: the least is {least:g}"
    )


def test_limits_that_exclude_each_other_say_how_far_apart_they_are():
    size = np.array([[1.0, 2.0]])
    problem = AllocationProblem(
        ["only"], ["a", "b"], np.zeros((1, 2)), {"size": size, "time": size[:, ::-1]},
        {"size": 1.5, "time": 1.5},
    )  # fmt: skip
    with pytest.raises(LimitError) as caught:
        allocate(problem)
    assert str(caught.value) == (
        "no allocation meets all limits together: size <= 1.5 (within the others the least is 2), "
        "time <= 1.5 (within the others the least is 2)"
    )


def test_the_front_trades_a_cost_for_sensitivity():
    problem = with_parts(drawn(np.random.default_rng(1), 5, 3), limits={"time": 3.0})
    front = allocation_front(problem, "size", points=12)
    sizes = [each.costs["size"] for each in front]
    lost = [each.sensitivity for each in front]
    assert len(front) > 3
    assert sizes == sorted(sizes)
    assert lost == sorted(lost, reverse=True)
    assert all(each.costs["time"] <= 3.0 for each in front)
    assert lost[-1] == pytest.approx(allocate(problem).sensitivity)
    assert sizes[0] == pytest.approx(min(each[2]["size"] for each in tried(problem)))


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"sensitivity": np.zeros((3, 2))},
         "sensitivity must have shape (4, 2) (layers, formats), got (3, 2)"),
        ({"limits": {"weight": 1.0}}, "no cost named 'weight'; there are: size, time"),
        ({"ties": [(0, 4)]}, "ties and edges name layers 0 to 3, got 4"),
        ({"edges": np.array([[0, 1]]), "edge_costs": {"time": np.zeros((1, 2, 3))}},
         "edge costs of time must have shape (1, 2, 2), got (1, 2, 3)"),
        ({"edges": np.array([[0, 1]]), "edge_costs": {"time": np.array([[[0, 1], [np.nan, 0]]])}},
         "edge costs of time must be finite between formats that can be chosen, got nan from "
         "layer0 in format1 to layer1 in format0"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(parts, text):
    with pytest.raises(CostError) as caught:
        with_parts(drawn(np.random.default_rng(0), 4, 2), **parts)
    assert str(caught.value) == text

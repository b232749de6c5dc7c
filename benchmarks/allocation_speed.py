"""Speed and exactness of the allocation of formats, against the plain integer program.

    APQKIT_DATA=... python benchmarks/allocation_speed.py

MobileNetV2, 53 layers, latency by HAQ's table (Wang et al. 2019; 2 to 8 bits for weights and for
activations, unit not stated), size by the layers' weights, random budgets between the least and
the largest sum. Made up are sensitivities (4^-bits of weights plus 4^-bits of activations, times a
lognormal draw a layer) and edge costs (where activations change their bits, along the layers or a
residual connection, 5 % of the producer's largest latency). Cases of 7 formats have as many bits
for weights as for activations. The plain program has a variable for every choice and every pair of
them and no reduction; it may stop 1e-6 of the largest sensitivity above the optimum. The gap says
how far the sum is above that of the plain program, at worst; it must not be more than rounding.
Prints one table and writes ``results/allocation_speed.json``.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from recording import write_result
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, eye_array, hstack, kron

from apqkit.cost.allocation import AllocationProblem, allocate
from apqkit.types import FloatArray, IntArray

_TABLE = "haq_latency_lut/qmobilenetv2_imagenet100_batch16_latency_table.npz"
_SOURCE = "https://github.com/mit-han-lab/haq, lib/simulator/lookup_tables"
_BITS = np.arange(2, 9)
_CLASSES = 100
_STAGES = (  # expansion, channels, blocks, stride: Sandler et al. 2018, table 2
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
_EDGE_SHARE = 0.05
_ROUNDING = 1e-8
_CASES = {  # formats, limits, edges, budgets that the plain program solves too
    "49 formats, latency": (49, ("latency",), False, 20),
    "49 formats, latency and size": (49, ("latency", "size"), False, 20),
    "7 formats, latency, edges": (7, ("latency",), True, 20),
    "7 formats, latency and size, edges": (7, ("latency", "size"), True, 20),
    "49 formats, latency, edges": (49, ("latency",), True, 2),
}


def main() -> None:
    """Times every case, prints one table, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    heads = ("median ms", "worst ms", "plain ms", "largest gap")
    print(f"{'53 layers':36}" + "".join(f"{head:>12}" for head in heads))
    figures = {}
    for name, (formats, metrics, edges, referees) in _CASES.items():
        problem = _problem(formats, metrics, edges)
        found = _measured(problem, options.budgets, options.repeats, referees)
        figures[name] = found
        print(
            f"{name:36}{found['median_ms']:12.1f}{found['worst_ms']:12.1f}"
            f"{found['plain_median_ms']:12.1f}{found['largest_gap']:12.1e}"
        )
    made_up = "sensitivities and edge costs are synthetic"
    print(write_result("allocation_speed", [0], {"note": made_up, "cases": figures}))


def _measured(
    problem: AllocationProblem, budgets: int, repeats: int, referees: int
) -> dict[str, float]:
    """Times random budgets; the gap is relative, above the plain program's sum."""
    own, plain, gaps = [], [], []
    for index, share in enumerate(np.random.default_rng(0).uniform(0.02, 0.98, budgets)):
        limits = {
            name: float((1 - share) * costs.min(axis=1).sum() + share * costs.max(axis=1).sum())
            for name, costs in problem.costs.items()
        }
        limited = replace(problem, limits=limits)
        found = allocate(limited)
        if any(found.costs[name] > limit * (1 + _ROUNDING) for name, limit in limits.items()):
            raise SystemExit(f"a limit is not met: {found.costs} against {limits}")
        own.append(_median_ms(partial(allocate, limited), repeats))
        if index < referees:
            began = time.perf_counter()
            gaps.append(found.sensitivity / _plain(limited) - 1.0)
            plain.append(1000.0 * (time.perf_counter() - began))
    if max(gaps) > _ROUNDING:
        raise SystemExit(f"the plain program finds less: gaps {gaps}")
    return {
        "budgets": budgets,
        "median_ms": round(float(np.median(own)), 2),
        "worst_ms": round(max(own), 2),
        "plain_budgets": len(plain),
        "plain_median_ms": round(float(np.median(plain)), 2),
        "plain_worst_ms": round(max(plain), 2),
        "largest_gap": max(gaps),
        "least_gap": min(gaps),
    }


def _median_ms(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return 1000.0 * float(np.median(seconds))


def _problem(formats: int, metrics: tuple[str, ...], with_edges: bool) -> AllocationProblem:
    path = Path(os.environ.get("APQKIT_DATA", "")) / _TABLE
    if not path.exists():
        raise SystemExit(f"needs APQKIT_DATA with {_TABLE} ({_SOURCE})")
    latency = np.load(path, allow_pickle=False)["latency"][:, 1:, 1:].reshape(53, -1).astype(float)
    weights, edges = _mobilenet_v2()
    weight_bits, activation_bits = (
        each.ravel() for each in np.meshgrid(_BITS, _BITS, indexing="ij")
    )
    noise = 4.0**-weight_bits + 4.0**-activation_bits
    sensitivity = np.random.default_rng(0).lognormal(size=53)[:, None] * noise
    costs = {"latency": latency, "size": weights[:, None] * weight_bits / 8192}
    kept = np.flatnonzero((weight_bits == activation_bits) | (formats == 49))
    differ = activation_bits[kept][:, None] != activation_bits[kept]
    change = _EDGE_SHARE * latency.max(axis=1)[edges[:, 0], None, None] * differ
    return AllocationProblem(
        layers=[str(index) for index in range(53)],
        formats=[f"w{weight_bits[index]}a{activation_bits[index]}" for index in kept],
        sensitivity=sensitivity[:, kept],
        costs={name: costs[name][:, kept] for name in metrics},
        edges=edges if with_edges else edges[:0],
        edge_costs={"latency": change} if with_edges else {},
    )


def _mobilenet_v2() -> tuple[FloatArray, IntArray]:
    """(53,) weights of the layers, and edges, those of residual connections included."""
    weights, edges, channels = [3 * 32 * 9], [], 32

    def layer(count: int) -> None:
        edges.append((len(weights) - 1, len(weights)))
        weights.append(count)

    for expansion, outputs, blocks, stride in _STAGES:
        for block in range(blocks):
            before, hidden = len(weights) - 1, channels * expansion
            if expansion > 1:
                layer(channels * hidden)
            layer(hidden * 9)
            layer(hidden * outputs)
            if channels == outputs and (block or stride == 1):
                edges.append((before, len(weights) - 1))
            channels = outputs
    layer(channels * 1280)
    layer(1280 * _CLASSES)
    return np.array(weights, dtype=np.float64), np.array(edges)


def _plain(problem: AllocationProblem) -> float:
    """Returns the least sensitivity by the integer program of all choices and all pairs."""
    layers, formats = problem.sensitivity.shape
    pairs = len(problem.edges) * formats**2
    ones = np.ones((1, formats))
    nothing = csr_array((layers, pairs))
    constraints = [LinearConstraint(hstack([kron(eye_array(layers), ones), nothing]), 1.0, 1.0)]
    for side, sums in ((0, kron(eye_array(formats), ones)), (1, kron(ones, eye_array(formats)))):
        ends = np.zeros((len(problem.edges), layers))
        ends[np.arange(len(ends)), problem.edges[:, side]] = -1.0
        agree = [kron(csr_array(ends), eye_array(formats)), kron(eye_array(len(ends)), sums)]
        if len(ends):
            constraints.append(LinearConstraint(hstack(agree), 0.0, 0.0))
    for name, limit in problem.limits.items():
        changes = problem.edge_costs.get(name, np.zeros(pairs))
        row = np.concatenate([problem.costs[name].ravel(), changes.ravel()])
        constraints.append(LinearConstraint(row[None] / limit, ub=1.0))
    scale = problem.sensitivity.max()
    whole = layers * formats
    result = milp(
        np.concatenate([problem.sensitivity.ravel() / scale, np.zeros(pairs)]),
        constraints=constraints,
        bounds=Bounds(0.0, 1.0),
        integrality=np.repeat([1, 0], [whole, pairs]),
        options={"mip_rel_gap": 0.0},
    )
    choice = result.x[:whole].reshape(layers, formats).argmax(axis=1)
    return float(problem.sensitivity[np.arange(layers), choice].sum())


if __name__ == "__main__":
    main()

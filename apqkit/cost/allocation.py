"""Exact allocation: which format each layer of a fixed network gets, under limits.

A multiple-choice knapsack: each layer takes one format, costs are summed, and where a change of
format between two layers costs something, that is summed too. :mod:`apqkit.cost.knapsack` says
how it is solved and how exactly. Letters: L layers, F formats, E edges, G groups of tied layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from apqkit.cost.knapsack import SLACK, Knapsack, solve
from apqkit.errors import CostError, LimitError
from apqkit.types import BoolArray, FloatArray, IntArray

__all__ = ["Allocation", "AllocationProblem", "allocate", "allocation_front", "least_cost"]


@dataclass(frozen=True)
class AllocationProblem:
    """Layers, formats, what each choice loses and costs.

    Attributes:
        layers: (L,) names.
        formats: (F,) names.
        sensitivity: (L, F) what a layer loses in a format; the sum is minimised. What is not
            finite is no choice.
        costs: By metric (L, F) what a layer costs in a format; NaN where it cannot run.
        limits: By metric the largest sum.
        ties: Groups of layers, by index, that share one format.
        edges: (E, 2) producer and consumer, by index.
        edge_costs: By metric (E, F, F) what the change from the producer's format to the
            consumer's costs.
    """

    layers: Sequence[str]
    formats: Sequence[str]
    sensitivity: FloatArray
    costs: Mapping[str, FloatArray]
    limits: Mapping[str, float] = field(default_factory=dict)
    ties: Sequence[Sequence[int]] = ()
    edges: IntArray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    edge_costs: Mapping[str, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.formats))
        for name, values in {"sensitivity": self.sensitivity, **self.costs}.items():
            if np.shape(values) != shape:
                raise CostError(
                    f"{name} must have shape {shape} (layers, formats), got {np.shape(values)}"
                )
        for name in {*self.limits, *self.edge_costs} - set(self.costs):
            raise CostError(f"no cost named {name!r}; there are: {', '.join(sorted(self.costs))}")
        indices = [*np.ravel(self.edges).tolist(), *(each for tie in self.ties for each in tie)]
        for index in indices:
            if not 0 <= index < shape[0]:
                raise CostError(f"ties and edges name layers 0 to {shape[0] - 1}, got {index}")
        for name, values in self.edge_costs.items():
            _check_edges(self, name, np.asarray(values))


def _check_edges(problem: AllocationProblem, name: str, costs: FloatArray) -> None:
    shape = (len(problem.edges), len(problem.formats), len(problem.formats))
    if costs.shape != shape:
        raise CostError(f"edge costs of {name} must have shape {shape}, got {costs.shape}")
    first, second = _can_be_chosen(problem)[problem.edges].swapaxes(0, 1)
    missing = ~np.isfinite(costs) & first[:, :, None] & second[:, None, :]
    for edge, *formats in np.argwhere(missing):
        ends = zip(problem.edges[edge], formats, strict=True)
        change = " to ".join(f"{problem.layers[i]} in {problem.formats[j]}" for i, j in ends)
        raise CostError(
            f"edge costs of {name} must be finite between formats that can be chosen, got "
            f"{costs[edge, *formats]} from {change}"
        )


@dataclass(frozen=True)
class Allocation:
    """An optimal choice.

    Attributes:
        choice: (L,) index of each layer's format.
        sensitivity: Their sum.
        costs: By metric their sum, edges included.
        left_out: ``LAYER in FORMAT`` of choices that could not be made, being not finite.
    """

    choice: IntArray
    sensitivity: float
    costs: dict[str, float]
    left_out: tuple[str, ...]


def allocate(problem: AllocationProblem) -> Allocation:
    """Returns the allocation that loses least within all limits.

    Raises:
        CostError: A layer has no format that can be chosen.
        LimitError: No allocation meets the limits; it says which cannot be met and what can.
    """
    choice = _solved(problem, None, problem.limits)
    if choice is None:
        raise LimitError(_why_infeasible(problem))
    return _allocation(problem, choice)


def least_cost(problem: AllocationProblem, metric: str) -> float:
    """Returns the least sum of a cost over all allocations, whatever the limits.

    Raises:
        CostError: No cost of that name, or a layer has no format that can be chosen.
    """
    if metric not in problem.costs:
        raise CostError(f"no cost named {metric!r}; there are: {', '.join(sorted(problem.costs))}")
    return _least(problem, metric, {})


def allocation_front(
    problem: AllocationProblem, metric: str, *, points: int = 20
) -> list[Allocation]:
    """Returns optimal allocations for limits on one cost, from the least that can be had upward.

    Args:
        problem: Its other limits hold throughout; one on ``metric`` is the widest.
        metric: The cost that is traded against sensitivity.
        points: Limits that are tried, evenly spaced; equal allocations are listed once.

    Raises:
        LimitError: The other limits cannot be met.
    """
    others = {name: value for name, value in problem.limits.items() if name != metric}
    free = allocate(replace(problem, limits=others))
    highest = min(free.costs[metric], problem.limits.get(metric, np.inf))
    lowest = _least(problem, metric, others)
    found: list[Allocation] = []
    for limit in np.linspace(lowest, max(lowest, highest), points):
        each = allocate(replace(problem, limits={**others, metric: float(limit)}))
        if not found or each.sensitivity < found[-1].sensitivity:
            found.append(each)
    return found


def _least(problem: AllocationProblem, metric: str, limits: Mapping[str, float]) -> float:
    choice = _solved(problem, metric, limits)
    return float("nan") if choice is None else _allocation(problem, choice).costs[metric]


def _why_infeasible(problem: AllocationProblem) -> str:
    alone = {name: _least(problem, name, {}) for name in problem.limits}
    for name, limit in problem.limits.items():
        if alone[name] > limit * (1 + SLACK):
            return f"no allocation meets {name} <= {limit:g}: the least is {alone[name]:g}"
    parts = []
    for name, limit in problem.limits.items():
        others = {other: value for other, value in problem.limits.items() if other != name}
        parts.append(
            f"{name} <= {limit:g} (within the others the least is "
            f"{_least(problem, name, others):g})"
        )
    return f"no allocation meets all limits together: {', '.join(parts)}"


def _allocation(problem: AllocationProblem, choice: IntArray) -> Allocation:
    rows = np.arange(len(choice))
    costs = {name: float(values[rows, choice].sum()) for name, values in problem.costs.items()}
    for name, values in problem.edge_costs.items():
        ends = choice[problem.edges]
        costs[name] += float(values[np.arange(len(ends)), ends[:, 0], ends[:, 1]].sum())
    left_out = tuple(
        f"{layer} in {name}"
        for layer, possible in zip(problem.layers, _can_be_chosen(problem), strict=True)
        for name, allowed in zip(problem.formats, possible.tolist(), strict=True)
        if not allowed
    )
    total = float(problem.sensitivity[rows, choice].sum())
    return Allocation(choice, total, costs, left_out)


def _can_be_chosen(problem: AllocationProblem) -> BoolArray:
    finite = np.isfinite(problem.sensitivity)
    for values in problem.costs.values():
        finite &= np.isfinite(values)
    return finite


@dataclass(frozen=True)
class _Groups:
    """Layers that share a format, as one; G groups.

    Attributes:
        of_layer: (L,) each layer's group.
        allowed: (G, F) choices that all its layers can make.
    """

    of_layer: IntArray
    allowed: BoolArray

    def summed(self, values: FloatArray) -> FloatArray:
        """(G, F) sums over the layers of each group."""
        total = np.zeros(self.allowed.shape)
        np.add.at(total, self.of_layer, np.where(np.isfinite(values), values, 0.0))
        return total


def _grouped(problem: AllocationProblem) -> _Groups:
    leader = np.arange(len(problem.layers))
    for tie in problem.ties:
        members = np.isin(leader, leader[np.asarray(tie, dtype=np.int64)])
        leader[members] = leader[members].min(initial=len(leader))
    _, of_layer = np.unique(leader, return_inverse=True)
    allowed = np.ones((of_layer.max(initial=-1) + 1, len(problem.formats)), dtype=bool)
    np.logical_and.at(allowed, of_layer, _can_be_chosen(problem))
    for group in np.flatnonzero(~allowed.any(axis=1)):
        names = [each for each, own in zip(problem.layers, of_layer, strict=True) if own == group]
        raise CostError(
            f"{' with '.join(names)} has no format that can be chosen: in each of "
            f"{', '.join(problem.formats)} a sensitivity or a cost is not finite"
        )
    return _Groups(of_layer, allowed)


def _solved(
    problem: AllocationProblem, metric: str | None, limits: Mapping[str, float]
) -> IntArray | None:
    """Returns the (L,) choices that minimise a cost, or sensitivity, within limits, or None."""
    groups = _grouped(problem)
    minimised = problem.sensitivity if metric is None else problem.costs[metric]
    values = [minimised, *(problem.costs[name] for name in limits)]
    choice = solve(
        Knapsack(
            own=np.stack([groups.summed(each) for each in values]),
            pairs=_edge_costs(problem, [metric, *limits]),
            ends=groups.of_layer[problem.edges].reshape(-1, 2),
            allowed=groups.allowed,
            limits=np.array([*limits.values()], dtype=np.float64),
        )
    )
    return None if choice is None else choice[groups.of_layer]


def _edge_costs(problem: AllocationProblem, metrics: Sequence[str | None]) -> FloatArray:
    """(R, E, F, F) costs of changes by metric, 0 where a metric has none."""
    formats = len(problem.formats)
    costs = np.zeros((len(metrics), len(problem.edges), formats, formats))
    for row, metric in zip(costs, metrics, strict=True):
        row += problem.edge_costs.get(metric or "", 0.0)
    return np.where(np.isfinite(costs), costs, 0.0)  # others belong to choices that are left out

"""Exact allocation: which format each layer of a fixed network gets, under limits.

Integer programming (:func:`scipy.optimize.milp`) over one choice a layer. Where a change of format
between two layers costs something, pair variables carry that cost; their marginals are the layers'
own choices, so the optimum stays exact. Letters: L layers, F formats, E edges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from apqkit.errors import CostError, LimitError
from apqkit.types import BoolArray, FloatArray, IntArray

__all__ = ["Allocation", "AllocationProblem", "allocate", "allocation_front", "least_cost"]

_PRICES = 60  # halvings of the range of prices
_DEAREST = 1e30
_SLACK = 1e-9  # relative; a limit that equals a sum of costs must not fail by rounding


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
        pairs = (len(self.edges), shape[1], shape[1])
        for name, values in self.edge_costs.items():
            if np.shape(values) != pairs:
                raise CostError(
                    f"edge costs of {name} must have shape {pairs}, got {np.shape(values)}"
                )
        indices = [*np.ravel(self.edges).tolist(), *(each for tie in self.ties for each in tie)]
        for index in indices:
            if not 0 <= index < shape[0]:
                raise CostError(f"ties and edges name layers 0 to {shape[0] - 1}, got {index}")


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
    choice = _solved(problem, problem.sensitivity, (), problem.limits)
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
    choice = _solved(problem, problem.costs[metric], (metric,), limits)
    return float("nan") if choice is None else _allocation(problem, choice).costs[metric]


def _why_infeasible(problem: AllocationProblem) -> str:
    alone = {name: _least(problem, name, {}) for name in problem.limits}
    for name, limit in problem.limits.items():
        if alone[name] > limit * (1 + _SLACK):
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
    problem: AllocationProblem,
    objective: FloatArray,
    edge_metrics: Sequence[str],
    limits: Mapping[str, float],
) -> IntArray | None:
    """Returns the (L,) choices that minimise an objective within limits, or None.

    Args:
        problem: Costs, ties and edges.
        objective: (L, F) to be minimised.
        edge_metrics: Metrics whose edge costs, if they have any, are minimised with it.
        limits: Instead of the problem's own.
    """
    groups = _grouped(problem)
    own = groups.summed(objective)
    bound = {name: groups.summed(problem.costs[name]) for name in limits}
    allowed = groups.allowed
    if not problem.edge_costs:
        allowed = _undominated(np.stack([own, *bound.values()]), allowed)
        if len(limits) == 1:
            (name,) = limits
            allowed = _within_reach(own, bound[name], limits[name], allowed)
    program = _Program.of(problem, groups, allowed)
    result = program.minimised(own, edge_metrics, bound, limits)
    return None if result is None else result[groups.of_layer]


def _undominated(values: FloatArray, allowed: BoolArray) -> BoolArray:
    """(G, F) choices that no other of the group beats or equals in all of (K, G, F) values."""
    worse_or_equal = (values[..., :, None] >= values[..., None, :]).all(axis=0)
    worse = worse_or_equal & (values[..., :, None] > values[..., None, :]).any(axis=0)
    number = np.arange(values.shape[-1])
    same = worse_or_equal & ~worse & (number[:, None] > number)  # of equal ones the first stays
    beaten = ((worse | same) & allowed[:, None, :]).any(axis=2)
    return allowed & ~beaten


def _within_reach(
    objective: FloatArray, costs: FloatArray, limit: float, allowed: BoolArray
) -> BoolArray:
    """(G, F) choices that can be part of an optimum under one limit.

    For any price of the cost, each group's cheapest choice bounds the optimum from below; every
    choice within the limit bounds it from above. A choice that exceeds its group's cheapest by
    more than lies between the bounds is in no optimum.
    """
    own, spent = np.where(allowed, objective, np.inf), np.where(allowed, costs, np.inf)
    rows = np.arange(len(own))
    low, high = 0.0, 1.0
    while high < _DEAREST and spent[rows, (own + high * spent).argmin(axis=1)].sum() > limit:
        low, high = high, high * 10.0
    lower, upper, best = -np.inf, np.inf, 0.0
    for _ in range(_PRICES):
        price = (low + high) / 2
        choice = (own + price * spent).argmin(axis=1)
        bound = float((own + price * spent)[rows, choice].sum() - price * limit)
        if bound > lower:
            lower, best = bound, price
        if spent[rows, choice].sum() <= limit:
            high = price
            upper = min(upper, _filled(own, spent, limit, choice))
        else:
            low = price
    if not np.isfinite(upper):
        return allowed
    priced = own + best * spent
    excess = priced - priced.min(axis=1, keepdims=True)
    slack = _SLACK * max(abs(upper), abs(lower))
    return np.asarray(allowed & (excess <= upper - lower + slack))


def _filled(own: FloatArray, spent: FloatArray, limit: float, choice: IntArray) -> float:
    """Returns the objective after what is left of the limit was spent where it gains most."""
    choice = choice.copy()
    rows = np.arange(len(own))
    while True:
        room = limit - spent[rows, choice].sum()
        gain = own[rows, choice][:, None] - own
        gain = np.where(spent - spent[rows, choice][:, None] <= room, gain, 0.0)
        group, number = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[group, number] <= 0.0:
            return float(own[rows, choice].sum())
        choice[group] = number


@dataclass(frozen=True)
class _Program:
    """The variables of an integer program: one a group and format, then one a pair of an edge."""

    problem: AllocationProblem
    groups: _Groups
    allowed: BoolArray
    ends: IntArray  # (E, 2) groups of producers and consumers
    kept: BoolArray  # (E,) edges between two groups

    @classmethod
    def of(cls, problem: AllocationProblem, groups: _Groups, allowed: BoolArray) -> "_Program":
        ends = groups.of_layer[problem.edges].reshape(-1, 2)
        kept = ends[:, 0] != ends[:, 1]
        if not problem.edge_costs:
            kept = np.zeros_like(kept)
        return cls(problem, groups, allowed, ends, kept)

    def minimised(
        self,
        objective: FloatArray,
        edge_metrics: Sequence[str],
        bound: Mapping[str, FloatArray],
        limits: Mapping[str, float],
    ) -> IntArray | None:
        """Returns the (G,) best choices, or None if there are none within the limits."""
        goal = self._row(objective, edge_metrics)
        # Solvers have absolute tolerances, so nothing may depend on the unit.
        goal = goal / max(np.abs(goal).max(initial=0.0), 1e-300)
        constraints = [self._one_each(), *self._marginals()]
        for name, values in bound.items():
            row = self._row(values, [name])
            scale = max(np.abs(row).max(initial=0.0), 1e-300)
            slack = _SLACK * max(abs(limits[name]), 1e-300)
            constraints.append(
                LinearConstraint(coo_array(row[None] / scale), ub=(limits[name] + slack) / scale)
            )
        choices = self.allowed.size
        integrality = np.zeros(len(goal))
        integrality[:choices] = 1
        upper = np.ones(len(goal))
        upper[:choices] = self.allowed.ravel()
        result = milp(
            goal,
            constraints=constraints,
            bounds=Bounds(0.0, upper),
            integrality=integrality,
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return None
        chosen: IntArray = result.x[:choices].reshape(self.allowed.shape).argmax(axis=1)
        return chosen

    def _row(self, values: FloatArray, metrics: Sequence[str]) -> FloatArray:
        """Returns coefficients of all variables: values of groups, then costs of edges."""
        formats = self.allowed.shape[1]
        own = np.array(values, dtype=np.float64)
        pairs = np.zeros((int(self.kept.sum()), formats, formats))
        for name in metrics:
            if name in self.problem.edge_costs:
                costs = np.asarray(self.problem.edge_costs[name], dtype=np.float64)
                pairs += costs[self.kept]
                inner = ~self.kept  # both ends in one group: it costs what staying costs
                diagonal = np.einsum("eff->ef", costs[inner])
                np.add.at(own, self.ends[inner, 0], diagonal)
        return np.concatenate([own.ravel(), pairs.ravel()])

    def _one_each(self) -> LinearConstraint:
        count, formats = self.allowed.shape
        rows = np.repeat(np.arange(count), formats)
        matrix = self._matrix(rows, np.arange(count * formats), np.ones(len(rows)), count)
        return LinearConstraint(matrix, 1.0, 1.0)

    def _marginals(self) -> list[LinearConstraint]:
        """Pairs sum to the choice of the producer over its consumer's formats, and vice versa."""
        formats = self.allowed.shape[1]
        ends = self.ends[self.kept]
        if not len(ends):
            return []
        pair = np.arange(len(ends) * formats**2).reshape(-1, formats, formats)
        constraints = []
        for side, axis in ((0, 2), (1, 1)):
            rows = np.arange(len(ends) * formats).reshape(-1, formats)
            spread = np.broadcast_to(np.expand_dims(rows, axis), pair.shape)
            choices = ends[:, side, None] * formats + np.arange(formats)
            matrix = self._matrix(
                np.concatenate([spread.ravel(), rows.ravel()]),
                np.concatenate([pair.ravel() + self.allowed.size, choices.ravel()]),
                np.concatenate([np.ones(pair.size), -np.ones(rows.size)]),
                rows.size,
            )
            constraints.append(LinearConstraint(matrix, 0.0, 0.0))
        return constraints

    def _matrix(
        self, rows: IntArray, columns: IntArray, values: FloatArray, count: int
    ) -> coo_array:
        variables = self.allowed.size + int(self.kept.sum()) * self.allowed.shape[1] ** 2
        return coo_array((values, (rows, columns)), shape=(count, variables))

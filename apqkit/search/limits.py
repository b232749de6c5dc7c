"""Whether limits can be met at all, and if not, which one binds and what can be had."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from apqkit.errors import LimitError
from apqkit.search.evolution import evolve_problem
from apqkit.search.problem import Problem, SearchSettings, check_metrics
from apqkit.spaces.base import smallest_picks
from apqkit.types import FloatArray, IntArray, Space

__all__ = ["LimitReport", "check_limits", "check_metrics", "explain_limits"]

_SETTINGS = SearchSettings(population=60, generations=25)
_SWEEPS = 4  # over all choices of all dims, after an evolution

Costs = Callable[[IntArray], Mapping[str, FloatArray]]


@dataclass(frozen=True)
class LimitReport:
    """What limits allow.

    Attributes:
        limits: The most that each cost may be.
        alone: The least found of each cost, whatever the others; infinite if none was finite. It
            ends with the first cost that exceeds its limit even so.
        together: Costs of the candidate that exceeds all limits least.
        within_others: The least found of each cost within the other limits, infinite where those
            cannot be met either; empty if all limits can be met, or one cannot even alone.
    """

    limits: Mapping[str, float]
    alone: Mapping[str, float]
    together: Mapping[str, float]
    within_others: Mapping[str, float]

    @property
    def binding(self) -> tuple[str, ...]:
        """Names of the limits that cannot be met: alone, or if all can be, together."""
        alone = tuple(n for n, least in self.alone.items() if least > self.limits[n])
        return alone or tuple(
            n for n, limit in self.limits.items() if not self.together.get(n, limit) <= limit
        )

    @property
    def problem(self) -> str | None:
        """Says in one line which limit binds and what can be had; None if all can be met."""
        for name in self.binding:
            wanted = f"search.limits.{name} <= {self.limits[name]:g}"
            if np.isinf(self.alone[name]):
                return f"no candidate meets {wanted}: none that was tried has a finite {name}"
            if self.alone[name] > self.limits[name]:
                return (
                    f"no candidate meets {wanted}: "
                    f"the smallest attainable value is about {self.alone[name]:.4g}"
                )
        if not self.binding:
            return None
        nearest = ", ".join(
            f"{n} <= {self.limits[n]:g} (best {self.together[n]:.4g})" for n in self.binding
        )
        attainable = ", ".join(
            f"{n} about {value:.4g}"
            for n, value in self.within_others.items()
            if np.isfinite(value)
        )
        attainable = f"; least within the others: {attainable}" if attainable else ""
        return (
            f"no candidate meets all of search.limits together; "
            f"the nearest one exceeds {nearest}{attainable}"
        )


def check_limits(space: Space, costs: Costs, limits: Mapping[str, float]) -> None:
    """Checks that some candidate meets every limit on costs.

    Raises:
        LimitError: It names the limit that binds and the best value found.
    """
    problem = explain_limits(space, costs, limits).problem
    if problem is not None:
        raise LimitError(problem)


def explain_limits(space: Space, costs: Costs, limits: Mapping[str, float]) -> LimitReport:
    """Returns the best that can be had under limits; one on accuracy waits for measurements.

    Each cost is made as small as a short evolution and a few sweeps over all single choices can,
    first alone, then all together, then each within the others.
    """
    limits = {name: limit for name, limit in limits.items() if name != "accuracy"}
    alone: dict[str, float] = {}
    starts = [smallest_picks(space.dims)]
    for name in limits:
        best = _best(Problem(space, _score(costs), {name: "min"}, {}, _SETTINGS), starts)
        starts.append(best)
        value = float(costs(best)[name][0])
        alone[name] = np.inf if np.isnan(value) else value
        if not alone[name] <= limits[name]:
            return LimitReport(limits, alone, {}, {})
    if len(limits) < 2:
        return LimitReport(limits, alone, alone, {})
    found = Problem(space, _score(costs), dict.fromkeys(limits, "min"), limits, _SETTINGS)
    best = _best(found, starts)
    together = {name: float(costs(best)[name][0]) for name in limits}
    if all(together[name] <= limit for name, limit in limits.items()):
        return LimitReport(limits, alone, together, {})
    return LimitReport(limits, alone, together, _within_others(space, costs, limits, starts))


def _within_others(
    space: Space, costs: Costs, limits: Mapping[str, float], starts: list[IntArray]
) -> dict[str, float]:
    found = {}
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        problem = Problem(space, _score(costs), {name: "min"}, others, _SETTINGS)
        best = _best(problem, starts)
        losses, violations = problem.judged(best)
        found[name] = float(losses[0, 0]) if violations[0] <= 0 else np.inf
    return found


def _score(costs: Costs) -> Callable[[IntArray], dict[str, FloatArray]]:
    return lambda picks: dict(costs(picks))


def _best(problem: Problem, starts: list[IntArray]) -> IntArray:
    """(1, k) the candidate of least violation, and of these of least first objective."""
    found = evolve_problem(problem, np.concatenate(starts), 0)
    best = found.picks[[int(found.losses[:, 0].argmin())]]
    if len(problem.objectives) > 1 and found.violation <= 0:
        return best
    for _ in range(_SWEEPS):
        least = _swept(problem, best[0])
        if (least == best).all():
            break
        best = least
    return best


def _swept(problem: Problem, picks: IntArray) -> IntArray:
    """(1, k) the best of a candidate, its neighbours, and the one with all dims at their best."""
    around = _neighbours(problem.space, picks)
    losses, violations = problem.judged(problem.space.repair(around))
    order = np.lexsort((losses[:, 0], violations))
    better = order[: int(np.flatnonzero(order == 0)[0])]  # than the candidate itself, row 0
    combined = picks.copy()
    for row in better[::-1]:  # the best of each dim comes last
        moved = around[row] != picks
        combined[moved] = around[row][moved]
    finalists = problem.space.repair(np.stack([picks, around[order[0]], combined]))
    losses, violations = problem.judged(finalists)
    return finalists[[int(np.lexsort((losses[:, 0], violations))[0])]]


def _neighbours(space: Space, picks: IntArray) -> IntArray:
    """(f, k) a candidate (k,) first, then with every other choice of every dim."""
    rows = [picks]
    for column, dim in enumerate(space.dims):
        for choice in range(len(dim.choices)):
            if choice != picks[column]:
                row = picks.copy()
                row[column] = choice
                rows.append(row)
    return np.array(rows)

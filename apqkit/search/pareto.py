"""Dominance, fronts and hypervolume. Letters: n candidates, m objectives.

Functions here take losses: every objective is to be made small. NaN counts as infinitely bad.
"""

from collections.abc import Mapping

import numpy as np

from apqkit.types import BoolArray, FloatArray, IntArray

__all__ = [
    "constrained_ranks",
    "crowding",
    "hypervolume_2d",
    "knee",
    "losses_of",
    "nondominated",
    "pick_diverse",
    "violations_of",
]


def losses_of(values: Mapping[str, FloatArray], objectives: Mapping[str, str]) -> FloatArray:
    """(n, m) objectives as losses: what is to be maximised changes sign."""
    columns = [
        values[name] if direction == "min" else -values[name]
        for name, direction in objectives.items()
    ]
    return np.nan_to_num(np.stack(columns, axis=1), nan=np.inf, posinf=np.inf, neginf=-np.inf)


def violations_of(values: Mapping[str, FloatArray], limits: Mapping[str, float]) -> FloatArray:
    """(n,) sum of relative excesses over limits; 0 is feasible.

    A limit is the most that a cost may be; a limit on accuracy is the least.
    """
    total = np.zeros(len(next(iter(values.values()))))
    for name, limit in limits.items():
        excess = values[name] - limit if name != "accuracy" else limit - values[name]
        scaled = np.maximum(excess, 0.0) / max(abs(limit), 1e-12)
        total = total + np.nan_to_num(scaled, nan=np.inf)
    return total


def nondominated(losses: FloatArray) -> BoolArray:
    """(n,) True for rows that no other row beats; of equal rows the first counts."""
    count = len(losses)
    losses = np.where(np.isnan(losses), np.inf, losses)
    order = np.lexsort((np.arange(count), *losses.T[::-1]))
    ordered = losses[order]
    keeps = np.ones(count, dtype=bool)
    if losses.shape[1] == 2:  # sorted by the first objective, the second must fall
        best = np.minimum.accumulate(ordered[:, 1])
        keeps[1:] = ordered[1:, 1] < best[:-1]
    else:
        row = 0
        while row < count:
            later = keeps[row + 1 :]
            later &= ~(ordered[row + 1 :] >= ordered[row]).all(axis=1)
            row += 1 + int(later.argmax()) if later.any() else count
    result = np.zeros(count, dtype=bool)
    result[order] = keeps & np.isfinite(ordered).all(axis=1)
    return result


def constrained_ranks(losses: FloatArray, violations: FloatArray) -> IntArray:
    """(n,) front numbers, 0 the best; the infeasible follow, ordered by their violation."""
    ranks = np.zeros(len(losses), dtype=np.int64)
    feasible = violations <= 0
    left = np.flatnonzero(feasible)
    rank = 0
    while len(left):
        best = nondominated(losses[left])
        if not best.any():
            best = np.ones(len(left), dtype=bool)  # nothing but NaN is left
        ranks[left[best]] = rank
        left = left[~best]
        rank += 1
    infeasible = np.flatnonzero(~feasible)
    _, order = np.unique(violations[infeasible], return_inverse=True)
    ranks[infeasible] = rank + order
    return ranks


def crowding(losses: FloatArray) -> FloatArray:
    """(n,) how far a row's neighbours are along each objective; the ends are infinitely far."""
    distance = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        finite = column[np.isfinite(column)]
        if len(finite) and np.ptp(finite) > 0:
            worst = finite.max()
            column = np.nan_to_num(column, nan=worst, posinf=worst, neginf=finite.min())
            gaps = column[order[2:]] - column[order[:-2]]
            distance[order[1:-1]] += gaps / np.ptp(finite)
        distance[order[:1]] = distance[order[-1:]] = np.inf
    return distance


def hypervolume_2d(losses: FloatArray, reference: FloatArray) -> float:
    """Returns the area that rows (n, 2) dominate below a reference point (2,)."""
    inside = losses[(losses < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    front = inside[nondominated(inside)]
    front = front[np.argsort(front[:, 0])]
    right = np.append(front[1:, 0], reference[0])
    return float(((right - front[:, 0]) * (reference[1] - front[:, 1])).sum())


def pick_diverse(losses: FloatArray, known: FloatArray, count: int) -> IntArray:
    """Returns indices of rows that improve most on what is known, one after the other.

    With two objectives the gain is hypervolume over the known rows and those picked before; with
    another number it is the distance to the nearest of them among the front, on scaled objectives.

    Args:
        losses: (n, m) predicted; rows that are not finite are never picked.
        known: (j, m) measured; rows that are not finite count for nothing.
        count: At most so many indices.
    """
    picked: list[int] = []
    free: BoolArray = np.asarray(np.isfinite(losses).all(axis=1))
    if not free.any():
        return np.array([], dtype=np.int64)
    known = known[np.isfinite(known).all(axis=1)]
    low, high = _ranges(np.concatenate([losses[free], known]))
    scaled, base = (losses - low) / (high - low), (known - low) / (high - low)
    while len(picked) < count and free.any():
        gains = _gains(scaled, np.concatenate([base, scaled[picked]]))
        gains[~free] = -np.inf
        picked.append(int(gains.argmax()))
        free[picked[-1]] = False
    return np.array(picked, dtype=np.int64)


def knee(losses: FloatArray) -> int:
    """Returns the row of a front that lies farthest below the line between its ends.

    Objectives are scaled to 0..1 first; with another number than two the row nearest to the
    ideal point is taken.
    """
    low, high = _ranges(losses)
    scaled = (losses - low) / (high - low)
    if losses.shape[1] != 2:
        return int(np.square(scaled).sum(axis=1).argmin())
    return int(scaled.sum(axis=1).argmin())  # the ends lie on x + y = 1


def _gains(scaled: FloatArray, taken: FloatArray) -> FloatArray:
    if scaled.shape[1] == 2:
        return _hypervolume_gains(scaled, taken)
    if not len(taken):
        return np.asarray(-scaled.sum(axis=1))
    distance = np.square(scaled[:, None] - taken[None]).sum(axis=2).min(axis=1)
    return np.asarray(np.where(nondominated(scaled), distance + 1e3, distance))


def _hypervolume_gains(scaled: FloatArray, taken: FloatArray) -> FloatArray:
    """(n,) area that each row adds below the staircase of the rows taken, within (1.1, 1.1).

    A row that adds nothing gets minus its distance behind the staircase, so that the nearest
    comes first.
    """
    corner = 1.1
    front = taken[nondominated(taken)] if len(taken) else taken
    front = front[np.argsort(front[:, 0])]
    left = np.append(-np.inf, front[:, 0])  # the staircase is flat from left to right
    right = np.append(front[:, 0], corner)
    height = np.append(corner, front[:, 1])
    width = np.minimum(right, corner)[None] - np.maximum(left[None], scaled[:, :1])
    depth = np.minimum(height, corner)[None] - scaled[:, 1:]
    area = (np.maximum(width, 0.0) * np.maximum(depth, 0.0)).sum(axis=1)
    step = np.searchsorted(front[:, 0], scaled[:, 0], side="right")
    behind = np.maximum(scaled[:, 1] - height[step], 0.0)
    return np.asarray(np.where(area > 0, area, -behind))


def _ranges(losses: FloatArray) -> tuple[FloatArray, FloatArray]:
    low, high = losses.min(axis=0), losses.max(axis=0)
    return low, np.where(high > low, high, low + 1.0)

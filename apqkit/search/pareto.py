"""Dominance, fronts and hypervolume. Letters: n candidates, m objectives.

Functions here take losses: every objective is to be made small. NaN counts as infinitely bad.
"""

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

from apqkit.types import BoolArray, FloatArray, IntArray

__all__ = [
    "constrained_ranks",
    "crowding",
    "hypervolume",
    "hypervolume_2d",
    "knee",
    "losses_of",
    "merged_front",
    "nondominated",
    "pick_diverse",
    "violations_of",
]

_BLOCK = 512  # rows compared with all others at a time
_POINTS = 16_384


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
    if losses.shape[1] == 1:
        keeps = np.arange(count) == 0
    elif losses.shape[1] == 2:  # sorted by the first objective, the second must fall
        keeps = np.ones(count, dtype=bool)
        best = np.minimum.accumulate(ordered[:, 1])
        keeps[1:] = ordered[1:, 1] < best[:-1]
    else:
        keeps = _unbeaten_by_earlier(ordered)
    result = np.zeros(count, dtype=bool)
    result[order] = keeps & np.isfinite(ordered).all(axis=1)
    return result


def _unbeaten_by_earlier(ordered: FloatArray) -> BoolArray:
    """(n,) True for rows of a sorted array that no row before them equals or beats."""
    keeps = np.ones(len(ordered), dtype=bool)
    front = ordered[:0]
    for start in range(0, len(ordered), _BLOCK):
        block = ordered[start : start + _BLOCK]
        beaten = _no_worse(front, block).any(axis=0)
        beaten |= np.triu(_no_worse(block, block), 1).any(axis=0)
        keeps[start : start + _BLOCK] = ~beaten
        front = np.concatenate([front, block[~beaten]])
    return keeps


def _no_worse(rows: FloatArray, others: FloatArray) -> BoolArray:
    """(i, j) True where row i is at most row j in every objective."""
    result = np.ones((len(rows), len(others)), dtype=bool)
    for own, other in zip(rows.T, others.T, strict=True):
        result &= own[:, None] <= other
    return result


def merged_front(front: FloatArray, rows: FloatArray) -> tuple[BoolArray, BoolArray]:
    """Returns which rows of a front (f, m) stay and which rows (n, m) join it.

    Args:
        front: Rows none of which beats another.
        rows: Finite rows; of equal rows, and of one that the front has, the first counts.
    """
    joins = nondominated(rows)
    chosen = np.flatnonzero(joins)
    joins[chosen] = ~_no_worse(front, rows[chosen]).any(axis=0)
    beaten = np.asarray(_no_worse(rows[joins], front).any(axis=0))
    return ~beaten, joins


def constrained_ranks(losses: FloatArray, violations: FloatArray) -> IntArray:
    """(n,) front numbers, 0 the best; the infeasible follow, ordered by their violation."""
    ranks = np.zeros(len(losses), dtype=np.int64)
    feasible = violations <= 0
    ranks[feasible] = _ranks(losses[feasible])
    next_rank = ranks[feasible].max(initial=-1) + 1
    _, order = np.unique(violations[~feasible], return_inverse=True)
    ranks[~feasible] = next_rank + order
    return ranks


def _ranks(losses: FloatArray) -> IntArray:
    """(n,) front numbers; rows that are not finite come last, together."""
    ranks = np.zeros(len(losses), dtype=np.int64)
    finite = np.isfinite(losses).all(axis=1)
    ranks[finite] = _peeled(losses[finite])
    ranks[~finite] = ranks[finite].max(initial=-1) + 1
    return ranks


def _peeled(losses: FloatArray) -> IntArray:
    """(n,) front numbers of finite rows."""
    count = len(losses)
    ranks = np.empty(count, dtype=np.int64)
    if losses.shape[1] > 2:
        return _peeled_by_counts(losses)
    order = np.lexsort((np.arange(count), *losses.T[::-1]))
    if losses.shape[1] == 1:
        ranks[order] = np.arange(count)
        return ranks
    # In this order a front beats a row if its last row does, and later fronts end higher.
    ends: list[float] = []
    found = []
    for value in losses[order, 1].tolist():
        rank = bisect_right(ends, value)
        ends[rank : rank + 1] = [value]
        found.append(rank)
    ranks[order] = found
    return ranks


def _peeled_by_counts(losses: FloatArray) -> IntArray:
    """(n,) front numbers of finite rows: those that no row left beats, again and again."""
    order = np.lexsort(losses.T[::-1])
    beats = np.triu(_no_worse(losses[order], losses[order]), 1).astype(np.float32)
    beaten_by = np.ones(len(losses), dtype=np.float32) @ beats  # exact below 2**24 rows
    found = np.zeros(len(losses), dtype=np.int64)
    left, rank = np.arange(len(losses)), 0
    while len(left):
        best = beaten_by[left] == 0
        front = left[best]
        found[front] = rank
        beaten_by -= np.ones(len(front), dtype=np.float32) @ beats[front]
        left, rank = left[~best], rank + 1
    ranks = np.empty_like(found)
    ranks[order] = found
    return ranks


def crowding(losses: FloatArray, ranks: IntArray | None = None) -> FloatArray:
    """(n,) how far a row's neighbours are along each objective; the ends are infinitely far.

    Args:
        losses: (n, m); what is not finite counts as the worst value, or the best.
        ranks: (n,) neighbours are sought among rows of the same rank; None for one rank.
    """
    count = len(losses)
    distance = np.zeros(count)
    groups = np.zeros(count, dtype=np.int64) if ranks is None else ranks
    for column in losses.T if count else ():
        column = _finite(column)
        order = np.lexsort((column, groups))
        values, group = column[order], groups[order]
        starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
        ends = np.append(starts[1:], count) - 1
        spans = np.repeat(values[ends] - values[starts], ends - starts + 1)
        gaps = np.zeros(count)
        gaps[1:-1] = values[2:] - values[:-2]
        distance[order] += np.divide(gaps, spans, out=np.zeros(count), where=spans > 0)
        distance[order[starts]] = distance[order[ends]] = np.inf
    return distance


def _finite(column: FloatArray) -> FloatArray:
    finite = column[np.isfinite(column)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    return np.nan_to_num(column, nan=high, posinf=high, neginf=low)


def hypervolume(losses: FloatArray, reference: FloatArray, low: FloatArray | None = None) -> float:
    """Returns the volume that rows (n, m) dominate below a reference point (m,).

    Exact for up to three objectives. For more it is the share of 16,384 fixed points between
    ``low`` and the reference that some row dominates, times the volume between them: off by
    about 1 % where a good part is dominated.

    Args:
        losses: Rows; those that are not below the reference everywhere count for nothing.
        reference: The corner.
        low: (m,) the opposite corner for more than three objectives; None takes the least losses.
    """
    inside = losses[(losses < reference).all(axis=1)]
    front = inside[nondominated(inside)]
    if not len(front):
        return 0.0
    if losses.shape[1] == 1:
        return float(reference[0] - front.min())
    if losses.shape[1] == 2:
        return hypervolume_2d(front, reference)
    if losses.shape[1] == 3:
        return _hypervolume_3d(front, reference)
    corner = front.min(axis=0) if low is None else low
    shares = np.random.default_rng(0).random((_POINTS, losses.shape[1]))
    points = corner + shares * (reference - corner)
    covered = np.zeros(_POINTS, dtype=bool)
    for start in range(0, len(front), _BLOCK):
        covered |= _no_worse(front[start : start + _BLOCK], points).any(axis=0)
    return float(covered.mean() * np.prod(reference - corner))


def _hypervolume_3d(front: FloatArray, reference: FloatArray) -> float:
    """Sums slices between the third objectives of neighbours."""
    front = front[np.argsort(front[:, 2], kind="stable")]
    heights = np.diff(np.append(front[:, 2], reference[2]))
    areas = [hypervolume_2d(front[: end + 1, :2], reference[:2]) for end in range(len(front))]
    return float(np.dot(heights, areas))


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

"""Which candidates to measure next. Letters: n candidates, k of a front, c chosen.

Every function reads arrays and returns the indices (c,) of distinct candidates; the same seed
returns the same ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

__all__ = [
    "choose_by_cost",
    "choose_by_hypervolume",
    "choose_random",
    "choose_uncertain",
    "expected_hypervolume_gain",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def choose_random(candidates: int, count: int, *, seed: int = 0) -> IntArray:
    """Returns c = ``count`` of n = ``candidates`` indices, each set as likely as any other.

    Raises:
        ValueError: ``count`` is not in 0..n.
    """
    _check_count(candidates, count)
    return np.random.default_rng(seed).permutation(candidates)[:count]


def choose_by_cost(cost: FloatArray, count: int, *, seed: int = 0) -> IntArray:
    """Returns indices spread over the cost: one drawn from each of c equally full strata.

    Args:
        cost: (n,) in any unit; only its order counts.
        count: c of 0..n.
        seed: Of the draws.

    Raises:
        ValueError: A cost is not finite, or ``count`` is not in 0..n.
    """
    cost = _finite(cost, "cost", (len(cost),))
    _check_count(len(cost), count)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(cost))  # equal costs fall into strata by chance
    order = shuffled[np.argsort(cost[shuffled], kind="stable")]
    edges = np.linspace(0, len(cost), count + 1).astype(np.int64)
    return order[rng.integers(edges[:-1], edges[1:])]


def choose_uncertain(deviation: FloatArray, count: int, *, seed: int = 0) -> IntArray:
    """Returns the indices with the largest predicted deviation, largest first.

    Args:
        deviation: (n,) standard deviations of a predictor, 0 or more.
        count: c of 0..n.
        seed: Orders candidates with the same deviation.

    Raises:
        ValueError: A deviation is negative or not finite, or ``count`` is not in 0..n.
    """
    deviation = _deviation(deviation, (len(deviation),))
    _check_count(len(deviation), count)
    shuffled = np.random.default_rng(seed).permutation(len(deviation))
    return shuffled[np.argsort(-deviation[shuffled], kind="stable")][:count]


def choose_by_hypervolume(
    mean: FloatArray,
    deviation: FloatArray,
    front: FloatArray,
    reference: FloatArray,
    count: int,
    *,
    directions: Sequence[str] = ("max", "min"),
    seed: int = 0,
) -> IntArray:
    """Returns the indices that enlarge the expected hypervolume most, one after the other.

    After each choice its predicted mean counts as measured, so that a batch does not crowd
    together ("kriging believer", Ginsbourger et al. 2010).

    Args:
        mean: (n, 2) predicted objectives.
        deviation: (n, 2) their standard deviations; 0 for what is known.
        front: (k, 2) measured objectives; those that are dominated do no harm.
        reference: (2,) the worst objectives that count.
        count: c of 0..n.
        directions: "max" or "min" for each objective.
        seed: Orders candidates with the same gain.

    Raises:
        ValueError: As :func:`expected_hypervolume_gain`, or ``count`` is not in 0..n.
    """
    mean = _finite(mean, "mean", (len(mean), 2))
    _check_count(len(mean), count)
    left = np.random.default_rng(seed).permutation(len(mean))
    believed = np.asarray(front, dtype=np.float64).reshape(-1, 2)
    chosen: list[int] = []
    for _ in range(count):
        gains = expected_hypervolume_gain(
            mean[left], deviation[left], believed, reference, directions=directions
        )
        best = int(np.argmax(gains))
        chosen.append(int(left[best]))
        believed = np.vstack([believed, mean[left[best]]])
        left = np.delete(left, best)
    return np.array(chosen, dtype=np.int64)


def expected_hypervolume_gain(
    mean: FloatArray,
    deviation: FloatArray,
    front: FloatArray,
    reference: FloatArray,
    *,
    directions: Sequence[str] = ("max", "min"),
) -> FloatArray:
    """Returns (n,) by how much each candidate is expected to enlarge the hypervolume of a front.

    Exact for two objectives that are independent and normal: the region that the front leaves
    free is cut into k + 1 strips along the first objective, and over each strip the chance to
    dominate a point is a product of two integrals of normal distributions (Emmerich et al. 2011).

    Args:
        mean: (n, 2) predicted objectives.
        deviation: (n, 2) their standard deviations; 0 for what is known.
        front: (k, 2) measured objectives, dominated ones allowed; k may be 0.
        reference: (2,) the worst objectives that count.
        directions: "max" or "min" for each objective.

    Raises:
        ValueError: A shape or a direction is wrong, a value is not finite or a deviation negative.

    >>> gain = expected_hypervolume_gain(
    ...     np.array([[0.9, 2.0]]), np.zeros((1, 2)), np.array([[0.8, 1.0]]), np.array([0.5, 4.0])
    ... )
    >>> round(float(gain[0]), 6)  # (0.9 - 0.8) * (4 - 2)
    0.2
    """
    sign = _signs(directions)
    mean = _finite(mean, "mean", (len(mean), 2)) * sign
    deviation = _deviation(deviation, mean.shape)
    front = _finite(front, "front", (len(front), 2)) if len(front) else np.zeros((0, 2))
    worst = _finite(reference, "reference", (2,)) * sign
    left, right, roof = _strips(front * sign, worst)
    first, second = _areas(mean, deviation, left, right, roof)
    return np.asarray((first * second).sum(axis=1))


def _strips(front: FloatArray, worst: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns ends (s,) of strips of the first objective and how far each is free in the second.

    Both objectives are minimised.
    """
    inside = front[(front < worst).all(axis=1)]
    inside = inside[np.lexsort((inside[:, 1], inside[:, 0]))]
    lowest = np.minimum.accumulate(np.append(worst[1], inside[:, 1]))
    left = np.append(-np.inf, inside[:, 0])
    return left, np.append(inside[:, 0], worst[0]), lowest


def _areas(
    mean: FloatArray, deviation: FloatArray, left: FloatArray, right: FloatArray, roof: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Returns both integrals (n, s) of the chance to be better, over strips and up to roofs."""
    first = _chance_below(right, mean[:, 0], deviation[:, 0])
    first[:, 1:] -= _chance_below(left[1:], mean[:, 0], deviation[:, 0])
    return first, _chance_below(roof, mean[:, 1], deviation[:, 1])


def _chance_below(ends: FloatArray, mean: FloatArray, deviation: FloatArray) -> FloatArray:
    """Returns (n, s) integrals from -inf to each end of P(normal <= u) du."""
    distance = ends[None, :] - mean[:, None]
    spread = np.maximum(deviation, 1e-300)[:, None]
    with np.errstate(over="ignore"):  # a known objective is infinitely many deviations away
        standard = distance / spread
        density = np.exp(-0.5 * standard**2) / np.sqrt(2.0 * np.pi)
    return np.asarray(distance * ndtr(standard) + deviation[:, None] * density)


def _signs(directions: Sequence[str]) -> FloatArray:
    """Returns (2,) factors that turn both objectives into ones to minimise."""
    if len(directions) != 2 or any(each not in ("max", "min") for each in directions):
        raise ValueError(f"directions must be two of 'max' and 'min', got {tuple(directions)}")
    return np.array([1.0 if each == "min" else -1.0 for each in directions])


def _check_count(candidates: int, count: int) -> None:
    if not 0 <= count <= candidates:
        raise ValueError(
            f"count must lie in 0..{candidates}, the number of candidates, got {count}"
        )


def _deviation(values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    values = _finite(values, "deviation", shape)
    if (values < 0.0).any():
        raise ValueError(f"deviation must be 0 or more, got {values.min()}")
    return values


def _finite(values: FloatArray, name: str, shape: tuple[int, ...]) -> FloatArray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {np.sum(~np.isfinite(values))} that are not")
    return values

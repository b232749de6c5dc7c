"""How well a prediction ranks n rows. Signs are kept: a reversed ranking scores below 0."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from predictors.validation import group_labels

__all__ = [
    "METRICS",
    "Interval",
    "PairedComparison",
    "bootstrap_interval",
    "ceiling_tau",
    "compare_paired",
    "kendall_tau",
    "noise_ceiling",
    "precision_at",
    "rank_of_best",
    "regret_at",
    "rmse",
    "spearman",
    "top_quartile_tau",
    "unbiased_rmse",
]

FloatArray = NDArray[np.float64]
Metric = Callable[[FloatArray, FloatArray], float]


def kendall_tau(truth: FloatArray, predicted: FloatArray) -> float:
    """Returns Kendall's tau-b of two arrays (n,); NaN if one of them is constant."""
    if len(truth) < 2:
        return float("nan")
    return float(stats.kendalltau(truth, predicted).statistic)


def spearman(truth: FloatArray, predicted: FloatArray) -> float:
    """Returns Spearman's rank correlation of two arrays (n,); NaN if one of them is constant."""
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return float("nan")
    return float(stats.spearmanr(truth, predicted).statistic)


def top_quartile_tau(truth: FloatArray, predicted: FloatArray) -> float:
    """Returns tau-b among the rows whose true value is in the best quarter, ties included."""
    if not len(truth):
        return float("nan")
    best = truth >= np.quantile(truth, 0.75)
    return kendall_tau(truth[best], predicted[best])


def rmse(truth: FloatArray, predicted: FloatArray) -> float:
    """Returns the root mean squared error of two arrays (n,); NaN if they are empty."""
    if not len(truth):
        return float("nan")
    return float(np.sqrt(np.mean((truth - predicted) ** 2)))


def unbiased_rmse(truth: FloatArray, predicted: FloatArray) -> float:
    """Returns the root mean squared error that is left when the mean error is subtracted.

    A predictor of one measurement protocol is off by a constant on another; it ranks as before.
    NaN if the arrays (n,) are empty.
    """
    return float(np.std(truth - predicted)) if len(truth) else float("nan")


def precision_at(truth: FloatArray, predicted: FloatArray, k: int) -> float:
    """Returns the share of the k rows predicted best that are among the k best in truth.

    A true value equal to the k-th best counts as among them. Of equal predictions at the edge it
    is as if rows were drawn: the value is the expected one.

    Args:
        truth: (n,).
        predicted: (n,).
        k: In 1..n.

    Raises:
        ValueError: There are not k rows.

    >>> precision_at(np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 2, 3]), 2)
    0.5
    """
    _require_rows(truth, k)
    good = truth >= np.partition(truth, -k)[-k]
    sure, edge = _predicted_best(predicted, k)
    drawn = (k - sure.sum()) / edge.sum()
    return float((good[sure].sum() + drawn * good[edge].sum()) / k)


def regret_at(truth: FloatArray, predicted: FloatArray, k: int) -> float:
    """Returns how far the best of the k rows predicted best is below the best of all; 0 or more.

    Of equal predictions at the edge the worst rows are taken: a predictor gains nothing from ties.

    Args:
        truth: (n,).
        predicted: (n,).
        k: In 1..n.

    Raises:
        ValueError: There are not k rows.

    >>> regret_at(np.array([1.0, 2, 3, 4]), np.array([9.0, 4, 8, 3]), 2)
    1.0
    """
    _require_rows(truth, k)
    sure, edge = _predicted_best(predicted, k)
    left = k - int(sure.sum())
    worst = np.partition(truth[edge], left - 1)[left - 1]
    return float(truth.max() - max(truth[sure].max(initial=-np.inf), worst))


def rank_of_best(truth: FloatArray, predicted: FloatArray) -> int:
    """Returns the place, from 1, that a prediction gives to the row that is best in truth.

    Equal predictions share the last of their places. If several rows are best, the one with the
    best place counts.

    Args:
        truth: (n,) at least one row.
        predicted: (n,).

    Raises:
        ValueError: There are no rows.
    """
    _require_rows(truth, 1)
    best = predicted[truth == truth.max()].max()
    return int(np.sum(predicted >= best))


def noise_ceiling(repeats: FloatArray) -> float:
    """Returns the tau that a repeated measurement reaches: each against the mean of the others.

    Args:
        repeats: (n, r) every row measured r >= 2 times.

    Raises:
        ValueError: There are fewer than two repeats.
    """
    if repeats.ndim != 2 or repeats.shape[1] < 2:
        raise ValueError(f"repeats must have shape (n, 2 or more), got {repeats.shape}")
    total = repeats.sum(axis=1)
    others = repeats.shape[1] - 1
    return float(np.mean([kendall_tau((total - each) / others, each) for each in repeats.T]))


def ceiling_tau(truth: FloatArray, predicted: FloatArray, ceiling: float) -> float:
    """Returns tau-b as a share of what noise allows; above 1 if the truth is a mean of repeats.

    Args:
        truth: (n,).
        predicted: (n,).
        ceiling: Of :func:`noise_ceiling`, in 0..1 without 0.

    Raises:
        ValueError: The ceiling is out of range.
    """
    if not 0.0 < ceiling <= 1.0:
        raise ValueError(f"ceiling must lie in 0..1 and above 0, got {ceiling}")
    return kendall_tau(truth, predicted) / ceiling


def _require_rows(truth: FloatArray, k: int) -> None:
    if not 1 <= k <= len(truth):
        raise ValueError(f"k must lie in 1..{len(truth)}, the number of rows, got {k}")


def _predicted_best(predicted: FloatArray, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which rows (n,) are surely among the k best, and which lie at the edge."""
    edge = np.partition(predicted, -k)[-k]
    return predicted > edge, predicted == edge


METRICS: dict[str, Metric] = {
    "tau": kendall_tau,
    "spearman": spearman,
    "top_quartile_tau": top_quartile_tau,
    "rmse": rmse,
}
"""What every report of a predictor shows."""


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval.

    Attributes:
        value: The score of all rows.
        low: Lower end; NaN where no sample has a score.
        high: Upper end; likewise.
    """

    value: float
    low: float
    high: float


def bootstrap_interval(
    metric: Metric,
    truth: FloatArray,
    predicted: FloatArray,
    *,
    groups: NDArray[np.int64] | None = None,
    draws: int = 300,
    coverage: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns a score with the percentile interval of a bootstrap.

    Args:
        metric: One of :data:`METRICS`, or any function of (truth, predicted).
        truth: (n,).
        predicted: (n,).
        groups: (n,) rows of one group are drawn together; None draws single rows.
        draws: Bootstrap samples.
        coverage: Share of the samples inside the interval.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    labels = group_labels(len(truth), groups)
    members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    scores = np.empty(draws)
    for draw in range(draws):
        drawn = rng.integers(0, len(members), len(members))
        rows = np.concatenate([members[each] for each in drawn])
        scores[draw] = metric(truth[rows], predicted[rows])
    tail = (1.0 - coverage) / 2.0
    known = scores[~np.isnan(scores)]
    low, high = np.quantile(known, [tail, 1.0 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(metric(truth, predicted), float(low), float(high))


@dataclass(frozen=True)
class PairedComparison:
    """Scores of one predictor minus those of another on the same seeds.

    Attributes:
        mean: Mean difference; above 0 if the first scores higher.
        low: Lower end of its interval.
        high: Upper end.
        wins: Seeds on which the first scores higher.
        losses: Seeds on which the second does.
        seeds: Their number.
    """

    mean: float
    low: float
    high: float
    wins: int
    losses: int
    seeds: int


def compare_paired(
    first: FloatArray, second: FloatArray, *, coverage: float = 0.95
) -> PairedComparison:
    """Compares two predictors by their scores on the same seeds.

    The interval is Student's. It takes seeds for independent; test rows that seeds share make it
    too narrow.

    Args:
        first: (s,) scores of one predictor, seed by seed.
        second: (s,) scores of the other.
        coverage: Of the interval, in 0..1 without its ends.

    Raises:
        ValueError: There are fewer than two seeds or not as many of both, or the coverage is out
            of range.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(
            f"scores must have the same shape (2 or more seeds,), got {first.shape} and "
            f"{second.shape}"
        )
    if not 0.0 < coverage < 1.0:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    difference = first - second
    mean, count = float(difference.mean()), len(difference)
    error = float(difference.std(ddof=1)) / np.sqrt(count)
    reach = float(stats.t.ppf(0.5 + coverage / 2.0, count - 1)) * error
    wins, losses = int(np.sum(difference > 0.0)), int(np.sum(difference < 0.0))
    return PairedComparison(mean, mean - reach, mean + reach, wins, losses, count)

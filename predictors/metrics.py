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
    "bootstrap_interval",
    "kendall_tau",
    "rmse",
    "spearman",
    "top_quartile_tau",
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

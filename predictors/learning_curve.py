"""How ranking improves with rows, and how many more it takes. Letters: s sizes, r repeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from predictors.metrics import kendall_tau
from predictors.validation import group_labels

__all__ = ["LearningCurve", "SamplesNeeded", "how_many_more", "measure_learning_curve"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_SHARES = (0.1, 0.15, 0.25, 0.4, 0.6, 0.8)  # of the groups that are learned from
_LEAST_TEST_ROWS = 10
_EXPONENTS = np.geomspace(0.2, 1.5, 27)
_USUAL_EXPONENT, _EXPONENT_SPREAD = 0.5, 0.5  # prior of the exponent: median, deviation of its log
_DRAWS = 400
_LARGEST_LOG = 40.0  # more rows than that are out of reach


@dataclass(frozen=True)
class LearningCurve:
    """Kendall's tau on unseen rows against the number of rows learned from.

    Attributes:
        sizes: (s,) rows learned from, ascending.
        taus: (s, r) one column a repeat.
        rows: Rows at hand.
    """

    sizes: FloatArray
    taus: FloatArray
    rows: int

    def __post_init__(self) -> None:
        sizes, taus = np.shape(self.sizes), np.shape(self.taus)
        if len(sizes) != 1 or len(taus) != 2 or sizes[0] != taus[0] or sizes[0] < 3:
            raise ValueError(
                f"a learning curve needs sizes (s,) and taus (s, r) with 3 sizes or more, "
                f"got shapes {sizes} and {taus}"
            )
        if not (np.isfinite(self.taus).all() and (np.diff(self.sizes) > 0).all()):
            raise ValueError("a learning curve needs finite taus and ascending sizes")


@dataclass(frozen=True)
class SamplesNeeded:
    """How many rows a target takes.

    Attributes:
        more: Rows beyond those at hand; 0 if they do, infinite if it is out of reach.
        low: Lower end of the interval of ``more``.
        high: Upper end; infinite where the target may be out of reach.
        tau_now: Expected tau with the rows at hand.
        limit: Tau that the curve tends to.
    """

    more: float
    low: float
    high: float
    tau_now: float
    limit: float


def measure_learning_curve(
    estimator: Any,
    X: FloatArray,
    y: FloatArray,
    groups: IntArray | None = None,
    *,
    sizes: Sequence[int] | None = None,
    repeats: int = 8,
    seed: int = 0,
) -> LearningCurve:
    """Fits sub-samples of rows and ranks the rest.

    Args:
        estimator: With ``fit(X, y, groups)`` and ``predict(X)``; it is cloned.
        X: (n, d).
        y: (n,).
        groups: (n,) groups stay together, so sizes are met nearly; None makes each row its own.
        sizes: (s,) ascending; None takes a tenth to four fifths of the rows.
        repeats: Sub-samples of each size.
        seed: Of the sub-samples.

    Raises:
        ValueError: A size leaves fewer than 10 rows to rank, or a sub-sample cannot be ranked.
    """
    labels = group_labels(len(y), groups)
    wanted = _sizes(len(y)) if sizes is None else np.asarray(sizes, dtype=np.int64)
    if len(wanted) and (wanted.min() < 2 or wanted.max() > len(y) - _LEAST_TEST_ROWS):
        raise ValueError(
            f"sizes must lie in 2..{len(y) - _LEAST_TEST_ROWS}, which leaves "
            f"{_LEAST_TEST_ROWS} of {len(y)} rows to rank, got {[int(each) for each in wanted]}"
        )
    taus = np.empty((len(wanted), repeats))
    for repeat in range(repeats):
        place = np.random.default_rng([seed, repeat]).permutation(int(labels.max()) + 1)[labels]
        for index, size in enumerate(wanted):
            last = np.sort(place)[size - 1]
            train, test = place <= last, place > last
            fitted = clone(estimator).fit(X[train], y[train], groups=labels[train])
            taus[index, repeat] = kendall_tau(y[test], fitted.predict(X[test]))
    return LearningCurve(wanted.astype(np.float64), np.nan_to_num(taus, nan=0.0), len(y))


def how_many_more(
    curve: LearningCurve,
    target_tau: float,
    *,
    ceiling: float = 1.0,
    coverage: float = 0.8,
    seed: int = 0,
) -> SamplesNeeded:
    """Extrapolates a learning curve to a target.

    The curve is tau(n) = limit - loss * n^-exponent, the law that errors of learning follow over
    wide ranges (Hestness et al., Deep Learning Scaling is Predictable, 2017), fitted by least
    squares with a weak prior that the exponent is near 1/2. The interval comes from a bootstrap
    over repeats and residuals; it knows nothing of errors of the law itself, so beyond four times
    the rows at hand take it as a hint.

    Args:
        curve: Of :func:`measure_learning_curve`.
        target_tau: What is to be reached.
        ceiling: Largest tau possible, such as that between two measurements of the same rows.
        coverage: Of the interval.
        seed: Of the bootstrap.

    Raises:
        ValueError: The target or the ceiling does not lie in -1..1, or coverage not in 0..1.
    """
    for name, value, low in (("target_tau", target_tau, -1), ("ceiling", ceiling, -1)):
        if not low <= value <= 1.0:
            raise ValueError(f"{name} must lie in {low}..1, got {value}")
    if not 0.0 < coverage < 1.0:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    law = _laws(curve.sizes, curve.taus.mean(axis=1)[None], ceiling)
    drawn = _laws(curve.sizes, _drawn(curve, law, np.random.default_rng(seed)), ceiling)
    needs = np.concatenate([law.needed(target_tau), drawn.needed(target_tau)])
    more = np.maximum(np.ceil(needs - 1e-9) - curve.rows, 0.0)
    tail = 0.5 * (1.0 - coverage)
    low, high = np.quantile(more[1:], [tail, 1.0 - tail], method="inverted_cdf")
    return SamplesNeeded(
        float(more[0]),
        float(min(low, more[0])),
        float(max(high, more[0])),
        float(law.taus(np.array([float(curve.rows)]))[0, 0]),
        float(law.limit[0]),
    )


@dataclass(frozen=True)
class _Laws:
    """Laws tau(n) = limit - loss * n^-exponent; all arrays are (laws,)."""

    limit: FloatArray
    loss: FloatArray
    exponent: FloatArray

    def taus(self, sizes: FloatArray) -> FloatArray:
        """(laws, s) at sizes (s,)."""
        decay = sizes ** -self.exponent[:, None]
        return np.asarray(self.limit[:, None] - self.loss[:, None] * decay)

    def needed(self, target: float) -> FloatArray:
        """(laws,) rows at which each reaches a target, 1 at least."""
        room = np.maximum(self.limit - target, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(self.loss / room) / self.exponent
        logs = np.where(room > 0.0, np.maximum(logs, 0.0), np.inf)
        return np.where(logs < _LARGEST_LOG, np.exp(np.minimum(logs, _LARGEST_LOG)), np.inf)


def _laws(sizes: FloatArray, curves: FloatArray, ceiling: float) -> _Laws:
    """Returns the best law for each of curves (laws, s); limits are the ceiling at most."""
    decay = sizes ** -_EXPONENTS[:, None]  # (exponents, s)
    centred = decay - decay.mean(axis=1, keepdims=True)
    loss = np.maximum(-(curves @ centred.T) / (centred**2).sum(axis=1), 0.0)
    limit = curves.mean(axis=1)[:, None] + loss * decay.mean(axis=1)
    capped = np.maximum((ceiling - curves) @ decay.T / (decay**2).sum(axis=1), 0.0)
    loss = np.where(limit > ceiling, capped, loss)
    limit = np.minimum(limit, ceiling)
    errors = limit[:, :, None] - loss[:, :, None] * decay - curves[:, None, :]
    noise = np.maximum(np.var(np.diff(curves, 2, axis=1), axis=1) / 6.0, 1e-6)  # of one tau
    prior = (np.log(_EXPONENTS / _USUAL_EXPONENT) / _EXPONENT_SPREAD) ** 2
    best = np.argmin((errors**2).sum(axis=2) / noise[:, None] + prior, axis=1)
    each = np.arange(len(curves))
    return _Laws(limit[each, best], loss[each, best], _EXPONENTS[best])


def _drawn(curve: LearningCurve, law: _Laws, rng: np.random.Generator) -> FloatArray:
    """Returns (draws, s) curves that might as well have been measured."""
    sizes, repeats = curve.taus.shape
    residuals = curve.taus.mean(axis=1) - law.taus(curve.sizes)[0]
    chosen = rng.integers(0, repeats, (_DRAWS, repeats))
    means = curve.taus[:, chosen].mean(axis=2).T
    return np.asarray(means + rng.choice(residuals, (_DRAWS, sizes)))


def _sizes(rows: int) -> IntArray:
    """Returns sizes for so many rows."""
    sizes = np.unique(np.round(np.array(_SHARES) * rows).astype(np.int64))
    return sizes[(sizes >= 5) & (sizes <= rows - _LEAST_TEST_ROWS)]

"""How to share a budget between fp32 and mixed samples. Letters: s pilot scores, o options.

Transfer pays where fp32 samples are there already or cheap, and loses where both kinds cost the
same and none is there yet; pilot samples tell which case it is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.base import clone

from predictors.metrics import kendall_tau
from predictors.transfer import TransferPredictor
from predictors.validation import group_labels

__all__ = ["BudgetSplit", "PilotRows", "PilotScores", "score_pilot", "split_budget"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_FP32_SHARES = (0.0, 0.3, 0.6, 1.0)  # of the pilot's fp32 rows
_MIXED_SHARES = (0.15, 0.3, 0.5, 0.7)  # of its mixed groups
_LEAST_TEST_ROWS = 10
_START = 4.0  # rows that a model without rows is worth, so that its error is finite
_EXPONENTS = (0.35, 0.5, 0.7, 1.0)
_WORTHS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of an fp32 row, in mixed rows
_SHARES_TRIED = np.linspace(0.0, 1.0, 101)
_WORTH_A_SPLIT = 0.003  # less expected tau than that does not make anybody measure a second kind


@dataclass(frozen=True)
class PilotRows:
    """Samples measured so far.

    Attributes:
        fp32_columns: (b, p) columns of the architecture.
        fp32_accuracy: (b,) accuracies in fp32.
        mixed_columns: (n, d) all columns; the first p are those of the architecture.
        mixed_accuracy: (n,) accuracies in mixed formats.
        mixed_groups: (n,) one number an architecture; None makes each row its own.
    """

    fp32_columns: FloatArray
    fp32_accuracy: FloatArray
    mixed_columns: FloatArray
    mixed_accuracy: FloatArray
    mixed_groups: IntArray | None = None


@dataclass(frozen=True)
class PilotScores:
    """What sub-samples of a pilot reach.

    Attributes:
        fp32: (s,) fp32 rows that the base learned from; 0 is learning from scratch.
        mixed: (s,) mixed rows learned from.
        tau: (s,) Kendall's tau on the other mixed rows.
        fp32_at_hand: fp32 rows of the pilot.
        mixed_at_hand: Mixed rows of the pilot.
    """

    fp32: FloatArray
    mixed: FloatArray
    tau: FloatArray
    fp32_at_hand: int
    mixed_at_hand: int

    def __post_init__(self) -> None:
        shapes = {np.shape(each) for each in (self.fp32, self.mixed, self.tau)}
        if len(shapes) != 1 or len(self.tau) < 4:
            raise ValueError(
                f"pilot scores need fp32, mixed and tau of one shape (s,) with 4 scores or more, "
                f"got shapes {np.shape(self.fp32)}, {np.shape(self.mixed)} and "
                f"{np.shape(self.tau)}"
            )


@dataclass(frozen=True)
class BudgetSplit:
    """How many samples to measure, and what is expected of it.

    Attributes:
        fp32: fp32 samples to measure.
        mixed: Mixed samples to measure.
        tau: Expected Kendall's tau of the transferred predictor then.
        tau_mixed_only: If the budget buys mixed samples alone, transferred from the fp32 samples
            at hand.
        tau_scratch: If it buys mixed samples alone and no fp32 sample is used.
        tau_scratch_at_equal_cost: If what the fp32 samples at hand have cost had bought mixed
            samples too, and nothing is transferred.
        fp32_worth: Mixed samples that an fp32 sample is worth for what both can teach, 0..1.
        error: Root mean squared error of the fitted curve at the pilot's own scores.
        text: One sentence.
    """

    fp32: int
    mixed: int
    tau: float
    tau_mixed_only: float
    tau_scratch: float
    tau_scratch_at_equal_cost: float
    fp32_worth: float
    error: float
    text: str


def split_budget(
    cost_fp32: float, cost_mixed: float, budget: float, pilot: PilotScores
) -> BudgetSplit:
    """Chooses how many fp32 and mixed samples a budget should buy.

    Errors of ranking are taken to be a constant plus two parts: one of architecture, which an fp32
    sample lowers like a share of a mixed one, and one of formats, which mixed samples alone lower.
    Both are powers of the number of samples; exponent, share and sizes are fitted to the pilot.

    Args:
        cost_fp32: Of one sample, in any unit; 0 is allowed.
        cost_mixed: Of one sample, in the same unit.
        budget: In the same unit, for samples beyond those at hand.
        pilot: Of :func:`score_pilot`.

    Raises:
        ValueError: A cost or the budget is negative or not finite, or mixed samples cost nothing.
    """
    _check_costs(cost_fp32, cost_mixed, budget)
    surface = _surface(pilot)
    affordable = budget / cost_mixed
    fp32, mixed = _options(cost_fp32, cost_mixed, budget, pilot)
    taus = surface.tau(pilot.fp32_at_hand + fp32, pilot.mixed_at_hand + mixed)
    best = int(np.argmax(taus))
    if taus[best] - taus[0] < _WORTH_A_SPLIT:
        best = 0  # no fp32 sample is bought for nothing
    owned = pilot.fp32_at_hand * cost_fp32 / cost_mixed
    scratch, equal = surface.tau(
        np.zeros(2), pilot.mixed_at_hand + affordable + np.array([0.0, owned])
    )
    return BudgetSplit(
        int(fp32[best]),
        int(mixed[best]),
        float(taus[best]),
        float(taus[0]),
        float(scratch),
        float(equal),
        surface.worth,
        surface.error,
        _sentence(int(fp32[best]), int(mixed[best]), float(taus[best]), float(scratch), equal),
    )


def score_pilot(
    pilot: PilotRows,
    base: Any,
    transfer: Any = None,
    *,
    repeats: int = 4,
    seed: int = 0,
) -> PilotScores:
    """Fits sub-samples of a pilot, transferred and from scratch, and ranks its other mixed rows.

    Args:
        pilot: The samples so far.
        base: Unfitted predictor of fp32 accuracy.
        transfer: Unfitted :class:`TransferPredictor`; its base is set. None takes the default.
        repeats: Sub-samples of each size.
        seed: Of the sub-samples.

    Raises:
        ValueError: There are too few rows, or fewer columns for mixed rows than for fp32 rows.
    """
    labels = group_labels(len(pilot.mixed_accuracy), pilot.mixed_groups)
    _check_pilot(pilot, labels)
    transfer = TransferPredictor() if transfer is None else transfer
    scores = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        place = rng.permutation(int(labels.max()) + 1)[labels]
        order = rng.permutation(len(pilot.fp32_accuracy))
        for share in _FP32_SHARES:
            few = order[: round(share * len(order))]
            fitted = _fitted_base(base, pilot, few)
            for part in _MIXED_SHARES:
                train = place < max(round(part * (place.max() + 1)), 2)
                tau = _tau(clone(transfer).set_params(base=fitted), pilot, train, labels)
                scores.append((len(few), int(train.sum()), tau))
    fp32, mixed, taus = np.array(scores, dtype=np.float64).T
    return PilotScores(fp32, mixed, taus, len(pilot.fp32_accuracy), len(pilot.mixed_accuracy))


@dataclass(frozen=True)
class _Surface:
    """Expected tau against both numbers of samples."""

    limit: float
    architecture: float
    formats: float
    worth: float
    exponent: float
    error: float

    def tau(self, fp32: FloatArray, mixed: FloatArray) -> FloatArray:
        shared, own = _decays(fp32, mixed, self.worth, self.exponent)
        return np.asarray(self.limit - self.architecture * shared - self.formats * own)


def _surface(pilot: PilotScores) -> _Surface:
    """Returns the surface of least squared error, of equal ones that with the least worth."""
    fits = []
    for exponent in _EXPONENTS:
        for worth in _WORTHS:
            decays = _decays(pilot.fp32, pilot.mixed, worth, exponent)
            columns = np.column_stack([np.ones(len(pilot.tau)), *decays])
            # 1 - tau = lost + architecture * shared + formats * own, none of them negative
            sizes, norm = nnls(columns, 1.0 - pilot.tau)
            error = float(norm / np.sqrt(len(pilot.tau)))
            fits.append(_Surface(1.0 - sizes[0], sizes[1], sizes[2], worth, exponent, error))
    return min(fits, key=lambda each: (round(each.error, 6), each.worth))


def _decays(
    fp32: FloatArray, mixed: FloatArray, worth: float, exponent: float
) -> tuple[FloatArray, FloatArray]:
    """Returns both errors (s,) as shares of those without samples."""
    own = (_START / (mixed + _START)) ** exponent
    return (_START / (mixed + worth * fp32 + _START)) ** exponent, own


def _options(
    cost_fp32: float, cost_mixed: float, budget: float, pilot: PilotScores
) -> tuple[FloatArray, FloatArray]:
    """Returns (o,) fp32 and (o,) mixed samples that the budget buys; the first buys no fp32."""
    if cost_fp32 > 0.0:
        fp32 = np.floor(_SHARES_TRIED * budget / cost_fp32)
    else:  # free: as many as would be bought at most, were they not
        fp32 = np.array([0.0, 10.0 * (pilot.mixed_at_hand + budget / cost_mixed)])
    mixed = np.floor((budget - fp32 * cost_fp32) / cost_mixed + 1e-9)
    return np.floor(fp32), np.maximum(mixed, 0.0)


def _sentence(fp32: int, mixed: int, tau: float, scratch: float, equal: float) -> str:
    bought = f"measure {fp32} fp32 and {mixed} mixed samples: tau {tau:.3f} is expected"
    against = (
        f"{scratch:.3f} from as much spent on mixed samples alone without transfer, and "
        f"{equal:.3f} if the fp32 samples at hand had been mixed ones of the same cost"
    )
    return f"{bought}, against {against}"


def _fitted_base(base: Any, pilot: PilotRows, index: IntArray) -> Any:
    if len(index) < 2:
        return None
    return clone(base).fit(pilot.fp32_columns[index], pilot.fp32_accuracy[index])


def _tau(estimator: Any, pilot: PilotRows, train: NDArray[np.bool_], labels: IntArray) -> float:
    X, y = pilot.mixed_columns, pilot.mixed_accuracy
    fitted = estimator.fit(X[train], y[train], groups=labels[train])
    tau = kendall_tau(y[~train], fitted.predict(X[~train]))
    return tau if np.isfinite(tau) else 0.0


def _check_pilot(pilot: PilotRows, labels: IntArray) -> None:
    unseen = round((1.0 - max(_MIXED_SHARES)) * (int(labels.max(initial=0)) + 1))
    if unseen < _LEAST_TEST_ROWS or len(pilot.fp32_accuracy) < _LEAST_TEST_ROWS:
        raise ValueError(
            f"a pilot needs {_LEAST_TEST_ROWS} fp32 rows and about "
            f"{round(_LEAST_TEST_ROWS / (1.0 - max(_MIXED_SHARES)))} architectures of mixed rows, "
            f"got {len(pilot.fp32_accuracy)} and {int(labels.max(initial=-1)) + 1}"
        )
    widths = pilot.mixed_columns.shape[1], pilot.fp32_columns.shape[1]
    if widths[0] < widths[1]:
        raise ValueError(
            f"mixed rows must have the columns of fp32 rows first, got {widths[0]} columns "
            f"against {widths[1]}"
        )


def _check_costs(cost_fp32: float, cost_mixed: float, budget: float) -> None:
    costs = {"cost_fp32": cost_fp32, "cost_mixed": cost_mixed, "budget": budget}
    for name, value in costs.items():
        if not (np.isfinite(value) and value >= 0.0):
            raise ValueError(f"{name} must be 0 or more and finite, got {value}")
    if cost_mixed == 0.0:
        raise ValueError("cost_mixed must be more than 0: free samples need no budget")

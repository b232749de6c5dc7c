"""What the pipeline adds to ``predictors``: features of candidates, fitting, scores, baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from apqkit.cost.network import NetworkCost
from apqkit.quant.noise import gaussian_noise
from apqkit.registry import lookup
from apqkit.types import Dim, FloatArray, IntArray, Space
from predictors import (
    METRICS,
    PREDICTORS,
    CandidateEncoder,
    TransferPredictor,
    bootstrap_interval,
    conformal_half_width,
    log_columns,
    out_of_fold,
)

__all__ = [
    "AccuracyModel",
    "FeatureBuilder",
    "Rows",
    "architecture_groups",
    "feature_builder",
    "fit_fp32",
    "fit_mixed",
    "score_rows",
]

_FP32_COSTS = ("macs", "params")
_MIXED_COSTS = ("bops", "size_kib", "peak_activation_kib")


@dataclass(frozen=True)
class FeatureBuilder:
    """Turns picks into the columns that predictors read.

    Attributes:
        space: Whose candidates they are.
        encoder: Of the space's dims.
    """

    space: Space
    encoder: CandidateEncoder

    def fp32(self, picks: IntArray) -> FloatArray:
        """(n, d) architecture, pruning and counts: what an fp32 network depends on."""
        costs = NetworkCost().cost(self.space.network(picks))
        return np.hstack(
            [
                self.encoder.architecture(picks, self.space.active(picks)),
                log_columns({name: costs[name] for name in _FP32_COSTS}),
            ]
        )

    def mixed(self, picks: IntArray) -> FloatArray:
        """(n, e) the fp32 columns first, then quantization noise and sizes in bits."""
        active = self.space.active(picks)
        costs = NetworkCost().cost(self.space.network(picks))
        return np.hstack(
            [
                self.encoder.architecture(picks, active),
                log_columns({name: costs[name] for name in _FP32_COSTS}),
                self.encoder.precision(picks, active),
                log_columns({name: costs[name] for name in _MIXED_COSTS}),
            ]
        )


def feature_builder(space: Space) -> FeatureBuilder:
    """Returns the builder of a space; noise is measured through the real quantizers."""
    noise = {dim.name: _noise(dim, space) for dim in space.dims if dim.role == "quant"}
    return FeatureBuilder(space, CandidateEncoder(space.dims, noise))


@dataclass(frozen=True)
class Rows:
    """Training rows of a predictor.

    Attributes:
        features: (n, d).
        accuracy: (n,).
        groups: (n,) rows of one architecture share a number.
    """

    features: FloatArray
    accuracy: FloatArray
    groups: IntArray


@dataclass(frozen=True)
class AccuracyModel:
    """A fitted predictor with its prediction interval.

    Attributes:
        predictor: Fitted.
        out_of_fold: (n,) predictions of its own rows by fits that never saw their architecture.
        half_width: Of the interval that covers a new row with the chance asked for.
    """

    predictor: Any
    out_of_fold: FloatArray
    half_width: float

    def predict(self, features: FloatArray) -> FloatArray:
        """(n,) predicted accuracy."""
        return np.asarray(self.predictor.predict(features))


def fit_fp32(name: str, rows: Rows, *, coverage: float, seed: int) -> AccuracyModel:
    """Fits the fp32 predictor.

    Args:
        name: Of :data:`predictors.PREDICTORS`.
        rows: fp32 samples.
        coverage: Of the interval.
        seed: Of the predictor.

    Raises:
        UnknownNameError: No predictor of that name.
    """
    predictor = _new_predictor(name, seed).fit(rows.features, rows.accuracy, groups=rows.groups)
    predicted = getattr(predictor, "out_of_fold_", None)  # "auto" has them from its own choice
    if predicted is None:
        predicted = out_of_fold(predictor, rows.features, rows.accuracy, rows.groups)
    width = _half_width(rows.accuracy - predicted, coverage)
    return AccuracyModel(predictor, predicted, width)


def fit_mixed(
    base: AccuracyModel | None,
    rows: Rows,
    *,
    name: str,
    coverage: float,
    seed: int,
    mode: str = "auto",
    base_rows: Rows | None = None,
) -> AccuracyModel:
    """Fits the predictor of mixed precision, transferred from the fp32 one.

    Args:
        base: The fp32 predictor, or None to learn from scratch.
        rows: Mixed samples; the columns of the base come first.
        name: Of :data:`predictors.PREDICTORS`, for what is learned beyond the base; "auto" takes
            what :class:`predictors.TransferPredictor` takes by default.
        coverage: Of the interval.
        seed: Of the predictor.
        mode: Of :data:`predictors.TRANSFER_MODES`.
        base_rows: What the base was fitted on, for the modes that read it.
    """
    predictor = TransferPredictor(
        None if base is None else base.predictor,
        None if name == "auto" else _new_predictor(name, seed),
        mode=mode,
        base_rows=None if base_rows is None else (base_rows.features, base_rows.accuracy),
        random_state=seed,
    )
    predictor.fit(rows.features, rows.accuracy, groups=rows.groups)
    predicted = predictor.out_of_fold_
    width = _half_width(rows.accuracy - predicted, coverage)
    return AccuracyModel(predictor, predicted, width)


def score_rows(
    rows: Rows, predictions: Mapping[str, FloatArray], counts: Mapping[str, FloatArray]
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns ``{what: {metric: {value, low, high}}}`` for predictions and baselines of rows.

    Args:
        rows: The truth, with groups that are drawn together in the bootstrap.
        predictions: (n,) accuracies each, out of fold where they were learned.
        counts: (n,) baselines such as MACs. They rank as they are; their error is that of a line
            in their logarithm, fitted to these very rows, which flatters them a little.
    """
    scores = {what: _scores(rows, each, each) for what, each in predictions.items()}
    for what, each in counts.items():
        line = np.polynomial.Polynomial.fit(np.log(each), rows.accuracy, 1)
        scores[what] = _scores(rows, each, line(np.log(each)))
    return scores


def _scores(rows: Rows, ranks: FloatArray, accuracy: FloatArray) -> dict[str, dict[str, float]]:
    """Returns every metric of one prediction: its order and its accuracies."""
    scores = {}
    for metric, function in METRICS.items():
        predicted = accuracy if metric == "rmse" else ranks
        interval = bootstrap_interval(
            function, rows.accuracy, predicted, groups=rows.groups, draws=200
        )
        scores[metric] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return scores


def architecture_groups(space: Space, picks: IntArray) -> IntArray:
    """(n,) a number for each distinct architecture, formats left out.

    Where all candidates share one architecture, each row gets a number of its own: there is
    nothing to group by.
    """
    columns = [index for index, dim in enumerate(space.dims) if dim.role != "quant"]
    groups = np.unique(picks[:, columns], axis=0, return_inverse=True)[1].astype(np.int64)
    return groups if groups.max(initial=0) > 0 else np.arange(len(picks))


def _half_width(residuals: FloatArray, coverage: float) -> float:
    """Returns the half-width of the interval; at most 1, which holds every accuracy."""
    return min(conformal_half_width(residuals, coverage), 1.0)


def _new_predictor(name: str, seed: int) -> Any:
    kind = lookup(PREDICTORS, name, "predictor")
    takes_seed = "random_state" in kind().get_params()
    return kind(random_state=seed) if takes_seed else kind()


def _noise(dim: Dim, space: Space) -> FloatArray:
    """Noise of each choice; inputs behind a ReLU use the unsigned twins."""
    signed = dim.name.startswith("w_format.") or _reads_signed(dim, space)
    return np.array([gaussian_noise(str(choice), signed=signed) for choice in dim.choices])


def _reads_signed(dim: Dim, space: Space) -> bool:
    """Returns whether the layer that a dim names reads values that can be negative."""
    from apqkit.spaces.base import largest_picks

    table = space.network(largest_picks(space.dims))
    layer = dim.name.partition(".")[2]
    if layer not in table.names:
        return True
    return bool(table.signed_input[0, table.names.index(layer)])

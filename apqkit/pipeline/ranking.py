"""The predictors of a run: fitted on samples, refitted with what the search measures.

Two predictors of mixed accuracy stand side by side. The quick one reads columns that follow from
the picks and scores tens of thousands of candidates a second; evolution runs on it. The full one
also reads zero-cost proxies, which need the subnet itself; it re-ranks what evolution proposes, if
proxies have shown on the samples that they help.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apqkit.pipeline.context import RunContext
from apqkit.pipeline.proxies import pointed_up
from apqkit.pipeline.samples_stage import read_samples
from apqkit.prediction import AccuracyModel, Rows, architecture_groups, fit_fp32, fit_mixed
from apqkit.sampling import sample_picks
from apqkit.types import FloatArray, IntArray
from predictors import mean_rank
from predictors.regressors import to_link

__all__ = [
    "Measured",
    "Ranking",
    "fit_base",
    "fit_rows",
    "fit_with_proxies",
    "fp32_rows",
    "measured_samples",
    "mixed_rows",
    "proxy_gain",
    "reordered",
]


@dataclass(frozen=True)
class Measured:
    """Measured candidates.

    Attributes:
        picks: (n, k).
        accuracy: (n,).
    """

    picks: IntArray
    accuracy: FloatArray

    def joined(self, picks: IntArray, accuracy: FloatArray) -> "Measured":
        """Returns these candidates followed by more."""
        return Measured(
            np.concatenate([self.picks, picks]), np.concatenate([self.accuracy, accuracy])
        )


@dataclass(frozen=True)
class Ranking:
    """Predictors fitted on everything that was measured so far.

    Attributes:
        context: The run.
        base: The fp32 predictor; None where there are no fp32 samples.
        quick: Reads columns that follow from picks.
        full: Also reads proxies as columns; None if they do not help or are combined by rank.
        proxies: Proxies that it reads, or that have a say by rank.
    """

    context: RunContext
    base: AccuracyModel | None
    quick: AccuracyModel
    full: AccuracyModel | None
    proxies: tuple[str, ...]

    @classmethod
    def fitted(
        cls,
        context: RunContext,
        base: AccuracyModel | None,
        measured: Measured,
        proxies: Sequence[str],
    ) -> "Ranking":
        """Fits the predictors of mixed accuracy.

        Args:
            context: The run.
            base: The fp32 predictor; None learns from scratch.
            measured: Mixed samples and what the search has measured.
            proxies: Proxies that the full predictor reads; without any there is none.
        """
        rows = mixed_rows(context, measured)
        quick = fit_rows(context, base, rows)
        as_columns = proxies and context.config.predictor.combine == "columns"
        full = fit_with_proxies(context, base, measured, proxies) if as_columns else None
        return cls(context, base, quick, full, tuple(proxies))

    @property
    def half_width(self) -> float:
        """Half-width of the prediction interval."""
        return (self.full or self.quick).half_width

    @property
    def reads_proxies(self) -> bool:
        """Whether :meth:`score` needs the subnets."""
        return bool(self.proxies)

    def quick_score(self, picks: IntArray) -> FloatArray:
        """(n,) predicted accuracy, fast."""
        return self.quick.predict(self.context.features.mixed(picks))

    def score(self, picks: IntArray) -> FloatArray:
        """(n,) predicted accuracy, with proxies as columns or reordered by them."""
        features = self.context.features.mixed(picks)
        if not self.proxies:
            return self.quick.predict(features)
        columns = self.context.proxies.columns(picks, self.proxies)
        if self.full is None:
            return reordered(self.quick.predict(features), self.proxies, columns)
        return self.full.predict(np.hstack([features, columns]))

    def predicted(self, picks: IntArray) -> FloatArray:
        """(n,) predicted accuracy: here the score itself."""
        return self.score(picks)

    def fp32_score(self, picks: IntArray) -> FloatArray:
        """(n,) predicted accuracy of the architectures in fp32."""
        if self.base is None:
            raise ValueError("there is no fp32 predictor")
        return self.base.predict(self.context.features.fp32(picks))


def fp32_rows(context: RunContext) -> Rows:
    """Returns the fp32 samples as training rows."""
    measured = measured_samples(context, "fp32")
    groups = architecture_groups(context.space, measured.picks)
    return Rows(context.features.fp32(measured.picks), measured.accuracy, groups)


def mixed_rows(context: RunContext, measured: Measured) -> Rows:
    """Returns measured mixed candidates as training rows."""
    groups = architecture_groups(context.space, measured.picks)
    return Rows(context.features.mixed(measured.picks), measured.accuracy, groups)


def measured_samples(context: RunContext, kind: str) -> Measured:
    """Returns the samples of one kind."""
    samples = read_samples(context, "fp32" if kind == "fp32" else "mixed")
    accuracy = np.array([each.accuracy for each in samples])
    return Measured(sample_picks(context.space, samples), accuracy)


def fit_rows(context: RunContext, base: AccuracyModel | None, rows: Rows) -> AccuracyModel:
    """Fits a predictor of mixed accuracy; without a base it learns from scratch."""
    settings, mode = context.config.predictor, context.config.transfer.mode
    reads_base_rows = base is not None and mode in ("multitask", "warm")
    return fit_mixed(
        base,
        rows,
        name=settings.name,
        coverage=settings.coverage,
        seed=context.config.seed,
        mode=mode,
        base_rows=fp32_rows(context) if reads_base_rows else None,
    )


def fit_with_proxies(
    context: RunContext, base: AccuracyModel | None, measured: Measured, proxies: Sequence[str]
) -> AccuracyModel:
    """Fits a predictor of mixed accuracy that also reads proxy columns."""
    rows = mixed_rows(context, measured)
    columns = np.hstack([rows.features, context.proxies.columns(measured.picks, proxies)])
    return fit_rows(context, base, Rows(columns, rows.accuracy, rows.groups))


def fit_base(context: RunContext) -> AccuracyModel:
    """Fits the fp32 predictor on the fp32 samples."""
    settings = context.config.predictor
    rows = fp32_rows(context)
    return fit_fp32(settings.name, rows, coverage=settings.coverage, seed=context.config.seed)


def reordered(predicted: FloatArray, proxies: Sequence[str], columns: FloatArray) -> FloatArray:
    """Returns predicted accuracies (n,) dealt out anew in the order of the mean rank.

    Args:
        predicted: (n,) of a predictor, which has one say.
        proxies: Names; each has one too, in the direction that it declares.
        columns: (n, p) their scores.
    """
    order = mean_rank(np.hstack([predicted[:, None], pointed_up(proxies, columns)]))
    dealt = np.empty(len(predicted))
    dealt[np.argsort(order, kind="stable")] = np.sort(predicted)
    return dealt


def proxy_gain(
    truth: FloatArray, without: FloatArray, with_proxies: FloatArray
) -> tuple[float, float]:
    """Returns how much proxy columns lower the squared error out of fold, and its standard error.

    Args:
        truth: (n,) measured accuracy.
        without: (n,) out-of-fold predictions of the quick predictor.
        with_proxies: (n,) those of one that reads proxies too.

    Returns:
        Mean gain on the logit scale, and its standard error over rows.
    """
    z, a, b = (to_link(each, logit=True) for each in (truth, without, with_proxies))
    gains = (z - a) ** 2 - (z - b) ** 2
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))

"""A mixer over the layers of a network."""

import numpy as np
from numpy.typing import NDArray

from predictors.regressors.bags import bags_by_group, out_of_bag
from predictors.regressors.base import LinkPredictor
from predictors.regressors.normal_scores import NormalScores

__all__ = ["ParZCPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_CLIP = 5.0  # standardised statistics are clipped here: a far one must not rule the prediction
_BATCH_ROWS = 64
_SMALL = 0.1  # quantile of a statistic's sizes from which on its logarithm is taken


class ParZCPredictor(LinkPredictor):
    """Ranks networks by statistics of their layers, such as zero-cost proxies layer by layer.

    A network is a sequence of tokens, one a layer, that an MLP mixer reads; its last layer is
    Bayesian with independent normal weights, prior mean 0 and deviation ``prior_deviation``.
    Targets are normal scores of their ranks. The loss is the negative evidence bound a row plus
    ``rank_weight`` times the soft tau. Predictions are posterior means, averaged over members
    that differ in first weights and in the fifth of the groups that they do not see; deviations
    join posterior, noise, the members' disagreement and what the error out of bag exceeds them by.

    The idea to rank by statistics of layers with a mixer and a Bayesian network is that of Dong
    et al., ParZC, AAAI 2025.

    Args:
        positions: Layers a network, of columns as :func:`predictors.layer_columns` lays them out;
            None reads any columns, each as a token.
        statistics: Of a layer; 1 where ``positions`` is None.
        channels: Width of a token inside.
        units: Hidden units of the mixing parts.
        blocks: Number of pairs of mixing parts.
        members: Number of mixers.
        epochs: Passes over the rows.
        learning_rate: The largest of the schedule.
        weight_decay: Pull of the mixing weights to 0.
        rank_weight: Weight of the soft tau, -1..1, beside the evidence bound a row.
        temperature: Of the soft tau, in deviations of the targets.
        prior_deviation: Of the last layer's weights.
        presence_power: A position weighs as the share of training rows that have a layer in it,
            to this power: of the rarer ones little can be learned, and there may be many.
        random_state: Seed.
    """

    def __init__(
        self,
        positions: int | None = None,
        statistics: int = 1,
        channels: int = 8,
        units: int = 16,
        blocks: int = 1,
        members: int = 5,
        epochs: int = 100,
        learning_rate: float = 1e-2,
        weight_decay: float = 1.0,
        rank_weight: float = 1.0,
        temperature: float = 0.5,
        prior_deviation: float = 1.0,
        presence_power: float = 4.0,
        random_state: int = 0,
    ) -> None:
        self.positions = positions
        self.statistics = statistics
        self.channels = channels
        self.units = units
        self.blocks = blocks
        self.members = members
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.rank_weight = rank_weight
        self.temperature = temperature
        self.prior_deviation = prior_deviation
        self.presence_power = presence_power
        self.random_state = random_state

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        from predictors.networks.mixer import MixerShape, MixerTask, fit_mixers, initial_mixers
        from predictors.networks.training import Descent

        self._check(X.shape[1])
        rng = np.random.default_rng(self.random_state)
        values, present = self._sequences(X)
        self.small_, self.mean_, self.scale_ = _scales(values, present)
        self.weights_ = present.mean(axis=0) ** self.presence_power
        self.ranks_ = NormalScores.of(z)
        _, positions, statistics = values.shape
        shape = MixerShape(positions, statistics, self.channels, self.units, self.blocks)
        bags = bags_by_group(groups, self.members, rng)
        self.parameters_ = initial_mixers(shape, self.members, rng)
        self.noise_ = 0.0
        if np.ptp(z) == 0.0:  # one row or equal targets: nothing to learn
            return
        targets = self.ranks_.to_scores(z)
        task = MixerTask(self.rank_weight, self.temperature, self.prior_deviation)
        descent = Descent(self.epochs, _BATCH_ROWS, self.learning_rate, self.weight_decay)
        tokens = self._tokens(values, present)
        self.parameters_ = fit_mixers(
            self.parameters_, tokens, present * self.weights_, targets, bags, task, descent, rng
        )
        self.noise_ = self._unexplained(X, targets, bags)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        members, deviations = self._posterior(X)
        mean, variance = _joined(members, deviations)
        deviation = np.sqrt(variance + self.noise_**2)
        return self.ranks_.to_values(mean), self.ranks_.to_deviations(mean, deviation)

    def _unexplained(self, X: FloatArray, targets: FloatArray, bags: BoolArray) -> float:
        """Returns the deviation out of bag that posterior and disagreement do not explain."""
        members, deviations = self._posterior(X)
        unseen = out_of_bag(members, bags)
        known = np.isfinite(unseen)
        if not known.any():
            return 0.0
        error = float(np.mean((targets[known] - unseen[known]) ** 2))
        return float(np.sqrt(max(error - float(_joined(members, deviations)[1].mean()), 0.0)))

    def _posterior(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means and deviations (members, n) in normal scores."""
        from predictors.networks.mixer import mixer_posterior

        values, present = self._sequences(X)
        tokens = self._tokens(values, present)
        return mixer_posterior(self.parameters_, tokens, present * self.weights_)

    def _sequences(self, X: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Statistics (n, positions, statistics) and which positions are there, (n, positions)."""
        if self.positions is None:
            return X[:, :, None], np.ones(X.shape, dtype=np.bool_)
        values = X[:, : -self.positions].reshape(len(X), self.positions, self.statistics)
        return values, X[:, -self.positions :] > 0.5

    def _tokens(self, values: FloatArray, present: BoolArray) -> FloatArray:
        """(n, positions, statistics) standardised, 0 where absent."""
        tokens = np.clip((_tamed(values, self.small_) - self.mean_) / self.scale_, -_CLIP, _CLIP)
        return np.where(present[:, :, None], tokens, 0.0)

    def _check(self, columns: int) -> None:
        """Raises ValueError where a parameter is out of range or does not fit the columns."""
        if self.positions is None and self.statistics != 1:
            raise ValueError(f"statistics must be 1 without positions, got {self.statistics}")
        least = dict.fromkeys(("channels", "units", "members", "epochs"), 1) | {"blocks": 0}
        if self.positions is not None:
            least |= {"positions": 1, "statistics": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be {bound} or more, got {getattr(self, name)}")
        for name in ("temperature", "prior_deviation"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.positions is not None and columns != self.positions * (self.statistics + 1):
            raise ValueError(
                f"X must have {self.positions * (self.statistics + 1)} columns, "
                f"{self.positions} positions of {self.statistics} statistics and a mask of "
                f"{self.positions}, got {columns}"
            )


def _scales(values: FloatArray, present: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The sizes (s,) where logarithms start, means and deviations (l, s) of what is present.

    A statistic that never changes in a position has an infinite deviation, so it has no say.
    """
    shown = np.broadcast_to(present[:, :, None], values.shape)
    sizes = np.where(shown & (values != 0.0), np.abs(values), np.nan)
    small = np.ones(values.shape[2])
    for column in range(len(small)):
        known = sizes[:, :, column][np.isfinite(sizes[:, :, column])]
        if len(known):
            small[column] = max(float(np.quantile(known, _SMALL)), 1e-30)
    tamed = np.where(shown, _tamed(values, small), 0.0)
    count = np.maximum(shown.sum(axis=0), 1)
    mean = tamed.sum(axis=0) / count
    squares = np.where(shown, (tamed - mean) ** 2, 0.0).sum(axis=0) / count
    deviation = np.sqrt(squares)
    return small, mean, np.where(deviation > 1e-9, deviation, np.inf)


def _tamed(values: FloatArray, small: FloatArray) -> FloatArray:
    """Signed logarithms that start at a size of their own for each statistic."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values) / small))


def _joined(members: FloatArray, deviations: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and variance (n,) of the equal mixture of the members' normals."""
    variance = (deviations**2).mean(axis=0) + members.var(axis=0)
    return members.mean(axis=0), variance

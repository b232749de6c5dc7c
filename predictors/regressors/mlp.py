"""Multilayer perceptrons, averaged."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.regressors.bags import bags_by_group, out_of_bag
from predictors.regressors.base import LinkPredictor
from predictors.regressors.link import to_link, uses_logit
from predictors.regressors.normal_scores import NormalScores
from predictors.validation import group_labels

__all__ = ["MLPPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_CLIP = 5.0  # standardised features are clipped here: a far column must not rule the prediction
_BATCH_ROWS = 64
_ROWS_AT_ONCE = 2048  # of a prediction: what fits into a cache


class MLPPredictor(LinkPredictor):
    """An ensemble of multilayer perceptrons, trained together in torch and read with NumPy.

    Members differ in their first weights and in the rows that they see: each leaves out a fifth of
    the groups. Standard deviations join the members' disagreement and the error out of bag.
    Targets are normal scores of their ranks. A rank loss leaves the scale of the outputs open: a
    rising line per member brings them to the scores it saw. Another, for all, is fitted out of
    bag. The mean of the members goes back to targets by a rising map.

    Args:
        hidden: Units of each hidden layer.
        members: Number of perceptrons.
        loss: ``mse``, ``ranknet``, ``hinge`` (margin .1, all pairs of a batch), ``listmle`` or
            ``soft_tau``.
        epochs: Passes over the rows.
        learning_rate: The largest of the schedule.
        weight_decay: Pull of the weights to 0.
        random_state: Seed.

    Attributes:
        layers_: Matrices (members, inputs + 1, units), the last row of each the bias.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (32, 32),
        members: int = 5,
        loss: str = "soft_tau",
        epochs: int = 100,
        learning_rate: float = 1e-2,
        weight_decay: float = 3.0,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.members = members
        self.loss = loss
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(
        self,
        X: FloatArray,
        y: FloatArray,
        groups: IntArray | None = None,
        start: "MLPPredictor | None" = None,
    ) -> Self:
        """Fits rows X (n, d) to targets y (n,); a group (n,) is in a member's bag or out of it.

        Args:
            X: (n, d).
            y: (n,).
            groups: (n,) or None.
            start: A fitted predictor of as many members and the same hidden layers. It reads the
                first columns of X; its weights are where descent starts, those of the further
                columns start at 0, and all are fitted. Before the first step the prediction is
                that of ``start`` on a rising line through the targets.

        Raises:
            ValueError: A parameter is out of range, or ``start`` does not fit.
        """
        if start is None:
            return super().fit(X, y, groups)
        check_is_fitted(start)
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        self.logit_ = uses_logit(y)
        z, labels = to_link(y, logit=self.logit_), group_labels(len(y), groups)
        rng = self._checked_rng()
        self._descend(self._layers_of(start, X, self._targets(z)), X, z, labels, rng)
        return self

    def _fit_link(self, X: FloatArray, z: FloatArray, groups: IntArray) -> None:
        from predictors.networks.perceptrons import initial_layers

        rng = self._checked_rng()
        self.mean_, self.scale_ = X.mean(axis=0), _scale(X)
        sizes = (X.shape[1], *self.hidden, 1)
        self._descend(initial_layers(sizes, self.members, rng), X, z, groups, rng)

    def _predict_link(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        outputs = self._outputs(X)
        mean, deviation = outputs.mean(axis=0), np.sqrt(outputs.var(axis=0) + self.noise_**2)
        return self.ranks_.to_values(mean), self.ranks_.to_deviations(mean, deviation)

    def _checked_rng(self) -> np.random.Generator:
        """Returns a generator of its own for this fit, once the parameters are in range.

        Raises:
            ValueError: A parameter is out of range.
        """
        from predictors.networks.losses import LOSSES

        if self.loss not in LOSSES:
            raise ValueError(f"no loss named {self.loss!r}; there are: {', '.join(LOSSES)}")
        for name in ("members", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if any(units < 1 for units in self.hidden):
            raise ValueError(f"hidden must hold numbers of 1 or more, got {self.hidden}")
        return np.random.default_rng(self.random_state)

    def _targets(self, z: FloatArray) -> FloatArray:
        """Returns the normal scores of the targets."""
        self.ranks_ = NormalScores.of(z)
        return self.ranks_.to_scores(z)

    def _layers_of(
        self, start: "MLPPredictor", X: FloatArray, targets: FloatArray
    ) -> list[FloatArray]:
        """Returns the layers of ``start`` with rows of 0 for new columns; takes over its scales.

        The last layer puts their outputs on a rising line through the targets.

        Raises:
            ValueError: ``start`` is of another shape, or X lacks columns.
        """
        own, given = (self.members, tuple(self.hidden)), (start.members, tuple(start.hidden))
        if own != given:
            raise ValueError(
                f"start must have members and hidden {own[0]} and {own[1]}, "
                f"got {given[0]} and {given[1]}"
            )
        known, columns = len(start.mean_), X.shape[1]
        if columns < known:
            raise ValueError(f"X must have the {known} columns of start first, got {columns}")
        self.mean_ = np.concatenate([start.mean_, X[:, known:].mean(axis=0)])
        self.scale_ = np.concatenate([start.scale_, _scale(X[:, known:])])
        line = _rising_line(start._outputs(X[:, :known]).mean(axis=0), targets)
        first, *rest, last = start.layers_
        added = np.zeros((self.members, columns - known, first.shape[2]))
        widened = np.concatenate([first[:, :-1], added, first[:, -1:]], axis=1)
        return [widened, *rest, _on_line(last, *line)]

    def _descend(
        self,
        layers: list[FloatArray],
        X: FloatArray,
        z: FloatArray,
        groups: IntArray,
        rng: np.random.Generator,
    ) -> None:
        from predictors.networks.perceptrons import fit_perceptrons
        from predictors.networks.training import Descent

        bags = bags_by_group(groups, self.members, rng)
        targets = self._targets(z)
        self.layers_, self.noise_ = layers, 0.0
        if np.ptp(z) == 0.0:  # one row or equal targets: nothing to learn
            return
        descent = Descent(self.epochs, _BATCH_ROWS, self.learning_rate, self.weight_decay)
        columns = self._standardised(X)
        self.layers_ = fit_perceptrons(layers, columns, targets, bags, self.loss, descent, rng)
        if self.loss != "mse":
            self._anchor(X, targets, bags)
        self._shrink(X, targets, bags)
        self.noise_ = _noise(self._outputs(X), targets, bags)

    def _anchor(self, X: FloatArray, targets: FloatArray, bags: BoolArray) -> None:
        """Puts each member's outputs on the scale of its targets, by its last layer."""
        last = self.layers_[-1]
        for member, outputs in enumerate(self._outputs(X)):
            line = _rising_line(outputs[bags[member]], targets[bags[member]])
            last[member] = _on_line(last[member], *line)

    def _shrink(self, X: FloatArray, targets: FloatArray, bags: BoolArray) -> None:
        """Puts all outputs on the one line that is best out of bag, where fits are less sure."""
        unseen = out_of_bag(self._outputs(X), bags)
        known = np.isfinite(unseen)
        if known.any():
            line = _rising_line(unseen[known], targets[known])
            self.layers_[-1] = _on_line(self.layers_[-1], *line)

    def _outputs(self, X: FloatArray) -> FloatArray:
        """(members, n) outputs on the scale of the scores."""
        parts = [
            _outputs(self.layers_, self._standardised(X[first : first + _ROWS_AT_ONCE]))
            for first in range(0, len(X), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts, axis=1)

    def _standardised(self, X: FloatArray) -> FloatArray:
        return np.asarray(np.clip((X - self.mean_) / self.scale_, -_CLIP, _CLIP))


def _outputs(layers: Sequence[FloatArray], rows: FloatArray) -> FloatArray:
    """(m, n) outputs for rows (n, d); the first layer of all members is one product."""
    first, *rest = layers
    members, _, units = first.shape
    joined = rows @ first[:, :-1].transpose(1, 0, 2).reshape(rows.shape[1], members * units)
    values = joined.reshape(len(rows), members, units).transpose(1, 0, 2) + first[:, -1:]
    for layer in rest:
        values = np.maximum(values, 0.0) @ layer[:, :-1] + layer[:, -1:]
    return np.asarray(values[..., 0])


def _scale(X: FloatArray) -> FloatArray:
    """(d,) standard deviations; infinite where a column never changes, so that it has no say."""
    deviation = X.std(axis=0)
    return np.where(deviation > 1e-12, deviation, np.inf)


def _rising_line(outputs: FloatArray, targets: FloatArray) -> tuple[float, float]:
    """Returns offset and slope of the line through (output, target) that does not turn them round.

    The slope is a quarter of the ratio of their deviations or more, and 1 where either is 0.
    """
    slope, deviations = 1.0, (float(outputs.std()), float(targets.std()))
    if min(deviations) > 1e-12:
        correlation = float(np.corrcoef(outputs, targets)[0, 1])
        slope = deviations[1] / deviations[0] * max(correlation, 0.25)
    return float(targets.mean() - slope * outputs.mean()), slope


def _on_line(last: FloatArray, offset: float, slope: float) -> FloatArray:
    """Returns a last layer (..., h + 1, 1) whose outputs are offset + slope * what they were."""
    moved = slope * last
    moved[..., -1, :] += offset
    return np.asarray(moved)


def _noise(members: FloatArray, targets: FloatArray, bags: BoolArray) -> float:
    """Returns the deviation that the members' disagreement does not explain.

    It is what is left of the squared error out of bag; of the error on seen rows where every
    member saw all.
    """
    unseen = out_of_bag(members, bags)
    known = np.isfinite(unseen)
    if not known.any():
        return float(np.sqrt(np.mean((targets - members.mean(axis=0)) ** 2)))
    error = float(np.mean((targets[known] - unseen[known]) ** 2))
    return float(np.sqrt(max(error - float(members.var(axis=0).mean()), 0.0)))

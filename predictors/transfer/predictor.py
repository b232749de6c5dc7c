"""The estimator. Letters: n rows, d columns, p columns of the base, b rows of the base."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from predictors.regressors import from_link, to_link, uses_logit
from predictors.transfer.anchor import Anchor
from predictors.transfer.base import frozen, read_base
from predictors.transfer.feature import fit_feature
from predictors.transfer.learner import FewRowsPredictor, fit_learner
from predictors.transfer.multitask import BaseRows, fit_multitask
from predictors.transfer.residual import fit_residual
from predictors.transfer.rows import TransferRows
from predictors.transfer.selection import Choice, choose_mode, out_of_fold_of
from predictors.transfer.warm import first_perceptron, fit_warm
from predictors.validation import group_labels

__all__ = ["TRANSFER_MODES", "TransferPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TRANSFER_MODES = ("auto", "feature", "residual", "warm", "multitask")
"""What ``TransferPredictor.mode`` can be."""


class FittedMode(Protocol):
    """What a mode has learned."""

    def predict(self, X: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns predictions and deviations (m,) on the link scale."""


class TransferPredictor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Learns new targets from few rows, starting from a base that predicts related ones.

    The case it is made for: accuracy in fp32 has been measured for many networks, accuracy in
    mixed number formats for few. The base is first moved to the level of the new targets (offset
    and slope); this alone is what fewer groups than folds leave. Beyond that, ``mode`` says what
    is learned:

    - ``feature``: the targets, from all columns and the base's prediction as one more;
    - ``residual``: the difference to the base;
    - ``warm``: a perceptron that goes on from the weights of the base's (needs torch);
    - ``multitask``: a Gaussian process over the rows of the base and the new ones;
    - ``auto``: the residual, or another of these if it errs less out of fold by more than one
      standard error; ``warm`` is not tried. It is mixed with the moved base: weight 0 unless it
      gains more than one standard error and ranks no worse out of fold, weight 1 from two.

    Args:
        base: Fitted, or a :class:`ColumnReader`; it reads the first ``base.n_features_in_``
            columns, all if it does not say. Its targets may have another scale. None learns the
            rows as they are, in any mode.
        learner: Unfitted, for ``feature`` and ``residual``; None for a :class:`FewRowsPredictor`.
        mode: One of :data:`TRANSFER_MODES`.
        base_rows: X (b, p) and y (b,) that the base was fitted on: ``multitask`` needs them, and
            ``warm`` where the base is no perceptron. None takes ``base.training_rows_`` if it has
            that.
        folds: Of the inner cross-validation, grouped.
        random_state: Seed of the default learner.

    Attributes:
        chosen_: The mode that was taken; "base" where nothing but the moved base is used.
        weight_: Of what was learned against the moved base, 0..1.
        out_of_fold_: (n,) predictions of rows by fits that never saw their group, on the scale of
            the targets; NaN where there was a single group.
        gain_: Reduction of the mean squared error out of fold against the moved base, on the link
            scale; NaN where it was not asked.
        gain_error_: Its standard error over groups.
        uses_residual_: Whether anything beyond the moved base is used.
    """

    def __init__(
        self,
        base: Any = None,
        learner: Any = None,
        *,
        mode: str = "auto",
        base_rows: tuple[FloatArray, FloatArray] | None = None,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.base = base
        self.learner = learner
        self.mode = mode
        self.base_rows = base_rows
        self.folds = folds
        self.random_state = random_state

    def __sklearn_clone__(self) -> Self:
        """Returns an unfitted copy that shares the base, which stays fitted."""
        copy = type(self)(**self.get_params(deep=False))
        copy.learner = None if self.learner is None else clone(self.learner)
        return copy

    def fit(self, X: FloatArray, y: FloatArray, groups: IntArray | None = None) -> Self:
        """Fits rows X (n, d) to targets y (n,); inner splits keep groups (n,) together.

        Raises:
            ValueError: An unknown mode, fewer than 2 folds, too few columns for the base, or what
                the mode needs is not there.
        """
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        self._check_parameters()
        self.base_ = frozen(self.base)
        self.logit_ = uses_logit(y)
        self._set_scale_of_base(X)
        rows = TransferRows(
            X, self._prior(X), to_link(y, logit=self.logit_), group_labels(len(y), groups)
        )
        self.anchor_ = Anchor.of(rows.prior, rows.z)
        if self.base_ is None:
            self._fit_plain(rows)
        else:
            self._fit_modes(rows, self._modes(X.shape[1]))
        self.uses_residual_ = self.weight_ > 0.0
        return self

    def predict(
        self, X: FloatArray, return_std: bool = False
    ) -> FloatArray | tuple[FloatArray, FloatArray]:
        """Returns predictions (n,), with standard deviations (n,) if asked for."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        z, deviation = self._predict_link(X, self._prior(X))
        y = from_link(z, logit=self.logit_)
        slope_of_link = y * (1.0 - y) if self.logit_ else np.ones_like(y)
        return (y, deviation * slope_of_link) if return_std else y

    def _predict_link(self, X: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Returns the mixture of moved base and what was learned: mean and deviation (n,)."""
        moved, spread = self.anchor_.moved(prior), np.full(len(X), self.anchor_.spread)
        if self.fitted_ is None:
            return moved, spread
        learned, deviation = self.fitted_.predict(X, prior)
        w = self.weight_
        if w == 1.0:
            return learned, deviation
        variance = w * deviation**2 + (1.0 - w) * (spread**2 + w * (learned - moved) ** 2)
        return w * learned + (1.0 - w) * moved, np.sqrt(variance)

    def _check_parameters(self) -> None:
        if self.mode not in TRANSFER_MODES:
            raise ValueError(f"mode must be one of {', '.join(TRANSFER_MODES)}, got {self.mode!r}")
        if self.folds < 2:
            raise ValueError(f"folds must be 2 or more, got {self.folds}")

    def _set_scale_of_base(self, X: FloatArray) -> None:
        """Notes whether the base predicts fractions, which are compared as logits."""
        raw = np.zeros(len(X)) if self.base_ is None else read_base(self.base_, X)
        fractions = bool((raw >= 0.0).all() and (raw <= 1.0).all())
        self.base_logit_ = self.logit_ and fractions and self.base_ is not None

    def _prior(self, X: FloatArray) -> FloatArray:
        """(n,) the base's prediction, as logits if it predicts fractions; 0 without a base."""
        if self.base_ is None:
            return np.zeros(len(X))
        return to_link(read_base(self.base_, X), logit=self.base_logit_)

    def _fit_plain(self, rows: TransferRows) -> None:
        learner = self._learner(rows.X.shape[1], ())

        def fit(part: TransferRows) -> FittedMode:
            return _WithoutPrior(fit_learner(learner, part.X, part.z, part.groups))

        unseen = out_of_fold_of(fit, rows, self.folds)
        self._take(rows, fit, Choice("plain", 1.0, np.nan, np.nan, unseen))

    def _fit_modes(
        self, rows: TransferRows, modes: dict[str, Callable[[TransferRows], FittedMode]]
    ) -> None:
        choice = choose_mode(modes, rows, self.folds, guarded=self.mode == "auto")
        self._take(rows, modes.get(choice.mode), choice)

    def _take(
        self,
        rows: TransferRows,
        fit: Callable[[TransferRows], FittedMode] | None,
        choice: Choice,
    ) -> None:
        self.chosen_, self.weight_ = choice.mode, choice.weight
        self.gain_, self.gain_error_ = choice.gain, choice.gain_error
        self.out_of_fold_ = from_link(choice.out_of_fold, logit=self.logit_)
        self.fitted_ = None if fit is None else fit(rows)

    def _modes(self, columns: int) -> dict[str, Callable[[TransferRows], FittedMode]]:
        """Returns how to fit each mode that is to be tried."""
        base_columns = int(getattr(self.base_, "n_features_in_", columns))
        learner = self._learner(columns, (base_columns, columns))
        modes: dict[str, Callable[[TransferRows], FittedMode]] = {
            "residual": lambda rows: fit_residual(learner, rows, same_scale=self.base_logit_),
            "feature": lambda rows: fit_feature(learner, rows),
        }
        base_rows = self._base_rows(columns)
        if base_rows is not None:
            task = BaseRows(base_rows[0], to_link(base_rows[1], logit=self.base_logit_))
            modes["multitask"] = lambda rows: fit_multitask(
                task, rows, same_scale=self.base_logit_
            )
        elif self.mode == "multitask":
            raise ValueError(
                "mode 'multitask' needs base_rows, the X and y that the base was fitted on"
            )
        if self.mode == "warm":
            start = first_perceptron(self.base_, base_rows, seed=self.random_state)
            modes["warm"] = lambda rows: fit_warm(start, rows)
        return modes if self.mode == "auto" else {self.mode: modes[self.mode]}

    def _learner(self, columns: int, ends: Sequence[int]) -> Any:
        if self.learner is not None:
            return self.learner
        return FewRowsPredictor(tuple(ends), random_state=self.random_state)

    def _base_rows(self, columns: int) -> tuple[FloatArray, FloatArray] | None:
        """Returns X (b, p) and y (b,) of the base, or None."""
        given = self.base_rows
        if given is None:
            given = getattr(self.base_, "training_rows_", None)
        if given is None:
            return None
        X, y = (np.asarray(each, dtype=np.float64) for each in given)
        if X.ndim != 2 or y.shape != X.shape[:1] or not 1 <= X.shape[1] <= columns:
            raise ValueError(
                f"base_rows must be X (b, p) with p of 1..{columns} columns and y (b,), "
                f"got shapes {X.shape} and {y.shape}"
            )
        if not (np.isfinite(X).all() and np.isfinite(y).all()):
            raise ValueError("base_rows must be finite")
        return X, y


class _WithoutPrior:
    """A learner that reads no base."""

    def __init__(self, learned: Any) -> None:
        self.learned = learned

    def predict(self, X: FloatArray, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        del prior
        z, deviation = self.learned.predict(X)
        return z, deviation

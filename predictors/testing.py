"""Conformance check for authors of predictors: being in the table means passing it.

It raises AssertionError with a sentence that says what does not hold, and returns nothing. What
scikit-learn asks of every estimator is checked by ``sklearn.utils.estimator_checks``.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from predictors.metrics import kendall_tau
from predictors.persistence import load_predictor, save_predictor

__all__ = ["check_predictor"]

FloatArray = NDArray[np.float64]

_ROWS = 120
_COLUMNS = 6
_LEAST_TAU = 0.6


def check_predictor(estimator: Any, *, seed: int = 0) -> None:
    """Checks a predictor on a synthetic set: accuracy adds up over columns on the logit scale.

    It fits with and without groups and leaves its parameters and its data alone; the same rows
    give the same predictions; standard deviations have the shape of the predictions; unseen rows
    are ranked well, also where targets are no fractions; reversed targets reverse the ranking; a
    clone is unfitted; what is saved and loaded predicts the same.

    Args:
        estimator: Of a class in :data:`predictors.PREDICTORS`; it is cloned, not fitted.
        seed: Of the set.
    """
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 3, (2 * _ROWS, _COLUMNS)).astype(np.float64)
    z = X @ np.linspace(0.2, 1.0, _COLUMNS) - 4.0 + rng.normal(0.0, 0.05, 2 * _ROWS)
    y = 1.0 / (1.0 + np.exp(-z))
    groups = np.arange(_ROWS) // 2
    train, test = slice(0, _ROWS), slice(_ROWS, None)

    fitted = _fitted(estimator, X[train], y[train], groups)
    again = _fitted(estimator, X[train], y[train], groups)
    predicted = fitted.predict(X[test])
    _require(_one_a_row(predicted, _ROWS), "predictions are not one finite number a row")
    _require(
        np.array_equal(again.predict(X[test]), predicted),
        "a clone fitted on the same rows predicts otherwise",
    )
    _require(
        bool(((predicted >= 0.0) & (predicted <= 1.0)).all()),
        "fractions are predicted outside 0..1",
    )
    _check_deviation(fitted, X[test], predicted)
    _check_ranking(y[test], predicted, "fractions")

    reversed_ = _fitted(estimator, X[train], 1.0 - y[train], None)
    _check_ranking(-y[test], reversed_.predict(X[test]), "reversed targets")
    scaled = _fitted(estimator, X[train], 100.0 + 10.0 * z[train], None)
    _check_ranking(z[test], scaled.predict(X[test]), "targets that are no fractions")

    _check_clone(fitted, X[test])
    _check_saving(fitted, X[train], y[train], groups, X[test])


def _fitted(estimator: Any, X: FloatArray, y: FloatArray, groups: Any) -> Any:
    before = X.copy(), y.copy()
    fitted = clone(estimator)
    params = repr(fitted.get_params())
    returned = fitted.fit(X, y) if groups is None else fitted.fit(X, y, groups=groups)
    _require(returned is fitted, "fit does not return the predictor")
    _require(repr(fitted.get_params()) == params, "fit changes parameters")
    _require(
        np.array_equal(X, before[0]) and np.array_equal(y, before[1]),
        "fit changes the rows it was given",
    )
    return fitted


def _check_deviation(fitted: Any, X: FloatArray, predicted: FloatArray) -> None:
    pair = fitted.predict(X, return_std=True)
    _require(
        isinstance(pair, tuple) and len(pair) == 2, "predict(return_std=True) returns no pair"
    )
    mean, deviation = pair
    _require(np.array_equal(mean, predicted), "return_std changes the predictions")
    _require(
        _one_a_row(deviation, len(X)) and bool((deviation >= 0.0).all()),
        "standard deviations are not one number a row, 0 or more",
    )


def _check_ranking(truth: FloatArray, predicted: FloatArray, what: str) -> None:
    tau = kendall_tau(truth, predicted)
    _require(
        tau >= _LEAST_TAU, f"{what} are ranked with a tau of {tau:.3f}, less than {_LEAST_TAU}"
    )


def _check_clone(fitted: Any, X: FloatArray) -> None:
    copy = clone(fitted)
    _require(repr(copy.get_params()) == repr(fitted.get_params()), "a clone has other parameters")
    try:
        copy.predict(X)
    except NotFittedError:
        return
    raise AssertionError("a clone predicts before it is fitted")


def _check_saving(
    fitted: Any, X: FloatArray, y: FloatArray, groups: NDArray[np.int64], unseen: FloatArray
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_predictor(Path(folder), fitted, X, y, groups)
        loaded = load_predictor(Path(folder))
    _require(type(loaded) is type(fitted), "it is loaded as another class")
    _require(
        bool(np.allclose(loaded.predict(unseen), fitted.predict(unseen), rtol=1e-6, atol=1e-6)),
        "what is loaded predicts otherwise",
    )


def _one_a_row(values: Any, rows: int) -> bool:
    """Returns whether values are a finite array (rows,)."""
    return (
        isinstance(values, np.ndarray)
        and values.shape == (rows,)
        and bool(np.isfinite(values).all())
    )


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(text)

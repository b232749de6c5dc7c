"""Estimates of rows that a table lacks, from those that it has, with an error that was checked.

Logarithms of latencies are a Gaussian process (Rasmussen and Williams 2006) over logarithms of
channels, pixels, arithmetic and memory traffic. What the process would say of a row without that
row follows from it in closed form (equation 5.12 there), so every row is cross-validated.
Letters: m rows known, q rows asked, d features, c key columns.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_solve
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.preprocessing import StandardScaler

from apqkit.cost.keys import KEY_COLUMNS, column
from apqkit.formats import FORMATS
from apqkit.types import FloatArray, IntArray

__all__ = ["Interpolator", "fit_interpolator", "key_features"]

_FITTED_ON = 300  # rows that length scale and noise are fitted on; all rows are predicted from
_FEW = 4  # rows, below which nothing can be validated
_UNSURE = 1.0  # relative error that is said then
_SMALLEST_ERROR = 1e-3


@dataclass(frozen=True)
class Interpolator:
    """A process fitted to the rows of one kind.

    Attributes:
        left_out_error: (m,) relative error of each row's estimate from all others.
    """

    left_out_error: FloatArray
    _scaler: Any
    _process: Any
    _mean: float
    _error_scale: float
    _least_error: float

    def predict(self, keys: IntArray) -> tuple[FloatArray, FloatArray]:
        """Returns estimates (q,) in ms and their relative standard errors (q,).

        Args:
            keys: (q, c) of the kind that was fitted.
        """
        features = self._scaler.transform(key_features(keys))
        logarithm, sd = self._process.predict(features, return_std=True)
        error = np.expm1(sd * self._error_scale)
        return np.exp(logarithm + self._mean), np.maximum(error, self._least_error)


def fit_interpolator(keys: IntArray, latency_ms: FloatArray) -> Interpolator:
    """Fits rows of one kind.

    Args:
        keys: (m, c) rows, m at least 1.
        latency_ms: (m,) positive.
    """
    scaler = StandardScaler().fit(key_features(keys))
    features = scaler.transform(key_features(keys))
    mean = float(np.log(latency_ms).mean())
    target = np.log(latency_ms) - mean
    process = _fitted(features, target)
    precision = np.diag(cho_solve((process.L_, True), np.eye(len(target))))
    left_out = process.alpha_.reshape(-1) / precision
    few = len(target) < _FEW
    error = np.full(len(target), _UNSURE) if few else np.expm1(np.abs(left_out))
    # The process' own idea of its errors, set to what leaving out rows shows.
    scale = float(np.sqrt(np.mean(left_out**2 * precision)))
    return Interpolator(error, scaler, process, mean, scale, _UNSURE if few else _SMALLEST_ERROR)


def _fitted(features: FloatArray, target: FloatArray) -> Any:
    """Returns a process over all rows whose parameters were fitted on some of them."""
    kernel = ConstantKernel(1.0, (1e-3, 1e4)) * Matern(5.0, (1e-1, 1e3), nu=1.5)
    kernel = kernel + WhiteKernel(1e-2, (1e-6, 1.0))
    spread = np.linspace(0, len(target) - 1, min(len(target), _FITTED_ON)).astype(np.int64)
    optimizer = None if len(target) < _FEW else "fmin_l_bfgs_b"
    first = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is fine
        first.fit(features[spread], target[spread])
    if len(spread) == len(target):
        return first
    whole = GaussianProcessRegressor(first.kernel_, alpha=1e-8, optimizer=None)
    return whole.fit(features, target)


def key_features(keys: IntArray) -> FloatArray:
    """(m, d) logarithms of what the time of a row follows."""
    get = {name: column(keys, name).astype(np.float64) for name in KEY_COLUMNS}
    inputs, hidden, outputs = (get[f"{name}_channels"] for name in ("in", "hidden", "out"))
    taps = np.maximum(get["kernel"], 1.0) ** 2
    read = np.maximum(get["in_height"] * get["in_width"], 1.0)
    written = read / np.maximum(get["stride"], 1.0) ** 2
    layer = written * outputs * taps * inputs / np.maximum(get["groups"], 1.0)
    expands = np.where(hidden > inputs, read * inputs, 0.0)
    block = hidden * (expands + written * (taps + outputs))
    arithmetic = np.maximum(np.where(hidden > 0, block, layer), 1.0)
    traffic = np.maximum(read * inputs + written * outputs + hidden * (read + written), 1.0)
    logarithms = (inputs + 1, hidden + 1, outputs + 1, taps, read, written, arithmetic, traffic)
    flags = ("activation", "squeeze_excite", "residual", "signed_input")
    bits = (_bits(column(keys, name)) for name in ("weight_format", "activation_format"))
    columns = [*(np.log(each) for each in logarithms), *(get[name] for name in flags), *bits]
    return np.stack(columns, axis=1)


def _bits(codes: IntArray) -> FloatArray:
    widths = np.array([*(each.bits for each in FORMATS.values()), 1.0])
    return np.asarray(np.log(widths[codes]))

"""Scores of candidates from scores of layers.  Letters: n candidates, L layers, F formats."""

from collections.abc import Sequence

import numpy as np

from predictors.zerocost.arrays import BoolArray, FloatArray, IntArray
from predictors.zerocost.errors import ProxyError

__all__ = ["assemble", "undefined_choices"]

_CHUNK = 4096  # rows: what is gathered at once stays in the cache


def assemble(
    layer_scores: FloatArray, format_index: IntArray, active: BoolArray | None = None
) -> FloatArray:
    """Returns the score of every candidate: the sum over its layers of the scores they chose.

    Args:
        layer_scores: (L, F) scores, such as a sensitivity of ``SENSITIVITIES``. NaN marks a format
            in which a layer has no score: a candidate that uses it scores NaN, all others are as
            without it. :func:`undefined_choices` names them.
        format_index: (n, L) integers, 0..F-1, the format of each layer; also where it is inactive.
        active: (n, L) which layers a candidate has; None for all.

    Returns:
        (n,) sums; 0 for a candidate without an active layer.

    Raises:
        ProxyError: Shapes that do not fit, indices that are no integers or out of range.

    >>> scores = np.array([[1.0, 2.0], [10.0, np.nan]])
    >>> assemble(scores, np.array([[0, 0], [1, 0], [1, 1]]))
    array([11., 12., nan])
    """
    scores = np.ascontiguousarray(layer_scores, dtype=np.float64)
    _check(scores, format_index, active)
    totals = np.empty(len(format_index))
    with np.errstate(invalid="ignore"):  # of inf and -inf the sum is NaN, as it should be
        for start in range(0, len(format_index), _CHUNK):
            rows = slice(start, start + _CHUNK)
            chosen = _chosen(scores, format_index[rows])
            if active is not None:
                chosen[~active[rows]] = 0.0
            chosen.sum(axis=1, out=totals[rows])
    return totals


def undefined_choices(
    layer_scores: FloatArray, layers: Sequence[str], formats: Sequence[str]
) -> list[str]:
    """Returns what has no finite score, as ``layer in format``, in the order of the layers.

    Args:
        layer_scores: (L, F) scores.
        layers: (L,) names.
        formats: (F,) names.

    Raises:
        ProxyError: The names are not as many as the scores.

    >>> undefined_choices(np.array([[1.0, np.nan]]), ["stem"], ["int8", "int4"])
    ['stem in int4']
    """
    if np.shape(layer_scores) != (len(layers), len(formats)):
        raise ProxyError(
            f"layer_scores must have shape {(len(layers), len(formats))} (layers, formats), "
            f"got {np.shape(layer_scores)}"
        )
    return [
        f"{layers[row]} in {formats[column]}"
        for row, column in np.argwhere(~np.isfinite(layer_scores)).tolist()
    ]


def _chosen(scores: FloatArray, format_index: IntArray) -> FloatArray:
    """Returns (n, L) the scores that were chosen: one gather from the flattened table."""
    layers, formats = scores.shape
    places = format_index.astype(np.int64) + np.arange(layers) * formats
    chosen: FloatArray = scores.ravel().take(places)
    return chosen


def _check(scores: FloatArray, format_index: IntArray, active: BoolArray | None) -> None:
    if scores.ndim != 2:
        raise ProxyError(f"layer_scores must have shape (layers, formats), got {scores.shape}")
    layers, formats = scores.shape
    if format_index.ndim != 2 or format_index.shape[1] != layers:
        raise ProxyError(
            f"format_index must have shape (candidates, {layers}), got {format_index.shape}"
        )
    if not np.issubdtype(format_index.dtype, np.integer):
        raise ProxyError(f"format_index must hold integers, got {format_index.dtype}")
    if format_index.size and not 0 <= format_index.min() <= format_index.max() < formats:
        row, column = np.argwhere((format_index < 0) | (format_index >= formats))[0]
        raise ProxyError(
            f"format_index[{row}, {column}] must be in 0..{formats - 1}, "
            f"got {format_index[row, column]}"
        )
    if active is None:
        return
    if active.shape != format_index.shape or active.dtype != np.bool_:
        raise ProxyError(
            f"active must be bool of shape {format_index.shape}, "
            f"got {active.dtype} of shape {active.shape}"
        )

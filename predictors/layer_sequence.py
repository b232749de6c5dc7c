"""Networks as sequences of their layers. Letters: n networks, l positions, s statistics."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["layer_columns", "pad_layers"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def layer_columns(values: FloatArray, present: BoolArray) -> FloatArray:
    """Returns columns (n, l * s + l): statistics position by position, then the mask.

    Args:
        values: (n, l, s) finite statistics; what absent layers hold is not read.
        present: (n, l) whether a network has a layer in a position.

    Raises:
        ValueError: The shapes do not fit.

    >>> layer_columns(np.array([[[1.0, 2.0], [9.0, 9.0]]]), np.array([[True, False]]))
    array([[1., 2., 0., 0., 1., 0.]])
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or np.shape(present) != values.shape[:2]:
        raise ValueError(
            f"values must have shape (networks, positions, statistics) and present the first two "
            f"of it, got {values.shape} and {np.shape(present)}"
        )
    mask = np.asarray(present, dtype=np.bool_)
    kept = np.where(mask[:, :, None], values, 0.0)
    return np.hstack([kept.reshape(len(kept), -1), mask.astype(np.float64)])


def pad_layers(
    sequences: Sequence[FloatArray], positions: int | None = None
) -> tuple[FloatArray, BoolArray]:
    """Returns statistics (n, l, s) filled up with 0, and which layers are there, (n, l).

    Args:
        sequences: For each network the statistics of its layers, (its layers, s).
        positions: l; None for the longest network's.

    Raises:
        ValueError: There is no network, the number of statistics differs, or a network has more
            layers than positions.
    """
    if not sequences:
        raise ValueError("sequences must hold at least one network")
    arrays = [np.asarray(each, dtype=np.float64) for each in sequences]
    shapes = {each.shape[1:] for each in arrays}
    if len(shapes) != 1 or arrays[0].ndim != 2:
        raise ValueError(
            f"sequences must hold arrays (layers, statistics) with as many statistics each, "
            f"got shapes {[each.shape for each in arrays]}"
        )
    longest = max(len(each) for each in arrays)
    if positions is not None and positions < longest:
        raise ValueError(f"positions must be {longest} or more, got {positions}")
    values = np.zeros((len(arrays), longest if positions is None else positions, *shapes.pop()))
    present = np.zeros(values.shape[:2], dtype=np.bool_)
    for row, each in enumerate(arrays):
        values[row, : len(each)] = each
        present[row, : len(each)] = True
    return values, present

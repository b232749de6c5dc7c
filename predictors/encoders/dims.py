"""What encoders read. Letters: n candidates, k dims."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["DimLike", "check_picks", "choice_shares"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class DimLike(Protocol):
    """A searchable decision."""

    @property
    def name(self) -> str:
        """Dotted: what is decided, then where, such as ``w_format.s2.b1.expand``."""

    @property
    def choices(self) -> Sequence[int | str]:
        """The values it can take."""

    @property
    def role(self) -> str:
        """``arch``, ``prune`` or ``quant``."""


def check_picks(dims: Sequence[DimLike], picks: IntArray, active: BoolArray) -> None:
    """Checks that candidates fit the dims.

    Args:
        dims: The k dims.
        picks: (n, k) indices of choices.
        active: (n, k).

    Raises:
        ValueError: A shape is wrong, or an active pick is no index of its dim's choices.
    """
    shapes = np.shape(picks), np.shape(active)
    if len(shapes[0]) != 2 or shapes[0][1] != len(dims) or shapes[1] != shapes[0]:
        raise ValueError(
            f"picks and active must both have shape (n, {len(dims)}), got {shapes[0]} "
            f"and {shapes[1]}"
        )
    counts = np.array([len(dim.choices) for dim in dims], dtype=np.int64)
    wrong = np.argwhere((picks < 0) | (picks >= counts))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"picks[{row}] has {picks[row, column]} for dim {dims[column].name!r}, "
            f"which has choices 0..{counts[column] - 1}"
        )


def choice_shares(dim: DimLike) -> FloatArray:
    """(choices,) numbers as a share of the largest; words by their place, the last being 1."""
    if all(isinstance(choice, int) for choice in dim.choices):
        values = np.array(dim.choices, dtype=np.float64)
        return np.asarray(values / max(values.max(), 1.0))
    return np.arange(1.0, len(dim.choices) + 1.0) / len(dim.choices)

"""What the modes of a transfer read. Letters: n rows, d columns."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TransferRows"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class TransferRows:
    """New rows on the link scale.

    Attributes:
        X: (n, d) all columns; those of the base come first.
        prior: (n,) what the base predicts.
        z: (n,) targets.
        groups: (n,) rows of one group share a number.
    """

    X: FloatArray
    prior: FloatArray
    z: FloatArray
    groups: IntArray

    def part(self, index: IntArray) -> "TransferRows":
        """Returns some of the rows."""
        return TransferRows(self.X[index], self.prior[index], self.z[index], self.groups[index])

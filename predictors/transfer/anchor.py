"""A base moved to the level of new targets: offset and slope. Letters: n rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Anchor"]

FloatArray = NDArray[np.float64]

_FLAT = 1e-6  # a slope that keeps the order of the base and says nothing else


@dataclass(frozen=True)
class Anchor:
    """A line through (prior, target).

    Attributes:
        offset: Where the prior is 0.
        slope: More than 0: a base is never turned round.
        spread: Standard deviation of the targets about the line.
    """

    offset: float
    slope: float
    spread: float

    @classmethod
    def of(cls, prior: FloatArray, z: FloatArray) -> "Anchor":
        """Returns the least-squares line of targets z (n,) on the prior (n,)."""
        centred = prior - prior.mean()
        variance = float(centred @ centred)
        slope = float(centred @ z) / variance if variance > 1e-12 * len(z) else 0.0
        slope = slope if slope > 0.0 else _FLAT
        offset = float(z.mean() - slope * prior.mean())
        return cls(offset, slope, float(np.std(z - offset - slope * prior)))

    def moved(self, prior: FloatArray) -> FloatArray:
        """Returns the prior (n,) at the level of the targets."""
        return np.asarray(self.offset + self.slope * prior)

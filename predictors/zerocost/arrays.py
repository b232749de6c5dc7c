"""Types of arrays, and arrays that nobody can write into by mistake."""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoolArray", "FloatArray", "IntArray", "fixed"]

BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]


def fixed(values: FloatArray | Iterable[float]) -> FloatArray:
    """Returns a float64 copy that is read-only: what reads statistics must not change them."""
    source = values if isinstance(values, np.ndarray) else list(values)
    array = np.array(source, dtype=np.float64)
    array.setflags(write=False)
    return array

"""Prediction intervals whose coverage does not rest on the model being right."""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["conformal_half_width"]


def conformal_half_width(residuals: NDArray[np.float64], coverage: float) -> float:
    """Returns the half-width that covers a new row with about the chance asked for.

    The ceil((m + 1) * coverage)-th smallest of m absolute residuals of rows that the model had
    not seen; infinite if m is too small for it. With residuals of one model on rows held out, the
    chance is met or exceeded (split conformal prediction, Vovk et al. 2005); with residuals of
    several folds, or for rows that were picked for their prediction, that is no promise.

    Args:
        residuals: (m,) truth minus prediction, out of fold; NaN is left out.
        coverage: In 0..1.

    Raises:
        ValueError: The coverage is out of range.

    >>> conformal_half_width(np.array([0.1, -0.3, 0.2, 0.4]), 0.8)
    0.4
    >>> conformal_half_width(np.array([0.1]), 0.9)
    inf
    """
    if not 0.0 <= coverage <= 1.0:
        raise ValueError(f"coverage must lie in 0..1, got {coverage}")
    sizes = np.sort(np.abs(residuals[~np.isnan(residuals)]))
    exact = (len(sizes) + 1) * coverage  # or a little more: 25 * 0.56 > 14
    place = max(math.ceil(exact - 1e-9), 1)
    return float(sizes[place - 1]) if place <= len(sizes) else math.inf

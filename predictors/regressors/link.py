"""The scale on which predictors fit: logits of fractions, everything else as it is."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

__all__ = ["from_link", "shift_off_fractions", "to_link", "uses_logit"]

FloatArray = NDArray[np.float64]

_EDGE = 5e-3  # accuracies are kept this far from 0 and 1 before the logit


def uses_logit(y: FloatArray) -> bool:
    """Returns whether targets are fractions, to be fitted on a logit scale."""
    return bool(np.min(y) >= 0.0 and np.max(y) <= 1.0 and np.ptp(y) > 0.0)


def to_link(y: FloatArray, *, logit: bool) -> FloatArray:
    """Returns targets on the scale that is fitted."""
    if not logit:
        return np.asarray(y, dtype=np.float64)
    inside = np.clip(y, _EDGE, 1.0 - _EDGE)
    return np.asarray(np.log(inside / (1.0 - inside)))


def from_link(z: FloatArray, *, logit: bool) -> FloatArray:
    """Returns what :func:`to_link` took."""
    return np.asarray(expit(z)) if logit else z


def shift_off_fractions(z: FloatArray) -> float:
    """Returns what to subtract from values (n,) so that no predictor takes them for fractions.

    What is on the link scale already must not be put on a logit scale again.
    """
    return float(np.max(z)) + 1.0

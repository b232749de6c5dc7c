"""How alike the features of layers are, and what that says about their importance.

Letters: b samples, L layers.
"""

import numpy as np
import torch
from torch import Tensor

from predictors.zerocost.arrays import FloatArray
from predictors.zerocost.errors import ProxyError

__all__ = ["alignment", "centred_gram", "orthogonality_weights", "suffix_means"]


def centred_gram(features: Tensor) -> Tensor:
    """Returns the Gram matrix of features whose mean over the samples is taken away.

    It equals H K H for the Gram matrix K of the features and H = I - 1/b, but loses no digits to
    a large mean.

    Args:
        features: (b, ...) floating numbers.

    Returns:
        (b, b) float64.
    """
    rows = features.reshape(len(features), -1)
    centred = rows - rows.mean(0)
    return (centred @ centred.T).double()


def alignment(grams: Tensor) -> FloatArray:
    """Returns linear centred kernel alignment, CKA, between all pairs of layers.

    Args:
        grams: (L, b, b) of :func:`centred_gram`, NaN for a layer that has none.

    Returns:
        (L, L) in 0..1, 1 on the diagonal; 0 where the features of a layer do not vary, NaN where
        it has none.
    """
    flat = grams.flatten(1)
    norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    units = flat / norms.where(norms != 0.0, 1.0)
    cosines: FloatArray = (units @ units.T).cpu().numpy()
    return cosines


def orthogonality_weights(cka: FloatArray, beta: float = 1.0) -> FloatArray:
    """Returns exp(-beta * gamma_l), gamma_l the sum of a layer's alignment with all others.

    Args:
        cka: (L, L) alignments.
        beta: How sharply weights differ, above 0; 1 and 10 are in use.

    Returns:
        (L,) weights in 0..1: layers whose features no other layer has weigh most.

    Raises:
        ProxyError: beta is not above 0.
    """
    if not beta > 0.0:
        raise ProxyError(f"beta must be above 0, got {beta}")
    gamma = cka.sum(axis=1) - cka.diagonal()
    weights: FloatArray = np.exp(-beta * gamma)
    return weights


def suffix_means(values: FloatArray) -> FloatArray:
    """Returns for each place the mean of the values there and after it.

    >>> suffix_means(np.array([1.0, 2.0, 6.0]))
    array([3., 4., 6.])
    """
    sums = np.cumsum(values[::-1])[::-1]
    means: FloatArray = sums / np.arange(len(values), 0, -1)
    return means

"""What formats do to weights.  Letters: L layers, F formats."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from predictors.zerocost.arrays import FloatArray, fixed
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.sqnr import MAX_SQNR_DB

__all__ = ["WeightErrors", "sqnr_db", "weight_errors"]


@dataclass(frozen=True, eq=False)
class WeightErrors:
    """Errors dW = Q(W) - W of each layer's weights W in each format Q; NaN where Q returns NaN.

    Attributes:
        sum_of_squares: (L, F) norm2(dW)**2.
        mean_square: (L, F) the same by the number of weights.
        sqnr_db: (L, F) 10 * log10(norm2(W)**2 / norm2(dW)**2) in dB, at most ``MAX_SQNR_DB``; NaN
            where all weights are 0 and the format changes them.
        gradient_products: (L, F) sum(g * dW), g the gradient of the loss: its change, to first
            order.
        squared_gradient_products: (L, F) sum((g * dW)**2).
    """

    sum_of_squares: FloatArray
    mean_square: FloatArray
    sqnr_db: FloatArray
    gradient_products: FloatArray
    squared_gradient_products: FloatArray


def weight_errors(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    quantize: Mapping[str, Callable[[Tensor], Tensor]],
) -> WeightErrors:
    """Returns the errors of each weight in each format.

    Args:
        weights: By name.
        gradients: Of the loss, same names and shapes.
        quantize: Format name to a function that returns a tensor as the format holds it; it may
            write into what it is given.

    Raises:
        ProxyError: A function returns no tensor, or one of another shape.
    """
    table = np.empty((5, len(weights), len(quantize)))
    with torch.no_grad():
        for row, (layer, weight) in enumerate(weights.items()):
            gradient = gradients[layer].double()
            for column, (name, function) in enumerate(quantize.items()):
                quantized = function(weight.clone())
                _check(quantized, weight, name, layer)
                error = quantized.double() - weight.double()
                table[:, row, column] = _measures(weight.double(), error, gradient)
    return WeightErrors(*(fixed(each) for each in table))


def _measures(weight: Tensor, error: Tensor, gradient: Tensor) -> tuple[float, ...]:
    squares = float(error.square().sum())
    products = gradient * error
    return (
        squares,
        squares / weight.numel(),
        sqnr_db(float(weight.square().sum()), squares),
        float(products.sum()),
        float(products.square().sum()),
    )


def sqnr_db(power: float, noise: float) -> float:
    """Returns the ratio in dB, at most ``MAX_SQNR_DB``; NaN for noise where there is no signal."""
    if noise == 0.0:
        return MAX_SQNR_DB
    if power == 0.0:
        return math.nan
    return min(10.0 * (math.log10(power) - math.log10(noise)), MAX_SQNR_DB)


def _check(quantized: object, weight: Tensor, name: str, layer: str) -> None:
    if not isinstance(quantized, Tensor):
        raise ProxyError(
            f"the format {name!r} must return a tensor for {layer!r}, "
            f"got {type(quantized).__name__}"
        )
    if quantized.shape != weight.shape:
        raise ProxyError(
            f"the format {name!r} must keep the shape {tuple(weight.shape)} of {layer!r}, "
            f"got {tuple(quantized.shape)}"
        )

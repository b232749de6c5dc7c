"""One door to fake quantization, whatever the family of the format."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from apqkit.errors import FormatError
from apqkit.formats import NumberFormat, format_named
from apqkit.quant.integer import fake_quantize_integer
from apqkit.quant.minifloat import fake_quantize_minifloat
from apqkit.quant.ranges import activation_scale, weight_scale

__all__ = ["fake_quantize", "gaussian_noise", "quantize_weight"]


def fake_quantize(
    x: Tensor,
    number_format: NumberFormat | str,
    *,
    scale: Tensor,
    zero_point: int = 0,
    axis: int | None = None,
    narrow_range: bool = False,
) -> Tensor:
    """Returns x as its quantized form would read, in fp32, with a straight-through gradient.

    Args:
        x: fp32 tensor of any shape.
        number_format: A format or its name.
        scale: Positive; shape () or broadcastable to x, or (x.shape[axis],) with ``axis``.
        zero_point: Integer level that stands for 0; integers only.
        axis: Axis along which a one-dimensional scale runs.
        narrow_range: Drop the lowest level of a signed integer, so that levels are symmetric.

    Raises:
        FormatError: x is not fp32, or the format has no fake quantizer.
    """
    number_format = (
        format_named(number_format) if isinstance(number_format, str) else number_format
    )
    if x.dtype != torch.float32:
        raise FormatError(f"fake_quantize takes a float32 tensor, got {x.dtype}")
    if number_format.is_fp32:
        return x
    if axis is not None:
        scale = scale.view([-1 if each == axis % x.dim() else 1 for each in range(x.dim())])
    if number_format.family == "float":
        return fake_quantize_minifloat(x, scale, number_format)
    if number_format.family == "int":
        highest = number_format.highest_level
        narrow = narrow_range and number_format.signed
        lowest = -highest if narrow else number_format.lowest_level
        return fake_quantize_integer(x, scale, zero_point, lowest, highest)
    raise FormatError(f"format {number_format.name!r} has no fake quantizer")


def quantize_weight(weight: Tensor, number_format: NumberFormat) -> Tensor:
    """Returns weights fake-quantized per output channel, symmetric, in narrow range.

    The range follows the weights at hand; it takes no gradient.
    """
    if number_format.is_fp32:
        return weight
    scale = weight_scale(weight.detach(), number_format)
    return fake_quantize(weight, number_format, scale=scale, narrow_range=True)


@lru_cache(maxsize=256)
def gaussian_noise(name: str, *, signed: bool = True) -> float:
    """Returns the root mean squared error of a format on a unit Gaussian (rectified if unsigned).

    It is measured through the real quantizer and range rule on 4,095 quantiles, relative to the
    root mean square of the values. 0 for fp32.

    >>> gaussian_noise("int8") < gaussian_noise("int4") < gaussian_noise("int3")
    True
    """
    number_format = format_named(name).for_sign(signed=signed)
    if number_format.is_fp32:
        return 0.0
    probabilities = torch.from_numpy((np.arange(4095) + 0.5) / 4095)
    values = torch.special.ndtri(probabilities).float()
    values = values if signed else values.clamp(min=0.0)
    scale = activation_scale(values, number_format, signed=signed)
    error = fake_quantize(values, number_format, scale=scale, narrow_range=signed) - values
    return float(error.square().mean().sqrt() / values.square().mean().sqrt())

"""How wide a quantizer's range is: the scale for a tensor in a format.

Low-bit integers and fp4 clip at a multiple of the root mean square, since the few values beyond
cost less than coarser steps for all others; from 7 bits on, and for fp8, the largest magnitude is
kept. All rules scale with the tensor, so folding a batch norm into weights changes no level.
"""

import torch
from torch import Tensor

from apqkit.formats import SMALLEST_SCALE, NumberFormat

__all__ = [
    "activation_scale",
    "clip_multiple",
    "params_of_range",
    "weight_scale",
]

# Multiples of the root mean square, by bits, chosen on digits. On a Gaussian (rectified if
# unsigned) their error exceeds that of the best multiple by at most 1 % for int2 to int4, uint4,
# uint5 and fp4, by 6 to 10 % for int5, uint2, uint3 and uint6, and by 15 % for int6.
_SIGNED_CLIP = {2: 1.22, 3: 1.95, 4: 2.6, 5: 3.3, 6: 4.0}
_UNSIGNED_CLIP = {2: 2.28, 3: 3.1, 4: 4.0, 5: 4.8, 6: 5.6}
_FP4_SIGNED_CLIP = 3.0
_FP4_UNSIGNED_CLIP = 4.5


def weight_scale(weight: Tensor, number_format: NumberFormat) -> Tensor:
    """Returns one scale per output channel, which no other channel sways.

    Args:
        weight: Output channels first.
        number_format: A signed format other than fp32.

    Returns:
        Tensor of shape (channels, 1, ...), broadcastable to the weight.
    """
    axes = tuple(range(1, weight.dim()))
    largest = weight.abs().amax(dim=axes, keepdim=True)
    clip = clip_multiple(number_format, signed=True)
    if clip is not None:
        rms = weight.square().mean(dim=axes, keepdim=True).sqrt()
        largest = torch.minimum(largest, clip * rms)
    return (largest / number_format.max_value).clamp(min=SMALLEST_SCALE)


def activation_scale(x: Tensor, number_format: NumberFormat, *, signed: bool) -> Tensor:
    """Returns one scale for a whole tensor.

    Args:
        x: Any shape.
        number_format: A format other than fp32; for integers the twin of the right sign.
        signed: Whether x can be negative.

    Returns:
        Tensor of shape ().
    """
    largest = torch.maximum(x.amax(), -x.amin()) if signed else x.amax()
    clip = clip_multiple(number_format, signed=signed)
    if clip is not None:
        rms = torch.linalg.vector_norm(x) / x.numel() ** 0.5
        largest = torch.minimum(largest, clip * rms)
    return (largest / number_format.max_value).clamp(min=SMALLEST_SCALE)


def params_of_range(
    low: Tensor,
    high: Tensor,
    number_format: NumberFormat,
    *,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """Returns scales and zero points by which a format just holds ranges.

    Symmetric: the largest magnitude is the format's largest value, and 0 stands for 0. Affine,
    integers only: lowest and highest level are the ends of the range, which is stretched to 0, so
    that a level stands for 0 exactly.

    Args:
        low: (r,) lowest values.
        high: (r,) highest values; negative values count for nothing in an unsigned format.
        number_format: A format with scales.
        symmetric: Which of the two.

    Returns:
        (r,) scales, at least 1e-8, and (r,) zero points.
    """
    if symmetric:
        largest = torch.maximum(high, -low) if number_format.signed else high
        scale = (largest / number_format.max_value).clamp(min=SMALLEST_SCALE)
        return scale, torch.zeros_like(scale)
    lowest, highest = number_format.lowest_level, number_format.highest_level
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    steps = highest - lowest
    scale = (high / steps - low / steps).clamp(min=SMALLEST_SCALE)
    return scale, (lowest - torch.round(low / scale)).clamp(lowest, highest)


def clip_multiple(number_format: NumberFormat, *, signed: bool) -> float | None:
    """Returns how many root mean squares the range may reach; None where it has no such limit."""
    if number_format.family == "int":
        return (_SIGNED_CLIP if signed else _UNSIGNED_CLIP).get(number_format.bits)
    if number_format.bits == 4:
        return _FP4_SIGNED_CLIP if signed else _FP4_UNSIGNED_CLIP
    return None

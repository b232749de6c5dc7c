"""How wide a quantizer's range is: the scale for a tensor in a format.

Low-bit integers and fp4 clip at a multiple of the root mean square, since the few values beyond
cost less than coarser steps for all others; from 7 bits on, and for fp8, the largest magnitude is
kept. All rules scale with the tensor, so folding a batch norm into weights changes no level.
"""

import torch
from torch import Tensor

from apqkit.formats import NumberFormat

__all__ = ["activation_scale", "weight_scale"]

# Multiples of the root mean square, by bits, chosen on digits. On a Gaussian (rectified if
# unsigned) their error exceeds that of the best multiple by at most 1 % for int2 to int4, uint4,
# uint5 and fp4, by 6 to 10 % for int5, uint2, uint3 and uint6, and by 15 % for int6.
_SIGNED_CLIP = {2: 1.22, 3: 1.95, 4: 2.6, 5: 3.3, 6: 4.0}
_UNSIGNED_CLIP = {2: 2.28, 3: 3.1, 4: 4.0, 5: 4.8, 6: 5.6}
_FP4_SIGNED_CLIP = 3.0
_FP4_UNSIGNED_CLIP = 4.5
_SMALLEST_SCALE = 1e-8  # an all-zero tensor must not divide by zero


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
    clip = _clip_multiple(number_format, signed=True)
    if clip is not None:
        rms = weight.square().mean(dim=axes, keepdim=True).sqrt()
        largest = torch.minimum(largest, clip * rms)
    return (largest / number_format.max_value).clamp(min=_SMALLEST_SCALE)


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
    clip = _clip_multiple(number_format, signed=signed)
    if clip is not None:
        rms = torch.linalg.vector_norm(x) / x.numel() ** 0.5
        largest = torch.minimum(largest, clip * rms)
    return (largest / number_format.max_value).clamp(min=_SMALLEST_SCALE)


def _clip_multiple(number_format: NumberFormat, *, signed: bool) -> float | None:
    if number_format.family == "int":
        return (_SIGNED_CLIP if signed else _UNSIGNED_CLIP).get(number_format.bits)
    if number_format.bits == 4:
        return _FP4_SIGNED_CLIP if signed else _FP4_UNSIGNED_CLIP
    return None

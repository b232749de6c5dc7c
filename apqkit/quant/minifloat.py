"""Minifloat fake quantization by adding and taking away a large number, bit-exact in one pass."""

from typing import Any

import torch
from torch import Tensor

from apqkit.formats import NumberFormat

__all__ = ["fake_quantize_minifloat", "round_to_minifloat"]

_FP32_MANTISSA_BITS = 23
_FP32_BIAS = 127
_ONE_AND_A_HALF = 0x400000  # mantissa field of 1.5


def round_to_minifloat(x: Tensor, number_format: NumberFormat) -> Tensor:
    """Returns x rounded to the nearest value of a minifloat, ties to even.

    Adding u = 1.5 * 2^(E + 23 - m) moves the last mantissa bit that the format keeps to the last
    bit of the fp32 sum, so the hardware rounds there; E is the exponent of x, at least that of the
    format's smallest normal value, so subnormals come out right too.

    Args:
        x: fp32 tensor of any shape.
        number_format: A format of the float family under 32 bits.

    Returns:
        Tensor like x. Values beyond the largest saturate, infinities too; NaN stays NaN, also for
        formats that cannot hold it; zeros keep their sign.
    """
    magnitude = x.abs().clamp_(max=number_format.max_value)
    exponent = magnitude.view(torch.int32) >> _FP32_MANTISSA_BITS
    exponent.clamp_(min=number_format.min_exponent + _FP32_BIAS)
    exponent.add_(_FP32_MANTISSA_BITS - number_format.mantissa_bits)
    pusher = exponent.bitwise_left_shift_(_FP32_MANTISSA_BITS).bitwise_or_(_ONE_AND_A_HALF)
    pushed = pusher.view(torch.float32)
    return magnitude.add_(pushed).sub_(pushed).copysign_(x)


class _FakeQuantizeMinifloat(torch.autograd.Function):
    """Straight-through inside the largest value, zero gradient where the value saturated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, number_format: NumberFormat) -> Tensor:
        scaled = torch.div(x, scale)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scaled.abs() <= number_format.max_value)
        return round_to_minifloat(scaled, number_format).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def fake_quantize_minifloat(x: Tensor, scale: Tensor, number_format: NumberFormat) -> Tensor:
    """Returns x rounded to values of a minifloat times a scale.

    Args:
        x: fp32 tensor of any shape.
        scale: Positive, broadcastable to x.
        number_format: A format of the float family under 32 bits.

    Returns:
        Tensor like x. The gradient passes to x alone: 1 where abs(x / scale) is at most the
        format's largest value, else 0.
    """
    return _FakeQuantizeMinifloat.apply(x, scale, number_format)  # type: ignore[no-any-return]

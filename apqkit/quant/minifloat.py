"""Minifloat fake quantization by adding and taking away a large number, bit-exact in one pass."""

from typing import Any

import torch
from torch import Tensor

from apqkit.formats import NumberFormat
from apqkit.quant.rounding import just_above, pass_within, round_in_place

__all__ = ["fake_quantize_minifloat", "round_to_bfloat16", "round_to_minifloat"]

_FP32_MANTISSA_BITS = 23
_EXPONENT_FIELD = 0x7F800000


def round_to_minifloat(
    x: Tensor, number_format: NumberFormat, generator: torch.Generator | None = None
) -> Tensor:
    """Returns x rounded to the nearest value of a minifloat, ties to even.

    Adding 1.5 * 2^(E + 23 - m) moves the last mantissa bit that the format keeps to the last bit
    of the fp32 sum, so the hardware rounds there; E is the exponent of x, at least that of the
    format's smallest normal value, so subnormals come out right too.

    Args:
        x: fp32 tensor of any shape.
        number_format: A float of at most 8 bits, or a block format of such floats.
        generator: Rounds at random if given (see :func:`apqkit.quant.rounding.round_in_place`).

    Returns:
        Tensor like x. Values beyond the largest saturate, infinities too; NaN stays NaN, also for
        formats that cannot hold it; zeros keep their sign.
    """
    largest = number_format.max_value
    return _round_clamped(x.clamp(-largest, largest), x, number_format, generator)


def _round_clamped(
    values: Tensor, signs: Tensor, number_format: NumberFormat, generator: torch.Generator | None
) -> Tensor:
    """Rounds values within the format's range in place; zeros take their sign from ``signs``."""
    binade = values.view(torch.int32).bitwise_and(_EXPONENT_FIELD).view(torch.float32)
    binade.clamp_(min=2.0**number_format.min_exponent)
    if generator is not None:
        step = binade.mul_(2.0**-number_format.mantissa_bits)
        steps = values.div_(step).abs_()
        return round_in_place(steps, generator).mul_(step).copysign_(signs)
    # 1.5 and not 1, so that a negative value leaves the sum in the same binade.
    pusher = binade.mul_(1.5 * 2.0 ** (_FP32_MANTISSA_BITS - number_format.mantissa_bits))
    return values.add_(pusher).sub_(pusher).copysign_(signs)


class _FakeQuantizeMinifloat(torch.autograd.Function):
    """Straight-through inside the largest value, zero gradient where the value saturated."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        number_format: NumberFormat,
        generator: torch.Generator | None,
    ) -> Tensor:
        scaled, largest = torch.div(x, scale), number_format.max_value
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scaled)
            ctx.largest = largest
            values = scaled.clamp(-largest, largest)
        else:
            values = scaled.clamp_(-largest, largest)
        return _round_clamped(values, x, number_format, generator).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scaled,) = ctx.saved_tensors
        above = just_above(ctx.largest)
        return pass_within(gradients[0], scaled, -above, above), None, None, None


def fake_quantize_minifloat(
    x: Tensor,
    scale: Tensor,
    number_format: NumberFormat,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns x rounded to values of a minifloat times a scale.

    Args:
        x: fp32 tensor of any shape.
        scale: Positive, broadcastable to x.
        number_format: A float of at most 8 bits.
        generator: Rounds at random if given.

    Returns:
        Tensor like x. The gradient passes to x alone: 1 where abs(x / scale) is at most the
        format's largest value, else 0.
    """
    return _FakeQuantizeMinifloat.apply(x, scale, number_format, generator)  # type: ignore[no-any-return]


class _RoundToBfloat16(torch.autograd.Function):
    """Straight-through: its largest value is that of fp32, but for rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, largest: float) -> Tensor:
        return x.clamp(-largest, largest).to(torch.bfloat16).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


def round_to_bfloat16(x: Tensor, number_format: NumberFormat) -> Tensor:
    """Returns x rounded to bfloat16, ties to even, saturating; the gradient passes unchanged."""
    return _RoundToBfloat16.apply(x, number_format.max_value)  # type: ignore[no-any-return]

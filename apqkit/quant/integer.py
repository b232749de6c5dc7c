"""Integer fake quantization: the value that an integer tensor stands for, in fp32.

The one convention (that of ONNX QuantizeLinear): q = clamp(rint(x / s) + z, lowest, highest) and
x_hat = (q - z) * s. Ties round to even, and rounding comes before z is added.
"""

from typing import Any

import torch
from torch import Tensor

from apqkit.formats import NumberFormat
from apqkit.quant.rounding import pass_within, round_in_place

__all__ = ["fake_quantize_integer", "integer_levels"]


class _FakeQuantizeInteger(torch.autograd.Function):
    """Straight-through inside the levels, zero gradient where the value was clipped."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | int,
        levels: tuple[int, int] | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        ctx.levels = levels
        shifted = isinstance(zero_point, Tensor) or zero_point != 0
        rounded = round_in_place(torch.div(x, scale), generator)
        if shifted:
            rounded.add_(zero_point)
        if levels is None:
            clamped = rounded
        elif ctx.needs_input_grad[0]:
            ctx.save_for_backward(rounded)
            clamped = rounded.clamp(*levels)
        else:
            clamped = rounded.clamp_(*levels)
        if shifted:
            clamped.sub_(zero_point)
        return clamped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.levels is None:
            return gradients[0], None, None, None, None
        (rounded,) = ctx.saved_tensors
        lowest, highest = ctx.levels
        passed = pass_within(gradients[0], rounded, lowest - 0.5, highest + 0.5)
        return passed, None, None, None, None


def fake_quantize_integer(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    levels: tuple[int, int] | None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns x rounded to integer levels times a scale.

    Args:
        x: fp32 tensor of any shape.
        scale: Positive, broadcastable to x.
        zero_point: Level that stands for 0; a tensor must be broadcastable to x.
        levels: Lowest and highest level; None if no value of x lies beyond them.
        generator: Rounds at random if given (see :func:`apqkit.quant.rounding.round_in_place`).

    Returns:
        Tensor like x. The gradient passes to x alone: 1 where the rounded level lies inside
        the levels, 0 where it was clipped. NaN stays NaN.
    """
    return _FakeQuantizeInteger.apply(x, scale, zero_point, levels, generator)  # type: ignore[no-any-return]


def integer_levels(number_format: NumberFormat, *, narrow_range: bool = False) -> tuple[int, int]:
    """Returns the lowest and the highest level of an integer format.

    Args:
        number_format: Of the int family.
        narrow_range: Drop the lowest level if signed, so that levels are symmetric.
    """
    highest = number_format.highest_level
    if narrow_range and number_format.signed:
        return -highest, highest
    return number_format.lowest_level, highest

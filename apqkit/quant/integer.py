"""Integer fake quantization: the value that an integer tensor stands for, in fp32.

The one convention (that of ONNX QuantizeLinear): q = clamp(rint(x / s) + z, lowest, highest) and
x_hat = (q - z) * s. Ties round to even, and rounding comes before z is added.
"""

from typing import Any

import torch
from torch import Tensor

from apqkit.formats import NumberFormat

__all__ = ["fake_quantize_integer", "integer_step"]

_INT8_MAX = 127


class _FakeQuantizeInteger(torch.autograd.Function):
    """Straight-through inside the levels, zero gradient where the value was clipped."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: int, lowest: int, highest: int
    ) -> Tensor:
        rounded = torch.div(x, scale).round_()
        if zero_point:
            rounded.add_(zero_point)
        levels = rounded.clamp(lowest, highest)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(levels == rounded)
        if zero_point:
            levels.sub_(zero_point)
        return levels.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


def fake_quantize_integer(
    x: Tensor, scale: Tensor, zero_point: int, lowest: int, highest: int
) -> Tensor:
    """Returns x rounded to integer levels times a scale.

    Args:
        x: fp32 tensor of any shape.
        scale: Positive, broadcastable to x.
        zero_point: Level that stands for 0.
        lowest: Lowest level.
        highest: Highest level.

    Returns:
        Tensor like x. The gradient passes to x alone: 1 where the rounded level lies inside
        ``lowest..highest``, 0 where it was clipped. NaN stays NaN.
    """
    return _FakeQuantizeInteger.apply(x, scale, zero_point, lowest, highest)  # type: ignore[no-any-return]


def integer_step(number_format: NumberFormat) -> float | None:
    """Returns the step, in scales, of 8-bit integers that hold a signed format's values exactly.

    It is 1 for integers and the smallest positive value for floats: fp4 is 0 .5 1 1.5 2 3 4 6, so
    12 steps of 1/2 hold it. None for a format that spans too much, such as fp8.

    >>> from apqkit.formats import format_named
    >>> integer_step(format_named("fp4_e2m1"))
    0.5
    """
    if number_format.family == "int":
        step = 1.0
    elif number_format.family == "float":
        step = 2.0 ** (number_format.min_exponent - number_format.mantissa_bits)
    else:
        return None
    return step if number_format.max_value <= _INT8_MAX * step else None

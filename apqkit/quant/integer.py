"""Integer fake quantization: the value that an integer tensor stands for, in fp32.

The one convention (that of ONNX QuantizeLinear): q = clamp(rint(x / s) + z, lowest, highest) and
x_hat = (q - z) * s. Ties round to even, and rounding comes before z is added.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["fake_quantize_integer"]


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

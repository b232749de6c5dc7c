"""Quantizers whose ranges train: learned step sizes (LSQ), learned clips (PACT), and DoReFa."""

import math
from typing import Any

import torch
from torch import Tensor

from apqkit.errors import FormatError
from apqkit.formats import SMALLEST_SCALE, NumberFormat, format_named
from apqkit.quant.integer import integer_levels
from apqkit.quant.qparams import Granularity, rows_of
from apqkit.quant.quantize import spread

__all__ = ["dorefa_weight", "lsq", "lsq_gradient_scale", "lsq_step", "pact"]


class _Lsq(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        zero_point: Tensor,
        levels: tuple[int, int],
        gradient_scale: float,
    ) -> Tensor:
        scaled = torch.div(x, step)
        rounded = torch.round(scaled) + zero_point
        level = rounded.clamp(*levels) - zero_point
        inside = rounded == rounded.clamp(*levels)
        ctx.save_for_backward(inside, torch.where(inside, level - scaled, level), step, zero_point)
        ctx.gradient_scale = gradient_scale
        output: Tensor = level * step
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, slope, step, zero_point = ctx.saved_tensors
        (gradient,) = gradients
        of_x = gradient * inside
        of_step = (gradient * slope).mul_(ctx.gradient_scale).sum_to_size(step.shape)
        of_zero = None
        if ctx.needs_input_grad[2]:
            clipped = (gradient * ~inside).mul_(-step * ctx.gradient_scale)
            of_zero = clipped.sum_to_size(zero_point.shape)
        return of_x, of_step, of_zero, None, None


def lsq(
    x: Tensor,
    step: Tensor,
    format: NumberFormat | str,  # noqa: A002 - as in fake_quantize
    *,
    zero_point: Tensor | None = None,
    axis: int | None = None,
    narrow_range: bool = False,
    gradient_scale: float = 1.0,
) -> Tensor:
    """Returns x fake-quantized to integers with gradients for x, the step and the zero point.

    With v = x / step + zero_point and levels n to p, the gradient of the step is rint(v) - v where
    the rounded level lies in n to p, and the level less the zero point where it was clipped, times
    ``gradient_scale``; that of the zero point is -step where it was clipped, times the same.
    Source: Esser et al. 2020 (LSQ); what counts as inside as in torch's own learnable quantizer.

    Args:
        x: fp32 tensor of any shape.
        step: Positive; () or (x.shape[axis],).
        format: An integer format or its name.
        zero_point: Whole levels shaped as the step; None for 0.
        axis: Axis along which steps run.
        narrow_range: Drop the lowest level of a signed integer.
        gradient_scale: See :func:`lsq_gradient_scale`.

    Raises:
        FormatError: The format is no integer.
    """
    number_format = _integer(format, "lsq")
    zeros = torch.zeros_like(step.detach()) if zero_point is None else zero_point
    levels = integer_levels(number_format, narrow_range=narrow_range)
    steps = spread(step, x.shape, axis, None)
    return _Lsq.apply(x, steps, spread(zeros, x.shape, axis, None), levels, gradient_scale)  # type: ignore[no-any-return]


def lsq_step(x: Tensor, format: NumberFormat | str, *, axis: int | None = None) -> Tensor:  # noqa: A002
    """Returns the step to begin with, 2 * mean(abs(x)) / sqrt(p), () or (x.shape[axis],)."""
    number_format = _integer(format, "lsq")
    rows, shape = rows_of(x.detach().abs(), Granularity(axis))
    mean = rows.sum(dim=1) / max(1, rows.shape[1])
    root = math.sqrt(number_format.highest_level)
    return (2.0 * mean / root).clamp_(min=SMALLEST_SCALE).reshape(shape)


def lsq_gradient_scale(count: int, format: NumberFormat | str) -> float:  # noqa: A002
    """Returns 1 / sqrt(count * p), which keeps steps from learning too fast.

    Args:
        count: Values that share the step: weights, or features of one sample for activations.
        format: An integer format or its name.
    """
    return float((max(1, count) * _integer(format, "lsq").highest_level) ** -0.5)


class _Pact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clip_value: Tensor, highest: int) -> Tensor:
        above = x >= clip_value
        ctx.save_for_backward(above, (x >= 0) & ~above)
        step = clip_value / highest
        level = torch.round(x.clamp(min=0.0) / step).clamp_(max=highest)
        return level * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        above, inside = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * inside, (gradient * above).sum(), None


def pact(x: Tensor, clip_value: Tensor, format: NumberFormat | str) -> Tensor:  # noqa: A002
    """Returns activations clipped to 0..clip_value and rounded, with a gradient for the clip.

    It is 1 where x >= clip_value, 0 elsewhere; that of x is 1 from 0 up to the clip. Add a penalty
    on the square of ``clip_value`` to the loss. Source: Choi et al. 2018 (PACT).

    Args:
        x: fp32 tensor of any shape.
        clip_value: () positive; 10 is a usual start.
        format: An unsigned integer format or its name.

    Raises:
        FormatError: The format is no unsigned integer.
    """
    number_format = _integer(format, "pact")
    if number_format.signed:
        raise FormatError(f"pact takes an unsigned integer format, got {number_format.name}")
    return _Pact.apply(x, clip_value, number_format.highest_level)  # type: ignore[no-any-return]


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def dorefa_weight(weight: Tensor, bits: int) -> Tensor:
    """Returns weights as DoReFa holds them: 2^bits values evenly from -1 to 1, without 0.

    2 * Q(tanh(w) / (2 * max(abs(tanh(w)))) + 1/2) - 1 with Q(u) = rint((2^bits - 1) * u) /
    (2^bits - 1); the maximum runs over the whole tensor. Rounding passes gradients straight
    through. Source: Zhou et al. 2016 (DoReFa-Net).

    Args:
        weight: fp32 tensor of any shape.
        bits: 2 to 8.

    Raises:
        FormatError: Other bits.
    """
    if not 2 <= bits <= 8:
        raise FormatError(f"dorefa_weight takes 2 to 8 bits, got {bits}")
    squashed = torch.tanh(weight)
    largest = squashed.abs().amax().clamp(min=SMALLEST_SCALE)
    steps = (1 << bits) - 1
    level: Tensor = _RoundThrough.apply(steps * (squashed / (2.0 * largest) + 0.5))
    return 2.0 * level / steps - 1.0


def _integer(format: NumberFormat | str, where: str) -> NumberFormat:  # noqa: A002
    number_format = format_named(format) if isinstance(format, str) else format
    if number_format.family != "int":
        raise FormatError(f"{where} takes an integer format, got {number_format.name}")
    return number_format

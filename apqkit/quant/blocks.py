"""Block formats: runs of small values, each run with a scale of its own along one axis.

MX formats (OCP Microscaling Formats 1.0) have blocks of 32 and power-of-two scales, chosen by the
floor rule: 2^(floor(log2 of the largest magnitude) - exponent of the element's largest value).
nvfp4 has blocks of 16 with fp8_e4m3 scales, and one fp32 scale for the whole tensor.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apqkit.formats import NumberFormat, format_named
from apqkit.quant.minifloat import round_to_minifloat
from apqkit.quant.rounding import just_above, pass_within, round_in_place

__all__ = ["fake_quantize_blocks", "tensor_scale"]

_MXINT8_STEPS = 64  # steps of mxint8 to a whole number
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -127, 127  # of e8m0
_SMALLEST_SCALE = 1e-30  # keeps the largest values of a tensor from underflowing to zero


def fake_quantize_blocks(
    x: Tensor,
    number_format: NumberFormat,
    *,
    axis: int = -1,
    scale: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns x as a block format holds it, in fp32.

    Args:
        x: fp32 tensor with at least one axis; finite.
        number_format: Of the mx family.
        axis: Axis along which blocks run; the last block may be shorter.
        scale: () scale of the whole tensor, nvfp4 only; None takes :func:`tensor_scale` of x.
        generator: Rounds values at random if given; scales never.

    Returns:
        Tensor like x. The gradient passes to x alone: 1 where a value fits its block's range, 0
        where it saturated.
    """
    if number_format.scale_format != "e8m0" and scale is None:
        scale = tensor_scale(x.detach(), number_format)
    return _FakeQuantizeBlocks.apply(x, number_format, axis, scale, generator)  # type: ignore[no-any-return]


def tensor_scale(x: Tensor, number_format: NumberFormat) -> Tensor:
    """Returns the () scale of a whole nvfp4 tensor, by which block scales just fit their format.

    Source: NVIDIA's recipe for nvfp4, largest magnitude / (6 * 448).
    """
    reach = number_format.max_value * format_named(number_format.scale_format).max_value
    largest = torch.linalg.vector_norm(x, float("inf")) if x.numel() else x.new_zeros(())
    return (largest / reach).clamp_(min=_SMALLEST_SCALE)


class _FakeQuantizeBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        number_format: NumberFormat,
        axis: int,
        scale: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        blocks = _as_blocks(x, axis, number_format.block_size)
        if scale is None:
            exponent = _shared_exponent(blocks, number_format)
            scaled = torch.ldexp(blocks, -exponent)
            block_scale = torch.ldexp(torch.ones_like(exponent, dtype=x.dtype), exponent)
        else:
            block_scale = _block_scale(blocks, number_format, scale)
            scaled = torch.where(block_scale > 0, blocks / block_scale, 0.0)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_from_blocks(scaled, x.shape, axis))
            ctx.largest = number_format.max_value
        rounded = _round_elements(scaled, number_format, generator).mul_(block_scale)
        return _from_blocks(rounded, x.shape, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scaled,) = ctx.saved_tensors
        above = just_above(ctx.largest)
        return pass_within(gradients[0], scaled, -above, above), None, None, None, None


def _as_blocks(x: Tensor, axis: int, size: int) -> Tensor:
    """Returns (..., blocks, size) of x with its axis moved last and its tail padded with zeros."""
    rows = x.movedim(axis, -1)
    rows = F.pad(rows, (0, -rows.shape[-1] % size))
    return rows.reshape(*rows.shape[:-1], rows.shape[-1] // size, size)


def _from_blocks(blocks: Tensor, shape: torch.Size, axis: int) -> Tensor:
    rows = blocks.flatten(-2)[..., : shape[axis]]
    return rows.movedim(-1, axis)


def _shared_exponent(blocks: Tensor, number_format: NumberFormat) -> Tensor:
    """Returns the exponent of each block's scale, (..., blocks, 1).

    frexp is exact where a logarithm would round up just below powers of two.
    """
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    exponent = torch.frexp(largest).exponent - 1 - math.frexp(number_format.max_value)[1] + 1
    exponent = exponent.clamp_(_LOWEST_EXPONENT, _HIGHEST_EXPONENT)
    return torch.where(largest > 0, exponent, _LOWEST_EXPONENT)


def _block_scale(blocks: Tensor, number_format: NumberFormat, scale: Tensor) -> Tensor:
    """Returns the scale of each block times that of the tensor, (..., blocks, 1)."""
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    ideal = largest / number_format.max_value / scale
    return round_to_minifloat(ideal, format_named(number_format.scale_format)) * scale


def _round_elements(
    scaled: Tensor, number_format: NumberFormat, generator: torch.Generator | None
) -> Tensor:
    if number_format.exponent_bits:
        return round_to_minifloat(scaled, number_format, generator)
    largest = number_format.max_value * _MXINT8_STEPS
    steps = round_in_place(scaled * _MXINT8_STEPS, generator)
    return steps.clamp_(-largest, largest).div_(_MXINT8_STEPS)

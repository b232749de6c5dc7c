"""One door to fake quantization, whatever the family of the format."""

import torch
from torch import Tensor

from apqkit.errors import FormatError, NonFiniteError
from apqkit.formats import NumberFormat, format_named
from apqkit.quant.blocks import fake_quantize_blocks
from apqkit.quant.integer import fake_quantize_integer, integer_levels
from apqkit.quant.minifloat import fake_quantize_minifloat, round_to_bfloat16

__all__ = ["check_finite", "checked_axis", "fake_quantize", "spread", "unchecked_fake_quantize"]


def fake_quantize(
    x: Tensor,
    format: NumberFormat | str,  # noqa: A002 - what users call it
    *,
    scale: Tensor | float | None = None,
    zero_point: Tensor | int = 0,
    axis: int | None = None,
    group_size: int | None = None,
    narrow_range: bool = False,
    generator: torch.Generator | None = None,
    name: str = "x",
) -> Tensor:
    """Returns x as its quantized form would read, in fp32, with a straight-through gradient.

    Integers: (clamp(rint(x / scale) + zero_point, levels) - zero_point) * scale, as ONNX
    QuantizeLinear and DequantizeLinear have it. Minifloats: the value nearest to x / scale, ties
    to even, times scale; beyond the largest value they saturate.

    Args:
        x: fp32 tensor of any shape.
        format: A format or its name.
        scale: Positive. For integers and minifloats: () for the whole tensor, (x.shape[axis],)
            with ``axis``, x's shape with ceil(x.shape[axis] / group_size) at ``axis`` with
            ``group_size``, or any shape that broadcasts to x. None for block formats, whose scales
            follow from x (nvfp4 takes the scale of the whole tensor, if given), fp32 and bf16.
        zero_point: Level that stands for 0, integers only; shaped as the scale, or one for all.
        axis: Axis along which scales or blocks run; blocks run along the last one by default.
        group_size: Values along ``axis`` that share a scale.
        narrow_range: Drop the lowest level of a signed integer, so that levels are symmetric.
        generator: Rounds at random instead, floor(x + u), as gradients want it.
        name: What the tensor is called in messages.

    Returns:
        Tensor like x; x itself for fp32. The gradient is 1 where x is within the format's range
        and 0 where it was clipped.

    Raises:
        FormatError: x is not fp32, or the arguments do not fit the format or each other.
        UnknownNameError: No format of that name.
        NonFiniteError: x holds a value that is not finite.

    >>> fake_quantize(torch.tensor([0.1, 0.26, 9.0]), "int4", scale=0.25).tolist()
    [0.0, 0.25, 1.75]
    >>> fake_quantize(torch.tensor([2.4, 5.1]), "fp4_e2m1", scale=1.0).tolist()
    [2.0, 6.0]
    """
    number_format = format_named(format) if isinstance(format, str) else format
    if x.dtype != torch.float32:
        raise FormatError(f"{name} must be a float32 tensor to be quantized, got {x.dtype}")
    steps = _steps_for(x, number_format, scale, axis, group_size)
    zeros = _zeros_for(x, number_format, zero_point, axis, group_size, narrow_range)
    check_finite(x, name)
    if number_format.block_size:
        along = checked_axis(-1 if axis is None else axis, x.dim())
        return fake_quantize_blocks(x, number_format, axis=along, scale=steps, generator=generator)
    return unchecked_fake_quantize(
        x, number_format, steps, zeros, narrow_range=narrow_range, generator=generator
    )


def unchecked_fake_quantize(
    x: Tensor,
    number_format: NumberFormat,
    scale: Tensor | None,
    zero_point: Tensor | int = 0,
    *,
    narrow_range: bool = False,
    clips: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns what :func:`fake_quantize` does, for callers that know their arguments to be right.

    Args:
        x: fp32 tensor of any shape.
        number_format: Any but a block format.
        scale: Broadcastable to x; None for fp32 and bf16.
        zero_point: A level, or levels broadcastable to x.
        narrow_range: As there.
        clips: False if the scale was found so that no value lies beyond an integer's levels, which
            spares the look for those that do.
        generator: As there.
    """
    if scale is None:
        return x if number_format.is_fp32 else round_to_bfloat16(x, number_format)
    if number_format.family == "float":
        return fake_quantize_minifloat(x, scale, number_format, generator)
    levels = integer_levels(number_format, narrow_range=narrow_range) if clips else None
    return fake_quantize_integer(x, scale, zero_point, levels, generator)


def check_finite(x: Tensor, name: str) -> None:
    """Raises if a tensor holds NaN or infinities.

    Raises:
        NonFiniteError: It does; the text says how many and in which tensor.
    """
    if x.numel() == 0:
        return
    values = x.detach()
    # Both ends are many times faster to find than isfinite of all, in any memory format.
    if bool(torch.isfinite(values.amax()) & torch.isfinite(values.amin())):
        return
    wrong = int((~torch.isfinite(values)).sum())
    raise NonFiniteError(f"{name} holds {wrong} of {x.numel()} values that are not finite")


def spread(values: Tensor, shape: torch.Size, axis: int | None, group_size: int | None) -> Tensor:
    """Returns scales or zero points so that they broadcast to a tensor of a shape.

    Args:
        values: One for all, one an index of ``axis``, or one a group (see :func:`fake_quantize`).
        shape: Of the tensor that is quantized.
        axis: Axis along which they run, or None.
        group_size: Values along the axis that share one, or None.

    Raises:
        FormatError: The axis is not there or the shape does not fit.
    """
    dims = len(shape)
    axis = None if axis is None else checked_axis(axis, dims)
    if values.dim() == 0:
        return values
    if axis is not None and group_size is not None:
        groups = -(-shape[axis] // group_size)
        wanted = (*shape[:axis], groups, *shape[axis + 1 :])
        if tuple(values.shape) != wanted:
            raise FormatError(
                f"scales of groups of {group_size} along axis {axis} must have shape {wanted}, "
                f"got {tuple(values.shape)}"
            )
        return values.repeat_interleave(group_size, dim=axis).narrow(axis, 0, shape[axis])
    if axis is None or values.dim() > 1:
        return _broadcastable(values, shape)
    if len(values) != shape[axis]:
        raise FormatError(
            f"one scale an index of axis {axis} makes {shape[axis]}, got {len(values)}"
        )
    return values.view([-1 if each == axis else 1 for each in range(dims)])


def checked_axis(axis: int, dims: int) -> int:
    """Returns an axis counted from the first.

    Raises:
        FormatError: A tensor of so many axes has no such axis.
    """
    if not dims:
        raise FormatError(f"a tensor without axes has no axis {axis}")
    if not -dims <= axis < dims:
        raise FormatError(f"axis must be {-dims} to {dims - 1} for {dims} axes, got {axis}")
    return axis % dims


def _broadcastable(values: Tensor, shape: torch.Size) -> Tensor:
    ends = zip(reversed(values.shape), reversed(shape), strict=False)
    if values.dim() > len(shape) or any(each not in (1, size) for each, size in ends):
        raise FormatError(
            f"scales must broadcast to the tensor's shape {tuple(shape)}, "
            f"got {tuple(values.shape)}"
        )
    return values


def _steps_for(
    x: Tensor,
    number_format: NumberFormat,
    scale: Tensor | float | None,
    axis: int | None,
    group_size: int | None,
) -> Tensor | None:
    _check_group(number_format, axis, group_size)
    takes_scale = number_format.is_scaled or number_format.name == "nvfp4"
    if scale is None:
        if number_format.is_scaled:
            raise FormatError(f"format {number_format.name} needs a scale, see qparams_for")
        return None
    if not takes_scale:
        raise FormatError(f"format {number_format.name} takes no scale")
    steps = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    if steps.numel() and not bool((steps > 0).all() and torch.isfinite(steps).all()):
        raise FormatError(f"scales must be positive and finite, got {_worst(steps):g}")
    if number_format.is_scaled:
        return spread(steps, x.shape, axis, group_size)
    if steps.dim():
        raise FormatError(
            f"format {number_format.name} takes one scale for the whole tensor, "
            f"got {tuple(steps.shape)}"
        )
    return steps


def _zeros_for(
    x: Tensor,
    number_format: NumberFormat,
    zero_point: Tensor | int,
    axis: int | None,
    group_size: int | None,
    narrow_range: bool,
) -> Tensor | int:
    zeros = torch.as_tensor(zero_point, dtype=x.dtype, device=x.device)
    if not bool(zeros.any()):
        return 0
    if number_format.family != "int":
        raise FormatError(f"format {number_format.name} takes no zero point")
    lowest, highest = integer_levels(number_format, narrow_range=narrow_range)
    wrong = zeros[~((zeros >= lowest) & (zeros <= highest) & (zeros == zeros.round()))]
    if wrong.numel():
        raise FormatError(
            f"zero points of {number_format.name} are levels from {lowest} to {highest}, "
            f"got {float(wrong[0]):g}"
        )
    return spread(zeros, x.shape, axis, group_size)


def _check_group(number_format: NumberFormat, axis: int | None, group_size: int | None) -> None:
    if group_size is None:
        return
    if number_format.block_size not in (0, group_size):
        raise FormatError(
            f"format {number_format.name} has blocks of {number_format.block_size}, "
            f"got group_size {group_size}"
        )
    if group_size < 1 or (axis is None and not number_format.block_size):
        raise FormatError(f"group_size must be positive and needs an axis, got {group_size}")


def _worst(scale: Tensor) -> float:
    wrong = scale[~((scale > 0) & torch.isfinite(scale))]
    return float(wrong.flatten()[0])

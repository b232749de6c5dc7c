"""Scales and zero points for a tensor at hand: which values share one, and how wide it reaches."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apqkit.errors import FormatError
from apqkit.formats import NumberFormat, format_named
from apqkit.quant.blocks import tensor_scale
from apqkit.quant.observers import OBSERVERS, Observer
from apqkit.quant.quantize import check_finite, checked_axis, fake_quantize
from apqkit.quant.ranges import params_of_range
from apqkit.registry import lookup

__all__ = ["Granularity", "QuantParams", "observed_params", "qparams_for", "rows_of"]


@dataclass(frozen=True)
class Granularity:
    """Which values of a tensor share a scale.

    Attributes:
        axis: One scale an index of this axis; None for one scale in all.
        group_size: With an axis: so many values along it share a scale, and every index of the
            other axes has scales of its own (as blocked DequantizeLinear in ONNX).
    """

    axis: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.group_size is not None and (self.group_size < 1 or self.axis is None):
            raise FormatError(
                f"group_size must be positive and needs an axis, got {self.group_size}"
            )


PER_TENSOR = Granularity()


@dataclass(frozen=True)
class QuantParams:
    """What :func:`apqkit.quant.fake_quantize` needs beside a tensor and a format.

    Attributes:
        scale: Shaped as the granularity asks; None for formats that take none.
        zero_point: Levels of the same shape; zeros when symmetric.
        granularity: Which values share a scale.
    """

    scale: Tensor | None
    zero_point: Tensor | int
    granularity: Granularity

    def fake_quantize(
        self,
        x: Tensor,
        format: NumberFormat | str,  # noqa: A002 - as there
        *,
        narrow_range: bool = False,
    ) -> Tensor:
        """Returns :func:`apqkit.quant.fake_quantize` of x with these parameters."""
        return fake_quantize(
            x,
            format,
            scale=self.scale,
            zero_point=self.zero_point,
            axis=self.granularity.axis,
            group_size=self.granularity.group_size,
            narrow_range=narrow_range,
        )


def qparams_for(
    x: Tensor,
    format: NumberFormat | str,  # noqa: A002 - what users call it
    *,
    axis: int | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    rule: str = "minmax",
    name: str = "x",
) -> QuantParams:
    """Finds scales and zero points for a tensor.

    Args:
        x: fp32 tensor of any shape, empty ones too.
        format: A format or its name.
        axis: One scale an index of this axis; None for one in all.
        group_size: Values along the axis that share a scale; the last group may be shorter, and
            counts as filled up with zeros.
        symmetric: Keep the zero point at 0; otherwise the format's levels span from the lowest to
            the highest value (integers only). In an unsigned format, symmetric clips what is
            negative.
        rule: How far the range reaches; a name in ``OBSERVERS``.
        name: What the tensor is called in messages.

    Raises:
        FormatError: The arguments do not fit the format or the tensor.
        UnknownNameError: No format or rule of that name.
        CalibrationError: x holds a value that is not finite.

    >>> import torch
    >>> qparams_for(torch.tensor([-1.0, 3.0]), "uint2", symmetric=False).zero_point
    tensor(1.)
    """
    number_format = format_named(format) if isinstance(format, str) else format
    granularity = Granularity(axis, group_size)
    _check_asked(x, number_format, granularity, symmetric=symmetric, name=name)
    check_finite(x, name)
    if not number_format.is_scaled:
        scale = tensor_scale(x.detach(), number_format) if number_format.name == "nvfp4" else None
        return QuantParams(scale, 0, granularity)
    observer = lookup(OBSERVERS, rule, "rule for ranges")()
    rows, shape = rows_of(x.detach(), granularity)
    if not rows.numel():
        rows = rows.new_zeros((len(rows), 1))
    observer.update(rows)
    return observed_params(
        observer, number_format, symmetric=symmetric, granularity=granularity, shape=shape
    )


def _check_asked(
    x: Tensor, number_format: NumberFormat, granularity: Granularity, *, symmetric: bool, name: str
) -> None:
    if x.dtype != torch.float32:
        raise FormatError(f"{name} must be a float32 tensor to be quantized, got {x.dtype}")
    if granularity.axis is not None:
        checked_axis(granularity.axis, x.dim())
    if not symmetric and number_format.family != "int":
        raise FormatError(f"format {number_format.name} takes no zero point: it is symmetric")
    size = granularity.group_size
    if number_format.block_size and size not in (None, number_format.block_size):
        raise FormatError(
            f"format {number_format.name} has blocks of {number_format.block_size}, "
            f"got group_size {size}"
        )


def observed_params(
    observer: Observer,
    number_format: NumberFormat,
    *,
    symmetric: bool,
    narrow_range: bool = False,
    granularity: Granularity = PER_TENSOR,
    shape: tuple[int, ...] = (),
) -> QuantParams:
    """Returns scales and zero points for what an observer has seen.

    Args:
        observer: It has seen rows of :func:`rows_of`.
        number_format: A format with scales, of the right sign.
        symmetric: See :func:`qparams_for`.
        narrow_range: Whether the lowest level of a signed integer is dropped.
        granularity: That of the rows.
        shape: That of the scales.
    """
    low, high = observer.limits(number_format, symmetric=symmetric, narrow_range=narrow_range)
    scale, zero_point = params_of_range(low, high, number_format, symmetric=symmetric)
    return QuantParams(scale.reshape(shape), zero_point.reshape(shape), granularity)


def rows_of(x: Tensor, granularity: Granularity) -> tuple[Tensor, tuple[int, ...]]:
    """Returns (r, n) rows of values that share a scale, and the shape of r scales.

    Raises:
        FormatError: The axis is not there.
    """
    axis, size = granularity.axis, granularity.group_size
    if axis is None:
        return x.reshape(1, -1), ()
    axis = checked_axis(axis, x.dim())
    if size is None:
        moved = x.movedim(axis, 0)
        return moved.flatten(1) if x.dim() > 1 else moved[:, None], (x.shape[axis],)
    moved = x.movedim(axis, -1)
    groups = F.pad(moved, (0, -moved.shape[-1] % size)).unflatten(-1, (-1, size))
    shape = groups[..., 0].movedim(-1, axis).shape
    # Rows are in the order of the scales, whose groups run along the axis.
    return groups.movedim(-2, axis).reshape(-1, size), tuple(shape)

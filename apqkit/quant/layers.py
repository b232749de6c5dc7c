"""Layers that compute on quantized tensors: input quantizers, convolution, linear, add, pools.

A layer is in one of three states. *Training*: ranges follow the batch at hand, or are learned.
*Calibrating* (see :func:`apqkit.quant.calibration.calibrate`): the pass that freezes them.
*Frozen*: batch norm is folded, weights are quantized once, ranges stand still; this is what is
measured and exported.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apqkit.errors import CalibrationError
from apqkit.formats import NumberFormat
from apqkit.quant.activations import ActivationQuantizer
from apqkit.quant.carriers import carrier_bits, value_step
from apqkit.quant.learned import lsq, lsq_gradient_scale
from apqkit.quant.onnx_marker import mark_for_export
from apqkit.quant.quantize import check_finite
from apqkit.quant.weights import (
    DEFAULT_SCHEME,
    QuantScheme,
    quantize_weight,
    quantized_with,
    scale_shape,
    scales_of_weight,
)

__all__ = [
    "BATCH_NORM_EPS",
    "BatchNorm",
    "ConvGeometry",
    "QuantAdd",
    "QuantConv",
    "QuantGlobalPool",
    "QuantLayer",
    "QuantLinear",
    "QuantPool",
    "StoredWeight",
    "conv_batch_norm",
    "square_geometry",
]

BATCH_NORM_EPS = 1e-5
_LARGEST_BIAS = 2.0**30  # in steps; half of the int32 range, the rest is for the products
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class StoredWeight:
    """A frozen weight as the exporter needs it.

    Attributes:
        number_format: Its format.
        values: Weights as the format holds them, output channels first.
        scale: (channels,) one scale per output channel; with groups the weight's shape with groups
            for input channels.
        group_size: Input channels that share a scale, or None.
    """

    number_format: NumberFormat
    values: Tensor
    scale: Tensor
    group_size: int | None = None


class QuantLayer(nn.Module, ABC):
    """A layer whose inputs are quantized before it computes."""

    def __init__(self, inputs: list[ActivationQuantizer]) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(inputs)
        self.calibrating = False
        self.was_calibrated = False

    def quantizer(self, index: int = 0) -> ActivationQuantizer:
        """Returns the quantizer of the index-th input."""
        return cast(ActivationQuantizer, self.inputs[index])

    def quantize_input(self, x: Tensor, index: int = 0) -> Tensor:
        """Returns the index-th input as this layer reads it."""
        quantized: Tensor = self.quantizer(index)(x)
        return quantized

    def begin_calibration(self) -> None:
        """Forgets what earlier calibrations saw."""
        self.was_calibrated = False

    def end_calibration(self) -> None:
        """Lets go of what was seen."""

    @abstractmethod
    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the output for inputs that are quantized already."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the output for plain inputs."""
        return self.compute(*(self.quantize_input(x, i) for i, x in enumerate(inputs)))


class _WeightedLayer(QuantLayer):
    """What convolution and linear share: a weight with a format, frozen with its bias."""

    weight: nn.Parameter
    weight_log_step: nn.Parameter | None
    frozen_weight: Tensor
    frozen_scale: Tensor
    frozen_bias: Tensor

    def __init__(
        self,
        source: ActivationQuantizer,
        weight: Tensor,
        weight_format: NumberFormat,
        name: str,
        scheme: QuantScheme,
    ) -> None:
        super().__init__([source])
        channels = len(weight)
        self.name = name
        self.weight_format = weight_format
        self.scheme = scheme
        self.weight = nn.Parameter(weight)
        self.register_parameter("weight_log_step", None)
        shape = scale_shape(weight.detach(), weight_format, scheme)
        self.register_buffer("frozen_weight", torch.full_like(weight, float("nan")))
        self.register_buffer("frozen_scale", torch.ones(shape))
        self.register_buffer("frozen_bias", torch.zeros(channels))

    def stored_weight(self) -> StoredWeight:
        """Returns the frozen weight for export."""
        grouped = self.scheme.weight_granularity == "group"
        size = self.scheme.weight_group_size if grouped else None
        return StoredWeight(self.weight_format, self.frozen_weight, self.frozen_scale, size)

    def learn_step(self, weight: Tensor) -> None:
        """Gives the layer a trained step a channel, or one in all, that fits a weight.

        Its logarithm is what trains: it stays positive, and an optimiser's step is relative.
        """
        scale = scales_of_weight(weight.detach(), self.weight_format, self.scheme)
        assert scale is not None
        step = scale if self.scheme.weight_granularity == "channel" else scale[:1]
        self.weight_log_step = nn.Parameter(step.clone().log())

    def quantized_weight(self, weight: Tensor) -> Tensor:
        """Returns trainable weights as their format holds them."""
        if self.weight_log_step is None:
            return quantize_weight(weight, self.weight_format, self.scheme)
        shared = weight.numel() // self.weight_log_step.numel()
        return lsq(
            weight,
            self.weight_log_step.exp().expand(len(weight)),
            self.weight_format,
            axis=0,
            narrow_range=True,
            gradient_scale=lsq_gradient_scale(shared, self.weight_format),
        )

    def bias_step(self, scale: Tensor) -> Tensor | None:
        """Returns the step of int32 biases for weight scales (channels,), as runtimes ask.

        None where input or weights are no integers; biases are fp32 there. Runtimes quantize the
        biases of integer layers themselves where they are not, without a look at what overflows.
        """
        source, step = self.quantizer(), value_step(self.weight_format)
        fits = source.is_static_integer and carrier_bits(self.weight_format) is not None
        if step is None or not fits or self.scheme.weight_granularity == "group":
            return None
        return source.scale * (scale * step)

    def _freeze(self, weight: Tensor, bias: Tensor) -> None:
        self.was_calibrated = True
        check_finite(weight, f"{self.name}.weight")
        check_finite(bias, f"{self.name}.bias")
        scale = self._frozen_scale(weight, bias)
        if scale is not None:
            self.frozen_scale.copy_(scale)
            step = self.bias_step(scale)
            bias = bias if step is None else torch.round(bias / step) * step
        self.frozen_weight.copy_(quantized_with(weight, self.weight_format, scale, self.scheme))
        self.frozen_bias.copy_(bias)

    def _frozen_scale(self, weight: Tensor, bias: Tensor) -> Tensor | None:
        if self.weight_log_step is None:
            scale = scales_of_weight(weight, self.weight_format, self.scheme)
        else:
            scale = self.weight_log_step.detach().exp().expand(len(weight))
        if scale is None:
            return None
        step = self.bias_step(scale)
        if step is None:
            return scale
        # Scales of tiny weights grow until biases fit int32.
        return scale * (bias.abs() / (_LARGEST_BIAS * step)).clamp_(min=1.0)

    def _weight_for_frozen(self) -> Tensor:
        if torch.onnx.is_in_onnx_export() and not self.weight_format.is_fp32:
            return mark_for_export(self.frozen_weight, f"{self.name}.weight")
        if not torch.onnx.is_in_onnx_export() and bool(self.frozen_weight.flatten()[:1].isnan()):
            raise CalibrationError(f"{self.name} is not frozen: call calibrate(model, images)")
        return self.frozen_weight


def conv_batch_norm(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, stride: int, groups: int
) -> Tensor:
    """Returns a convolution, padded by half its kernel, normalised with statistics of this batch.

    Args:
        x: (batch, channels, height, width).
        weight: (out channels, in channels / groups, kernel, kernel).
        gamma: (out channels,) batch-norm scale.
        beta: (out channels,) batch-norm offset.
        stride: Same in both axes.
        groups: Convolution groups.
    """
    geometry = square_geometry(weight.shape[-1], stride, groups)
    return _normalized(_convolution(x, weight, None, geometry), gamma, beta, BATCH_NORM_EPS)


def _normalized(y: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return F.batch_norm(y, None, None, gamma, beta, training=True, eps=eps)


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """Returns a 1x1 convolution as a matrix product, which needs no kernel compiled a shape."""
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    y = F.linear(pixels, weight.view(len(weight), -1))
    return y.view(batch, height, width, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution moves over its input; one number for each axis.

    Attributes:
        stride: Steps.
        padding: Zeros added on either side.
        dilation: Distance of taps.
        groups: Groups of channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def square_geometry(kernel: int, stride: int, groups: int) -> ConvGeometry:
    """Returns the geometry of a square kernel, padded by half of it, over images."""
    return ConvGeometry((stride, stride), (kernel // 2, kernel // 2), (1, 1), groups)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    # Shapes change from step to step where there is no bias yet, in a supernet's training.
    if bias is None and weight.shape[2:] == (1, 1) and geometry == square_geometry(1, 1, 1):
        return _pointwise(x, weight)
    convolve = _CONVOLUTIONS[weight.dim() - 2]
    return convolve(
        x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )


@dataclass(frozen=True)
class BatchNorm:
    """A batch normalisation that belongs to a convolution.

    Attributes:
        gamma: (channels,) scale.
        beta: (channels,) offset.
        mean: (channels,) statistics that stand still, or None if they follow the batch.
        variance: (channels,) likewise.
        eps: Added to the variance.
        trained: Whether gamma takes a gradient.
    """

    gamma: Tensor
    beta: Tensor
    mean: Tensor | None = None
    variance: Tensor | None = None
    eps: float = BATCH_NORM_EPS
    trained: bool = True


class QuantConv(_WeightedLayer):
    """Convolution with a batch normalisation and an optional ReLU.

    Attributes:
        follows_batch: Whether statistics are those of the batch in training and of the images in
            calibration; otherwise those that are stored, folded into what is quantized.
    """

    mean: Tensor
    variance: Tensor
    eps: Tensor

    def __init__(
        self,
        source: ActivationQuantizer,
        weight: Tensor,
        batch_norm: BatchNorm,
        *,
        weight_format: NumberFormat,
        geometry: ConvGeometry,
        relu: bool,
        name: str,
        scheme: QuantScheme = DEFAULT_SCHEME,
    ) -> None:
        super().__init__(source, weight, weight_format, name, scheme)
        unknown = torch.full_like(batch_norm.beta, float("nan"))
        mean = unknown if batch_norm.mean is None else batch_norm.mean
        variance = unknown if batch_norm.variance is None else batch_norm.variance
        self.gamma = nn.Parameter(batch_norm.gamma, requires_grad=batch_norm.trained)
        self.beta = nn.Parameter(batch_norm.beta)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("variance", variance.clone())
        self.register_buffer("eps", torch.tensor(batch_norm.eps))
        self.follows_batch = batch_norm.mean is None
        self.geometry = geometry
        self.relu = relu
        self._batches = 0
        if scheme.weight_training == "lsq" and weight_format.family == "int":
            self.learn_step(self._folded()[0])

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the activated, normalised convolution of one quantized input."""
        (x,) = inputs
        if self.calibrating:
            y = self._calibrate(x)
        elif not self.training:
            y = _convolution(x, self._weight_for_frozen(), self.frozen_bias, self.geometry)
        elif self.follows_batch:
            y = _convolution(x, self.quantized_weight(self.weight), None, self.geometry)
            y = _normalized(y, self.gamma, self.beta, float(self.eps))
        else:
            weight, bias = self._folded()
            y = _convolution(x, self.quantized_weight(weight), bias, self.geometry)
        return F.relu(y) if self.relu else y

    def keep_statistics(self) -> None:
        """Makes training and calibration use the stored statistics from now on.

        Raises:
            CalibrationError: There are none yet.
        """
        if bool(self.mean.isnan().any()):
            raise CalibrationError(f"{self.name} has no statistics yet: call calibrate first")
        self.follows_batch = False

    def fold(self) -> None:
        """Puts the stored statistics into weight and offset, which train alone from now on.

        Raises:
            CalibrationError: There are none yet.
        """
        self.keep_statistics()
        with torch.no_grad():
            weight, bias = self._folded()
            self.weight.copy_(weight)
            self.beta.copy_(bias)
            self.gamma.fill_(1.0).requires_grad_(False)
            self.mean.zero_()
            self.variance.fill_(1.0)
            self.eps.zero_()

    def _factor(self) -> Tensor:
        return self.gamma / torch.sqrt(self.variance + self.eps)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Returns weight and bias with the stored statistics folded in."""
        factor = self._factor()
        weight = self.weight * factor.view(-1, *[1] * (self.weight.dim() - 1))
        return weight, self.beta - self.mean * factor

    def _calibrate(self, x: Tensor) -> Tensor:
        if not self.follows_batch:
            self._freeze(*self._folded())
            return _convolution(x, self.frozen_weight, self.frozen_bias, self.geometry)
        weight = self.quantized_weight(self.weight)
        g = self.geometry
        # As the frozen layer will compute it, and not as training does, so that both agree.
        y = F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)
        self._take_statistics(y)
        self._freeze(*self._folded())
        return y.mul_(self._factor().view(1, -1, 1, 1)).add_(self.frozen_bias.view(1, -1, 1, 1))

    def begin_calibration(self) -> None:
        """Forgets what earlier calibrations saw."""
        super().begin_calibration()
        self._batches = 0

    def _take_statistics(self, y: Tensor) -> None:
        """Averages statistics over the batches of one calibration."""
        variance, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
        self._batches += 1
        if self._batches > 1:
            share = 1.0 / self._batches
            gap = mean - self.mean
            mean = self.mean + share * gap
            variance = torch.lerp(self.variance, variance, share)
            variance += share * (1.0 - share) * gap.square()
        self.mean.copy_(mean)
        self.variance.copy_(variance)


class QuantLinear(_WeightedLayer):
    """Fully connected layer."""

    bias: nn.Parameter | None

    def __init__(
        self,
        source: ActivationQuantizer,
        weight: Tensor,
        bias: Tensor | None,
        *,
        weight_format: NumberFormat,
        name: str,
        scheme: QuantScheme = DEFAULT_SCHEME,
    ) -> None:
        super().__init__(source, weight, weight_format, name, scheme)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        if scheme.weight_training == "lsq" and weight_format.family == "int":
            self.learn_step(weight)

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the affine map of one quantized input of shape (..., features)."""
        (x,) = inputs
        if self.calibrating:
            self._freeze(self.weight, self.frozen_bias * 0 if self.bias is None else self.bias)
        elif self.training:
            return F.linear(x, self.quantized_weight(self.weight), self.bias)
        return F.linear(x, self._weight_for_frozen(), self.frozen_bias)


class QuantAdd(QuantLayer):
    """Sum of two tensors."""

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the sum of two quantized inputs."""
        left, right = inputs
        return left + right


class QuantPool(QuantLayer):
    """Average pool over square windows that do not overlap the border."""

    def __init__(self, inputs: list[ActivationQuantizer], kernel: int, stride: int) -> None:
        super().__init__(inputs)
        self.kernel = kernel
        self.stride = stride

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns window means of one quantized input."""
        return F.avg_pool2d(inputs[0], self.kernel, self.stride)


class QuantGlobalPool(QuantLayer):
    """Mean over all pixels."""

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns (batch, channels) means of one quantized input."""
        return F.adaptive_avg_pool2d(inputs[0], 1).flatten(1)

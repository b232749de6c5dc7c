"""Layers that compute on quantized tensors: input quantizers, convolution, linear, add, pools.

A layer is in one of three states. *Training*: ranges and batch-norm statistics follow the batch at
hand. *Calibrating* (see :func:`apqkit.quant.calibrate.calibrate`): the one pass that freezes them.
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
from apqkit.quant.fake_quantize import fake_quantize, quantize_weight
from apqkit.quant.integer import integer_step
from apqkit.quant.onnx_marker import mark_for_export
from apqkit.quant.ranges import activation_scale, weight_scale

__all__ = [
    "BATCH_NORM_EPS",
    "ActivationQuantizer",
    "QuantAdd",
    "QuantConv",
    "QuantGlobalPool",
    "QuantLayer",
    "QuantLinear",
    "QuantPool",
    "WeightQuantizer",
    "conv_batch_norm",
]

BATCH_NORM_EPS = 1e-5
_LARGEST_BIAS = 2.0**30  # in steps; half of the int32 range, the rest is for the products


class ActivationQuantizer(nn.Module):
    """Quantizes one tensor with one scale: dynamic in training, frozen by calibration."""

    scale: Tensor

    def __init__(self, number_format: NumberFormat, *, signed: bool, name: str = "") -> None:
        super().__init__()
        self.number_format = number_format.for_sign(signed=signed)
        self.signed = signed
        self.name = name
        self.calibrating = False
        self.register_buffer("scale", torch.tensor(float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x as the format holds it."""
        if self.number_format.is_fp32:
            return x
        if torch.onnx.is_in_onnx_export():
            return mark_for_export(x, self.name)
        if self.training and not self.calibrating:
            scale = activation_scale(x.detach(), self.number_format, signed=self.signed)
            return fake_quantize(x, self.number_format, scale=scale)
        if self.calibrating:
            self._freeze(x)
        elif self.scale.isnan():
            raise CalibrationError(f"{self.name} has no range yet: call calibrate(model, images)")
        return fake_quantize(x, self.number_format, scale=self.scale)

    def _freeze(self, x: Tensor) -> None:
        if not bool(torch.isfinite(x).all()):
            raise CalibrationError(f"{self.name} met a value that is not finite in calibration")
        self.scale.copy_(activation_scale(x, self.number_format, signed=self.signed))


@dataclass(frozen=True)
class WeightQuantizer:
    """A frozen weight as the exporter needs it.

    Attributes:
        number_format: Its format.
        values: Weights as the format holds them, output channels first.
        scale: (channels,) one scale per output channel.
    """

    number_format: NumberFormat
    values: Tensor
    scale: Tensor


class QuantLayer(nn.Module, ABC):
    """A layer whose inputs are quantized before it computes."""

    def __init__(self, inputs: list[ActivationQuantizer]) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(inputs)
        self.calibrating = False

    def quantizer(self, index: int = 0) -> ActivationQuantizer:
        """Returns the quantizer of the index-th input."""
        return cast(ActivationQuantizer, self.inputs[index])

    def quantize_input(self, x: Tensor, index: int = 0) -> Tensor:
        """Returns the index-th input as this layer reads it."""
        quantized: Tensor = self.quantizer(index)(x)
        return quantized

    @abstractmethod
    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the output for inputs that are quantized already."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the output for plain inputs."""
        return self.compute(*(self.quantize_input(x, i) for i, x in enumerate(inputs)))


class _WeightedLayer(QuantLayer):
    """What convolution and linear share: a weight with a format, frozen with its bias."""

    weight: nn.Parameter
    frozen_weight: Tensor
    frozen_scale: Tensor
    frozen_bias: Tensor

    def __init__(
        self, source: ActivationQuantizer, weight: Tensor, weight_format: NumberFormat, name: str
    ) -> None:
        super().__init__([source])
        channels = len(weight)
        self.name = name
        self.weight_format = weight_format
        self.weight = nn.Parameter(weight)
        self.register_buffer("frozen_weight", torch.full_like(weight, float("nan")))
        self.register_buffer("frozen_scale", torch.ones(channels))
        self.register_buffer("frozen_bias", torch.zeros(channels))

    def weight_quantizer(self) -> WeightQuantizer:
        """Returns the frozen weight for export."""
        return WeightQuantizer(self.weight_format, self.frozen_weight, self.frozen_scale)

    def quantized_weight(self) -> Tensor:
        """Returns the trainable weight as its format holds it."""
        return quantize_weight(self.weight, self.weight_format)

    def bias_step(self, scale: Tensor) -> Tensor | None:
        """Returns the step of int32 biases for weight scales (channels,), as integer kernels ask.

        None where input or weights do not fit such kernels; biases are fp32 there.
        """
        source, step = self.quantizer(), integer_step(self.weight_format)
        if step is None or source.number_format.family != "int":
            return None
        return source.scale * (scale * step)

    def _freeze(self, weight: Tensor, bias: Tensor) -> None:
        if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise CalibrationError(f"{self.name} has weights or statistics that are not finite")
        if self.weight_format.is_fp32:
            self.frozen_weight.copy_(weight)
            self.frozen_bias.copy_(bias)
            return
        scale = self._fitting(weight_scale(weight, self.weight_format).flatten(), bias)
        step = self.bias_step(scale)
        if step is not None:
            bias = torch.round(bias / step) * step
        frozen = fake_quantize(weight, self.weight_format, scale=scale, axis=0, narrow_range=True)
        self.frozen_scale.copy_(scale)
        self.frozen_weight.copy_(frozen)
        self.frozen_bias.copy_(bias)

    def _fitting(self, scale: Tensor, bias: Tensor) -> Tensor:
        """Returns weight scales at which biases fit int32: those of tiny weights grow."""
        step = self.bias_step(scale)
        if step is None:
            return scale
        return scale * (bias.abs() / (_LARGEST_BIAS * step)).clamp_(min=1.0)

    def _weight_for_frozen(self) -> Tensor:
        if torch.onnx.is_in_onnx_export() and not self.weight_format.is_fp32:
            return mark_for_export(self.frozen_weight, f"{self.name}.weight")
        if not torch.onnx.is_in_onnx_export() and self.frozen_weight.flatten()[0].isnan():
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
    if weight.shape[-1] == 1 and groups == 1 and stride == 1:
        y = _pointwise(x, weight)
    else:
        y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
    return F.batch_norm(y, None, None, gamma, beta, training=True, eps=BATCH_NORM_EPS)


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """Returns a 1x1 convolution as a matrix product, which needs no kernel compiled a shape."""
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    y = F.linear(pixels, weight.view(len(weight), -1))
    return y.view(batch, height, width, -1).permute(0, 3, 1, 2)


class QuantConv(_WeightedLayer):
    """Convolution, batch normalisation and an optional ReLU."""

    def __init__(
        self,
        source: ActivationQuantizer,
        weight: Tensor,
        batch_norm: tuple[Tensor, Tensor],
        *,
        weight_format: NumberFormat,
        stride: int,
        groups: int,
        relu: bool,
        name: str,
    ) -> None:
        super().__init__(source, weight, weight_format, name)
        self.gamma = nn.Parameter(batch_norm[0])
        self.beta = nn.Parameter(batch_norm[1])
        self.stride = stride
        self.groups = groups
        self.relu = relu

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the activated, normalised convolution of one quantized input."""
        (x,) = inputs
        if self.calibrating:
            y = self._calibrate(x)
        elif self.training:
            weight = self.quantized_weight()
            y = conv_batch_norm(x, weight, self.gamma, self.beta, self.stride, self.groups)
        else:
            weight = self._weight_for_frozen()
            y = F.conv2d(x, weight, self.frozen_bias, self.stride, *self._padding(), self.groups)
        return F.relu(y) if self.relu else y

    def _padding(self) -> tuple[int, int]:
        return self.weight.shape[-1] // 2, 1  # padding, dilation

    def _calibrate(self, x: Tensor) -> Tensor:
        weight = self.quantized_weight()
        y = F.conv2d(x, weight, None, self.stride, *self._padding(), self.groups)
        variance, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
        factor = self.gamma / torch.sqrt(variance + BATCH_NORM_EPS)
        self._freeze(self.weight * factor.view(-1, 1, 1, 1), self.beta - mean * factor)
        return y.mul_(factor.view(1, -1, 1, 1)).add_(self.frozen_bias.view(1, -1, 1, 1))


class QuantLinear(_WeightedLayer):
    """Fully connected layer with a bias."""

    def __init__(
        self,
        source: ActivationQuantizer,
        weight: Tensor,
        bias: Tensor,
        *,
        weight_format: NumberFormat,
        name: str,
    ) -> None:
        super().__init__(source, weight, weight_format, name)
        self.bias = nn.Parameter(bias)

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the affine map of one quantized input of shape (batch, features)."""
        (x,) = inputs
        if self.calibrating:
            self._freeze(self.weight, self.bias)
        elif self.training:
            return F.linear(x, self.quantized_weight(), self.bias)
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

"""Layers that run at any size up to their largest: leading channels, centre of the kernel."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apqkit.errors import FormatError
from apqkit.formats import NumberFormat, format_named
from apqkit.quant.activations import ActivationQuantizer
from apqkit.quant.layers import (
    BatchNorm,
    QuantAdd,
    QuantConv,
    QuantGlobalPool,
    QuantLayer,
    QuantLinear,
    QuantPool,
    conv_batch_norm,
    square_geometry,
)
from apqkit.quant.weights import quantize_weight
from apqkit.types import Layer

__all__ = ["ELASTIC_UNITS", "ElasticUnit"]


def input_quantizers(layer: Layer) -> list[ActivationQuantizer]:
    """Returns a quantizer for each input of a layer, named ``LAYER.input`` or ``LAYER.inputI``."""
    several = len(layer.producers) > 1
    return [
        ActivationQuantizer(
            format_named(layer.activation_format),
            signed=layer.signed_input,
            name=f"{layer.name}.input{index if several else ''}",
        )
        for index in range(len(layer.producers))
    ]


class ElasticUnit(QuantLayer):
    """A layer of the supernet: it takes the shape and the formats of one row at a time.

    It holds no running statistics and no ranges: both follow the batch at hand, so that nothing
    leaks from one subnet to the next. Networks to be measured are extracted and calibrated.
    """

    layer: Layer

    def __init__(self, largest: Layer) -> None:
        super().__init__(input_quantizers(largest))
        self.layer = largest

    def select(self, layer: Layer) -> None:
        """Takes the shape and the formats of a row."""
        self.layer = layer
        number_format = format_named(layer.activation_format).for_sign(signed=layer.signed_input)
        for index in range(len(self.inputs)):
            quantizer = self.quantizer(index)
            quantizer.number_format = number_format
            quantizer.signed = layer.signed_input

    @abstractmethod
    def extract(self, layer: Layer) -> QuantLayer:
        """Returns the form of this row as a plain layer with copied weights."""


class ElasticConv(ElasticUnit):
    """Convolution with elastic channels and kernel, batch normalisation, optional ReLU."""

    def __init__(self, largest: Layer) -> None:
        super().__init__(largest)
        inputs = largest.in_channels // largest.groups
        shape = (largest.out_channels, inputs, largest.kernel, largest.kernel)
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_normal_(self.weight, mode="fan_out" if largest.groups == 1 else "fan_in")
        self.gamma = nn.Parameter(torch.ones(largest.out_channels))
        self.beta = nn.Parameter(torch.zeros(largest.out_channels))
        self._largest_kernel = largest.kernel

    def _slices(self, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
        margin = (self._largest_kernel - layer.kernel) // 2
        taps = slice(margin, margin + layer.kernel)
        weight = self.weight[: layer.out_channels, : layer.in_channels // layer.groups, taps, taps]
        return weight, self.gamma[: layer.out_channels], self.beta[: layer.out_channels]

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the activated convolution of one quantized input, with batch statistics."""
        layer = self.layer
        weight, gamma, beta = self._slices(layer)
        weight = quantize_weight(weight, weight_format_of(layer))
        y = conv_batch_norm(inputs[0], weight, gamma, beta, layer.stride, layer.groups)
        return F.relu(y, inplace=True) if layer.activation == "relu" else y

    def extract(self, layer: Layer) -> QuantLayer:
        """Returns a plain convolution with copied weights."""
        weight, gamma, beta = (each.detach().clone() for each in self._slices(layer))
        return QuantConv(
            input_quantizers(layer)[0],
            weight.contiguous(memory_format=torch.channels_last),
            BatchNorm(gamma, beta),
            weight_format=weight_format_of(layer),
            geometry=square_geometry(layer.kernel, layer.stride, layer.groups),
            relu=layer.activation == "relu",
            name=layer.name,
        )


class ElasticLinear(ElasticUnit):
    """Fully connected layer with elastic input features."""

    def __init__(self, largest: Layer) -> None:
        super().__init__(largest)
        self.weight = nn.Parameter(torch.empty(largest.out_channels, largest.in_channels))
        nn.init.normal_(self.weight, std=0.01)
        self.bias = nn.Parameter(torch.zeros(largest.out_channels))

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns the affine map of one quantized input."""
        weight = self.weight[:, : self.layer.in_channels]
        weight = quantize_weight(weight, weight_format_of(self.layer))
        return F.linear(inputs[0], weight, self.bias)

    def extract(self, layer: Layer) -> QuantLayer:
        """Returns a plain linear layer with copied weights."""
        return QuantLinear(
            input_quantizers(layer)[0],
            self.weight[:, : layer.in_channels].detach().clone(),
            self.bias.detach().clone(),
            weight_format=weight_format_of(layer),
            name=layer.name,
        )


class ElasticShapeless(ElasticUnit):
    """An add or a pool: nothing to share, the plain layer of the row at hand does the work."""

    def __init__(self, largest: Layer) -> None:
        super().__init__(largest)
        self._plain = self.extract(largest)

    def select(self, layer: Layer) -> None:
        """Takes the formats and the pooling window of a row."""
        if layer.kernel != self.layer.kernel or layer.stride != self.layer.stride:
            self._plain = self.extract(layer)
        super().select(layer)

    def compute(self, *inputs: Tensor) -> Tensor:
        """Returns what the plain layer computes for quantized inputs."""
        return self._plain.compute(*inputs)

    def extract(self, layer: Layer) -> QuantLayer:
        """Returns a plain layer."""
        sources = input_quantizers(layer)
        if layer.op == "pool":
            return QuantPool(sources, layer.kernel, layer.stride)
        return QuantAdd(sources) if layer.op == "add" else QuantGlobalPool(sources)


def weight_format_of(layer: Layer) -> NumberFormat:
    """Returns the format of a row's weights.

    Raises:
        FormatError: The row has no weights.
    """
    if layer.weight_format is None:
        raise FormatError(f"row {layer.name} has no weights")
    return format_named(layer.weight_format)


ELASTIC_UNITS: dict[str, type[ElasticUnit]] = {
    "conv": ElasticConv,
    "linear": ElasticLinear,
    "add": ElasticShapeless,
    "pool": ElasticShapeless,
    "global_pool": ElasticShapeless,
}
"""The elastic layer for each op of a network table."""

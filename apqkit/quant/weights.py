"""Weights as their format holds them, and which weights share a scale."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from apqkit.errors import FormatError
from apqkit.formats import NumberFormat
from apqkit.quant.blocks import fake_quantize_blocks
from apqkit.quant.observers import OBSERVERS
from apqkit.quant.qparams import Granularity, observed_params, rows_of
from apqkit.quant.quantize import spread, unchecked_fake_quantize
from apqkit.quant.ranges import weight_scale
from apqkit.registry import lookup

__all__ = [
    "DEFAULT_SCHEME",
    "QuantScheme",
    "quantize_weight",
    "quantized_with",
    "scales_of_weight",
]

WeightGranularity = Literal["channel", "tensor", "group"]
ActivationGranularity = Literal["tensor", "token"]
WeightTraining = Literal["range", "lsq"]
ActivationTraining = Literal["range", "lsq", "pact"]


@dataclass(frozen=True)
class QuantScheme:
    """How layers find their scales. The default is per-channel weights, per-tensor activations.

    Attributes:
        weight_granularity: One scale an output channel, one in all, or one a group of input
            channels.
        weight_group_size: Input channels a group. Groups have few values: on heavy tails the rule
            ``minmax`` loses less there than the default.
        weight_rule: How far ranges of weights reach; a name in ``OBSERVERS``.
        weight_training: What trains in quantization-aware training: ``range`` follows the weights,
            by the rule, in every step (``mse`` and ``kl`` search, which makes a step many times
            slower); ``lsq`` learns the step (integers).
        activation_granularity: One scale a tensor, frozen by calibration; or one a token, the last
            axis of a linear layer's input, found anew for each.
        activation_rule: How far ranges of activations reach.
        activation_training: ``range`` follows the batch, ``lsq`` learns the step, ``pact`` the
            clip of activations that cannot be negative; the last two for integers.
        symmetric_activations: Zero points stay at 0; otherwise integers span from the lowest to
            the highest value.

    Raises:
        FormatError: A word that is not among those allowed.
        UnknownNameError: No rule of that name.
    """

    weight_granularity: WeightGranularity = "channel"
    weight_group_size: int = 32
    weight_rule: str = "rms"
    weight_training: WeightTraining = "range"
    activation_granularity: ActivationGranularity = "tensor"
    activation_rule: str = "rms"
    activation_training: ActivationTraining = "range"
    symmetric_activations: bool = True

    def __post_init__(self) -> None:
        words = {
            "weight_granularity": WeightGranularity,
            "weight_training": WeightTraining,
            "activation_granularity": ActivationGranularity,
            "activation_training": ActivationTraining,
        }
        for name, kind in words.items():
            if getattr(self, name) not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise FormatError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.weight_group_size < 1:
            raise FormatError(f"weight_group_size must be positive, got {self.weight_group_size}")
        if self.weight_training == "lsq" and self.weight_granularity == "group":
            raise FormatError(
                "weight_training lsq learns a step a channel or one in all, no groups"
            )
        self._check_activations()
        for rule in (self.weight_rule, self.activation_rule):
            lookup(OBSERVERS, rule, "rule for ranges")

    def _check_activations(self) -> None:
        training = self.activation_training
        if self.activation_granularity == "token":
            if training != "range":
                raise FormatError(f"activation_training {training} learns one range, no tokens'")
            if not self.symmetric_activations:
                raise FormatError("scales of tokens are symmetric: their zero points stay at 0")
        if training == "pact" and not self.symmetric_activations:
            raise FormatError("activation_training pact clips at 0: its zero point stays there")


DEFAULT_SCHEME = QuantScheme()


def quantize_weight(
    weight: Tensor, number_format: NumberFormat, scheme: QuantScheme = DEFAULT_SCHEME
) -> Tensor:
    """Returns weights fake-quantized, symmetric and in narrow range.

    Ranges follow the weights at hand and take no gradient.

    Args:
        weight: Output channels first, input channels second.
        number_format: Any signed format.
        scheme: Which weights share a scale.
    """
    return quantized_with(
        weight, number_format, scales_of_weight(weight.detach(), number_format, scheme), scheme
    )


def quantized_with(
    weight: Tensor,
    number_format: NumberFormat,
    scale: Tensor | None,
    scheme: QuantScheme = DEFAULT_SCHEME,
) -> Tensor:
    """Returns weights fake-quantized with the scales of :func:`scales_of_weight`."""
    if number_format.block_size:
        # Blocks run along input channels; where a group has one alone, along the taps.
        rows = weight.flatten(1) if weight.shape[1] == 1 else weight
        return fake_quantize_blocks(rows, number_format, axis=1).view_as(weight)
    if scale is not None:
        size = scheme.weight_group_size if scheme.weight_granularity == "group" else None
        axis = 0 if size is None else 1
        scale = spread(scale, weight.shape, axis, size)
    return unchecked_fake_quantize(weight, number_format, scale, narrow_range=True)


def scales_of_weight(
    weight: Tensor, number_format: NumberFormat, scheme: QuantScheme = DEFAULT_SCHEME
) -> Tensor | None:
    """Returns the scales of weights; None for formats that take none.

    Returns:
        (output channels,), also where all are equal; with groups the weight's shape with groups
        for input channels.
    """
    if not number_format.is_scaled:
        return None
    if scheme.weight_rule == "rms" and scheme.weight_granularity == "channel":
        return weight_scale(weight, number_format).flatten()
    granularity = _granularity(scheme)
    rows, shape = rows_of(weight, granularity)
    observer = OBSERVERS[scheme.weight_rule]()
    observer.update(rows)
    found = observed_params(
        observer,
        number_format,
        symmetric=True,
        narrow_range=True,
        granularity=granularity,
        shape=shape,
    )
    assert found.scale is not None
    return (
        found.scale.expand(len(weight)) if scheme.weight_granularity == "tensor" else found.scale
    )


def scale_shape(
    weight: Tensor, number_format: NumberFormat, scheme: QuantScheme
) -> tuple[int, ...]:
    """Returns the shape of :func:`scales_of_weight`; (output channels,) where there are none."""
    if scheme.weight_granularity != "group" or not number_format.is_scaled:
        return (len(weight),)
    return rows_of(weight, _granularity(scheme))[1]


def _granularity(scheme: QuantScheme) -> Granularity:
    return {
        "channel": Granularity(0),
        "tensor": Granularity(),
        "group": Granularity(1, scheme.weight_group_size),
    }[scheme.weight_granularity]

"""Quantizers of activations: ranges follow the batch in training and are frozen by calibration."""

import math

import torch
from torch import Tensor, nn

from apqkit.errors import CalibrationError, FormatError
from apqkit.formats import SMALLEST_SCALE, NumberFormat
from apqkit.quant.blocks import fake_quantize_blocks, tensor_scale
from apqkit.quant.learned import lsq, lsq_gradient_scale, pact
from apqkit.quant.observers import OBSERVERS, Observer
from apqkit.quant.onnx_marker import mark_for_export
from apqkit.quant.qparams import observed_params
from apqkit.quant.quantize import check_finite, unchecked_fake_quantize
from apqkit.quant.ranges import activation_scale, clip_multiple
from apqkit.quant.weights import QuantScheme

__all__ = ["ActivationQuantizer", "ObservedQuantizer"]


class ActivationQuantizer(nn.Module):
    """Quantizes one tensor of known sign with one scale, by the rule of the root mean square."""

    scale: Tensor

    def __init__(self, number_format: NumberFormat, *, signed: bool, name: str = "") -> None:
        super().__init__()
        self.number_format = number_format.for_sign(signed=signed)
        self.signed = signed
        self.name = name
        self.block_axis = 1
        self.calibrating = False
        self.register_buffer("scale", torch.tensor(float("nan")))

    @property
    def is_static_integer(self) -> bool:
        """Whether it writes integer levels with one frozen scale."""
        return self.number_format.family == "int"

    def forward(self, x: Tensor) -> Tensor:
        """Returns x as the format holds it."""
        if self.number_format.is_fp32:
            return x
        if torch.onnx.is_in_onnx_export():
            return mark_for_export(x, self.name)
        if self.calibrating:
            check_finite(x, self.name)
            self._freeze(x)
        elif self.training:
            return self._follow(x)
        elif self.scale.isnan():
            raise CalibrationError(f"{self.name} has no range yet: call calibrate(model, images)")
        else:
            check_finite(x, self.name)
        return self._frozen(x)

    def begin_calibration(self) -> None:
        """Forgets what earlier calibrations saw."""
        self.scale.fill_(float("nan"))

    def end_calibration(self) -> None:
        """Lets go of what was seen."""

    def _follow(self, x: Tensor) -> Tensor:
        """Returns x quantized in the range of this batch."""
        if not self.number_format.is_scaled:
            check_finite(x, self.name)
            return self._unscaled(x, None)
        scale = activation_scale(x.detach(), self.number_format, signed=self.signed)
        if not math.isfinite(float(scale)):
            check_finite(x, self.name)
        clips = clip_multiple(self.number_format, signed=self.signed) is not None
        return unchecked_fake_quantize(x, self.number_format, scale, clips=clips)

    def _freeze(self, x: Tensor) -> None:
        """Widens the frozen range, if there is one, to that of a batch."""
        if self.number_format.is_scaled:
            scale = activation_scale(x, self.number_format, signed=self.signed)
        elif self.has_tensor_scale:
            scale = tensor_scale(x, self.number_format)
        else:
            scale = torch.ones_like(self.scale)
        self.scale.copy_(scale if self.scale.isnan() else torch.maximum(self.scale, scale))

    def _frozen(self, x: Tensor) -> Tensor:
        if self.number_format.is_scaled:
            return unchecked_fake_quantize(x, self.number_format, self.scale)
        return self._unscaled(x, self.scale if self.has_tensor_scale else None)

    @property
    def has_tensor_scale(self) -> bool:
        """Whether blocks have scales relative to one of the whole tensor."""
        return self.number_format.name == "nvfp4"

    def _unscaled(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Returns x in a format that finds its own scales, or has none."""
        if not self.number_format.block_size:
            return unchecked_fake_quantize(x, self.number_format, None)
        return fake_quantize_blocks(x, self.number_format, axis=self.block_axis, scale=scale)


class ObservedQuantizer(ActivationQuantizer):
    """Quantizes one tensor by any scheme; whether it can be negative, calibration finds out.

    Args:
        number_format: Integers by their signed name; they become unsigned where calibration meets
            nothing negative, or where zero points are free.
        scheme: Granularity, rule, what trains.
        name: For messages and marks.
        block_axis: Axis along which blocks of block formats run.
    """

    zero_point: Tensor
    sign: Tensor
    trained: Tensor
    log_step: nn.Parameter | None

    def __init__(
        self, number_format: NumberFormat, scheme: QuantScheme, *, name: str, block_axis: int
    ) -> None:
        super().__init__(number_format, signed=True, name=name)
        self.scheme = scheme
        self.block_axis = block_axis
        self._observer: Observer | None = None
        self.register_buffer("zero_point", torch.zeros(()))
        self.register_buffer("sign", torch.tensor(1.0))
        learns = scheme.activation_training != "range" and number_format.family == "int"
        # The logarithm trains: the step stays positive, and an optimiser's step is relative.
        self.register_parameter("log_step", nn.Parameter(torch.zeros(())) if learns else None)
        self.register_buffer("trained", torch.tensor(0.0))
        self.register_load_state_dict_post_hook(_follow_sign)

    @property
    def per_token(self) -> bool:
        """Whether every row along the last axis has a scale of its own, found when it comes."""
        return self.scheme.activation_granularity == "token" and self.number_format.is_scaled

    @property
    def is_static_integer(self) -> bool:
        """Whether it writes integer levels with one frozen scale."""
        return super().is_static_integer and not self.per_token

    def begin_calibration(self) -> None:
        """Forgets what earlier calibrations saw; a step that was trained stays."""
        super().begin_calibration()
        self._observer = None

    def end_calibration(self) -> None:
        """Lets go of what was seen."""
        self._observer = None

    def take_sign(self, *, signed: bool) -> None:
        """Settles whether the tensor can be negative."""
        self.signed = signed
        self.sign.fill_(1.0 if signed else 0.0)
        self.number_format = self.number_format.for_sign(signed=signed)

    def _follow(self, x: Tensor) -> Tensor:
        if self.scale.isnan():
            raise CalibrationError(
                f"{self.name} does not know its range yet: call calibrate before training"
            )
        check_finite(x, self.name)
        if self.log_step is not None:
            self.trained.fill_(1.0)
            return self._learned(x, self.log_step.exp())
        if not self.number_format.is_scaled or self.per_token:
            return self._frozen(x)
        scale, zero_point = self._observed(x, OBSERVERS[self.scheme.activation_rule]())
        return unchecked_fake_quantize(x, self.number_format, scale, zero_point)

    def _learned(self, x: Tensor, step: Tensor) -> Tensor:
        share = lsq_gradient_scale(x[0].numel(), self.number_format)
        if self.scheme.activation_training == "pact":
            clip = step * self.number_format.highest_level
            clip = clip.detach() + share * (clip - clip.detach())  # else it drowns all others
            return pact(x, clip, self.number_format)
        zero_point = self.zero_point
        return lsq(x, step, self.number_format, zero_point=zero_point, gradient_scale=share)

    def _observed(self, x: Tensor, observer: Observer) -> tuple[Tensor, Tensor]:
        if x.numel():
            observer.update(x.detach().reshape(1, -1))
        else:
            observer.update(x.new_zeros((1, 1)))
        symmetric = self.scheme.symmetric_activations or self.number_format.family != "int"
        found = observed_params(observer, self.number_format, symmetric=symmetric)
        assert isinstance(found.scale, Tensor)
        assert isinstance(found.zero_point, Tensor)
        return found.scale, found.zero_point

    def _freeze(self, x: Tensor) -> None:
        if not self.number_format.is_scaled:
            super()._freeze(x)
            return
        if self.log_step is not None and bool(self.trained):
            self.scale.copy_(self.log_step.detach().exp())
            return
        self._settle_sign(x)
        if self._observer is None:
            self._observer = OBSERVERS[self.scheme.activation_rule]()
        scale, zero_point = self._observed(x, self._observer)
        self.zero_point.copy_(zero_point)
        self.scale.copy_(scale)
        if self.log_step is not None:
            with torch.no_grad():
                self.log_step.copy_(scale.log())

    def _settle_sign(self, x: Tensor) -> None:
        if self.number_format.family != "int" or self.per_token:
            return
        if not self.scheme.symmetric_activations:
            self.take_sign(signed=False)
            return
        negative = x.numel() > 0 and bool(x.amin() < 0)
        if self.scheme.activation_training == "pact" and negative:
            raise FormatError(f"{self.name} can be negative: pact takes outputs of a ReLU")
        seen_negative = self._observer is not None and self.signed
        self.take_sign(signed=negative or seen_negative)

    def _frozen(self, x: Tensor) -> Tensor:
        if not self.number_format.is_scaled:
            return super()._frozen(x)
        if not self.per_token:
            zero_point = self.zero_point if bool(self.zero_point) else 0
            return unchecked_fake_quantize(x, self.number_format, self.scale, zero_point)
        largest = x.detach().abs().amax(dim=-1, keepdim=True)
        scale = (largest / self.number_format.max_value).clamp(min=SMALLEST_SCALE)
        return unchecked_fake_quantize(x, self.number_format, scale)


def _follow_sign(module: nn.Module, incompatible: object) -> None:
    """Takes the sign that a loaded state holds."""
    del incompatible
    assert isinstance(module, ObservedQuantizer)
    if module.number_format.family == "int":
        module.take_sign(signed=bool(module.sign))

"""The pass over images that freezes ranges, statistics and weights of quantized layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apqkit.errors import CalibrationError
from apqkit.quant.activations import ActivationQuantizer
from apqkit.quant.layers import QuantConv, QuantLayer, QuantLinear

__all__ = ["calibrate"]


def calibrate(model: nn.Module, images: Tensor | Sequence[Tensor]) -> None:
    """Freezes every quantized layer of a model, in place, and leaves it in evaluation mode.

    Layers are frozen in the order in which they run, each on inputs that are quantized as they
    will be. Give all calibration images as one batch where they fit: statistics and ranges are
    then those of all of them. Of several batches, ranges hold what any of them needs (or as the
    scheme's rule has it), and statistics are averaged.

    Args:
        model: A module with layers of :mod:`apqkit.quant.layers`, such as
            :func:`apqkit.quant.prepare` or ``supernet.extract`` return.
        images: (batch, channels, height, width), at least two in all, pixels in 0..1; or what else
            the model takes, along the first axis; or several such batches.

    Raises:
        CalibrationError: Fewer than two images, images that are no float32 tensors, or a layer
            that took no part.
        NonFiniteError: A value that is not finite; it names the tensor.
    """
    batches = [images] if isinstance(images, Tensor) else list(images)
    _check(batches)
    model.eval()
    layers = [
        each for each in model.modules() if isinstance(each, QuantLayer | ActivationQuantizer)
    ]
    if not layers:
        raise CalibrationError("the model has no quantized layers: call prepare first")
    parameter = next(model.parameters(), batches[0])
    for layer in layers:
        layer.begin_calibration()
        layer.calibrating = True
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch.to(parameter.device))
    finally:
        for layer in layers:
            layer.calibrating = False
            layer.end_calibration()
    _check_all_ran(model)


def _check(batches: Sequence[object]) -> None:
    count = 0
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.dtype != torch.float32:
            got = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            raise CalibrationError(f"calibration takes float32 tensors of images, got {got}")
        count += len(batch)
    if count < 2:
        raise CalibrationError(f"calibration needs at least 2 images, got {count}")


def _check_all_ran(model: nn.Module) -> None:
    """Raises if a layer took no part: what it was to quantize runs in fp32, or not at all."""
    idle = [
        name
        for name, each in model.named_modules()
        if isinstance(each, QuantConv | QuantLinear) and not each.was_calibrated
    ]
    if idle:
        raise CalibrationError(
            f"{', '.join(idle[:3])} did not run in calibration: the model leaves it out or reads "
            f"its weight by another way; give it no formats"
        )

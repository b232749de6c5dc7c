"""The one pass over images that freezes ranges, statistics and weights of quantized layers."""

import torch
from torch import Tensor, nn

from apqkit.errors import CalibrationError
from apqkit.quant.layers import ActivationQuantizer, QuantLayer

__all__ = ["calibrate"]


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Freezes every quantized layer of a model, in place, and leaves it in evaluation mode.

    Layers are frozen in the order in which they run, each on inputs that are quantized as they
    will be. Statistics are those of the whole batch, so give all calibration images at once.

    Args:
        model: A module with layers of :mod:`apqkit.quant.layers`.
        images: (batch, channels, height, width), at least two images, pixels in 0..1.

    Raises:
        CalibrationError: Fewer than two images, or a value that is not finite; it names the layer.
    """
    if len(images) < 2:
        raise CalibrationError(f"calibration needs at least 2 images, got {len(images)}")
    model.eval()
    layers = [
        each for each in model.modules() if isinstance(each, QuantLayer | ActivationQuantizer)
    ]
    for layer in layers:
        layer.calibrating = True
    try:
        with torch.no_grad():
            model(images)
    finally:
        for layer in layers:
            layer.calibrating = False

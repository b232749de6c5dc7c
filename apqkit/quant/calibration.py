"""The pass over images that freezes ranges, statistics and weights of quantized layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apqkit.errors import CalibrationError
from apqkit.quant.activations import ActivationQuantizer
from apqkit.quant.layers import QuantLayer

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
        CalibrationError: Fewer than two images, or a value that is not finite; it names the layer.
    """
    batches = [images] if isinstance(images, Tensor) else list(images)
    count = sum(len(batch) for batch in batches)
    if count < 2:
        raise CalibrationError(f"calibration needs at least 2 images, got {count}")
    model.eval()
    layers = [
        each for each in model.modules() if isinstance(each, QuantLayer | ActivationQuantizer)
    ]
    for layer in layers:
        layer.begin_calibration()
        layer.calibrating = True
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for layer in layers:
            layer.calibrating = False

"""The one evaluation loop, and how a subnet is measured."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from apqkit.data import ImageSet
from apqkit.quant.calibration import calibrate
from apqkit.types import BoolArray, Layer, Supernet

__all__ = ["accuracy_parts", "calibrated_subnet", "evaluate"]

_BATCH = 512


def evaluate(model: nn.Module, images: ImageSet) -> BoolArray:
    """(n,) True for the images that a frozen model classifies rightly."""
    hits = []
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            chosen = slice(start, start + _BATCH)
            logits = model(images.images(chosen).to(device))
            hits.append((logits.argmax(dim=1).cpu() == images.targets[chosen]).numpy())
    return np.concatenate(hits)


def calibrated_subnet(
    supernet: Supernet, layers: Sequence[Layer], calibration_images: Tensor
) -> nn.Module:
    """Returns a subnet ready to be measured: extracted, calibrated, folded and frozen.

    Args:
        supernet: Trained.
        layers: The subnet's active rows.
        calibration_images: Fixed training images, all in one batch.
    """
    model = supernet.extract(layers)
    calibrate(model, calibration_images)
    return model


def accuracy_parts(correct: BoolArray, images: ImageSet) -> dict[str, float]:
    """Returns the accuracy over plain and over corrupted images; {} where none are corrupted."""
    if not images.corrupted.any():
        return {}
    return {
        "plain": float(correct[~images.corrupted].mean()),
        "corrupted": float(correct[images.corrupted].mean()),
    }

import numpy as np
import pytest
import torch
from torch import nn

from apqkit.data.images import ImageSet
from apqkit.quant.calibration import calibrate
from apqkit.spaces.base import largest_picks
from apqkit.training import evaluate as evaluate_module
from apqkit.training.evaluate import accuracy_parts, calibrated_subnet, evaluate


class Reads(nn.Module):
    """Says the class that stands in the first pixel."""

    def forward(self, images):
        said = torch.round(images[:, 0, 0, 0] * 255).long()
        return nn.functional.one_hot(said, 10).float()


def image_set(count, wrong):
    pixels = np.zeros((count, 1, 2, 2), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count) % 10
    labels = np.arange(count) % 10
    labels[wrong] = (labels[wrong] + 1) % 10
    return ImageSet.of(pixels, labels)


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1200])
def test_every_image_is_judged_in_its_place(count):
    wrong = np.arange(0, count, 7)
    correct = evaluate(Reads(), image_set(count, wrong))
    assert correct.dtype == bool
    assert correct.shape == (count,)
    assert np.flatnonzero(~correct).tolist() == wrong.tolist()


def test_a_frozen_network_is_judged_the_same_in_any_batch(space, splits, monkeypatch):
    layers = space.network(largest_picks(space.dims)).layers()
    calibration = splits.calibration_images(32).images()
    model = calibrated_subnet(space.supernet(0), layers, calibration)
    whole = evaluate(model, splits.validation)
    monkeypatch.setattr(evaluate_module, "_BATCH", 7)
    assert np.array_equal(evaluate(model, splits.validation), whole)
    assert not any(each.requires_grad and each.grad is not None for each in model.parameters())


def test_a_calibrated_subnet_is_extracted_calibrated_and_on_its_own(space, splits, same_tensors):
    supernet = space.supernet(0)
    before = {name: each.clone() for name, each in supernet.state_dict().items()}
    layers = space.network(largest_picks(space.dims)).layers()
    calibration = splits.calibration_images(32).images()
    model = calibrated_subnet(supernet, layers, calibration)
    by_hand = supernet.extract(layers)
    calibrate(by_hand, calibration)
    images = splits.validation.images()
    assert torch.equal(model(images), by_hand(images))
    assert not model.training
    assert same_tensors(before, supernet.state_dict())


def test_accuracy_is_told_apart_for_plain_and_corrupted_images():
    images = image_set(4, [])
    mixed = ImageSet(
        images.pixels, images.labels, images.base, np.array([False, True, True, True])
    )
    correct = np.array([True, False, True, False])
    assert accuracy_parts(correct, mixed) == {"plain": 1.0, "corrupted": 1 / 3}
    assert accuracy_parts(correct, images) == {}

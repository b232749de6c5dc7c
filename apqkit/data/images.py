"""Labelled images and what is done to them: splits, fixed corruptions, training variations.

Pixels are held as 8-bit integers and handed to networks as fp32 in 0..1, channels first.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from apqkit.config import Corruptions, DataConfig

__all__ = ["ImageSet", "RawImages", "augment", "corrupt", "shift_images"]

_PIXEL_MAX = 255.0


@dataclass(frozen=True)
class RawImages:
    """What a loader returns; test images are optional.

    Attributes:
        x_train: (n, channels, height, width) uint8.
        y_train: (n,) class indices.
        class_names: One name a class.
        x_test: Like x_train, or None.
        y_test: Like y_train, or None.
    """

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    class_names: tuple[str, ...]
    x_test: NDArray[np.uint8] | None = None
    y_test: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ImageSet:
    """Images of one split.

    Attributes:
        pixels: (n, channels, height, width) uint8.
        labels: (n,) class indices.
        base: (n,) which original image each one was made from.
        corrupted: (n,) True for corrupted copies.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    base: NDArray[np.int64]
    corrupted: NDArray[np.bool_]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> "ImageSet":
        """Returns a set of plain images."""
        count = len(pixels)
        return cls(pixels, labels.astype(np.int64), np.arange(count), np.zeros(count, dtype=bool))

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.pixels)

    def take(self, index: NDArray[np.int64]) -> "ImageSet":
        """Returns the images chosen by index."""
        return ImageSet(
            self.pixels[index], self.labels[index], self.base[index], self.corrupted[index]
        )

    def images(self, index: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """Returns fp32 pixels in 0..1, (n, channels, height, width), channels last in memory."""
        chosen = torch.from_numpy(np.ascontiguousarray(self.pixels[index]))
        return chosen.float().div_(_PIXEL_MAX).contiguous(memory_format=torch.channels_last)

    @cached_property
    def targets(self) -> Tensor:
        """(n,) class indices as a tensor."""
        return torch.from_numpy(self.labels)


def corrupt(images: ImageSet, how: Corruptions, seed: int) -> ImageSet:
    """Returns the plain images followed by their corrupted copies.

    Each copy is shifted by a whole number of pixels in each axis (what moves in is black) and gets
    Gaussian noise; pixels stay in 0..255. The copies of an image are the same for a seed.
    """
    rng = np.random.default_rng(seed)
    parts, labels, bases, flags = (
        [images.pixels],
        [images.labels],
        [images.base],
        [images.corrupted],
    )
    for _ in range(how.copies):
        shifts = rng.integers(-how.shift, how.shift + 1, size=(len(images), 2))
        moved = shift_images(torch.from_numpy(images.pixels), torch.from_numpy(shifts)).numpy()
        noise = rng.normal(0.0, how.noise * _PIXEL_MAX, size=moved.shape)
        parts.append(np.clip(np.rint(moved + noise), 0, _PIXEL_MAX).astype(np.uint8))
        labels.append(images.labels)
        bases.append(images.base)
        flags.append(np.ones(len(images), dtype=bool))
    return ImageSet(
        np.concatenate(parts), np.concatenate(labels), np.concatenate(bases), np.concatenate(flags)
    )


def augment(images: Tensor, data: DataConfig, rng: np.random.Generator) -> Tensor:
    """Returns training images, each shifted, mirrored and made noisy at random.

    Args:
        images: (batch, channels, height, width) in 0..1.
        data: ``augment_shift``, ``augment_noise`` and ``augment_flip`` say how far.
        rng: Source of all draws.
    """
    batch = len(images)
    if data.augment_shift:
        limit = data.augment_shift
        shifts = torch.from_numpy(rng.integers(-limit, limit + 1, size=(batch, 2)))
        images = shift_images(images, shifts)
    if data.augment_flip:
        mirrored = torch.from_numpy(rng.random(batch) < 0.5).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(-1), images)
    if data.augment_noise:
        deviation = rng.uniform(0.0, data.augment_noise, size=(batch, 1, 1, 1))
        noise = rng.standard_normal(images.shape, dtype=np.float32) * deviation.astype(np.float32)
        images = (images + torch.from_numpy(noise)).clamp_(0.0, 1.0)
    return images.contiguous(memory_format=torch.channels_last)


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Returns images moved by whole pixels; zeros move in.

    Args:
        images: (batch, channels, height, width).
        shifts: (batch, 2) pixels down and to the right; negative for up and to the left.
    """
    margin = int(shifts.abs().max()) if shifts.numel() else 0
    height, width = images.shape[2:]
    padded = F.pad(images, (margin,) * 4).permute(0, 2, 3, 1)
    rows = torch.arange(height) + margin - shifts[:, :1]
    columns = torch.arange(width) + margin - shifts[:, 1:]
    batch = torch.arange(len(images))[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

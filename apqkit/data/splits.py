"""Splits by class, and the one place where test images are handed out."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apqkit.config import DataConfig
from apqkit.data.images import ImageSet, RawImages, corrupt
from apqkit.errors import DataError

__all__ = ["Splits", "make_splits"]

_SPLIT_STREAM, _VALIDATION_STREAM, _TEST_STREAM = range(3)


@dataclass(frozen=True)
class Splits:
    """Training and validation images; test images only on request.

    Attributes:
        train: Plain training images.
        validation: Validation images, corrupted copies included.
        class_names: One name a class.
        fingerprint: Hash over all images and labels.
    """

    train: ImageSet
    validation: ImageSet
    class_names: tuple[str, ...]
    fingerprint: str
    _test: ImageSet

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        channels, height, width = self.train.pixels.shape[1:]
        return int(channels), int(height), int(width)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def read_test(self) -> ImageSet:
        """Returns the test images. For final measurements only: nothing may be chosen by them."""
        return self._test

    def calibration_images(self, count: int) -> ImageSet:
        """Returns the first training images: fixed, since calibration noise is ranking noise."""
        return self.train.take(np.arange(min(count, len(self.train))))


def make_splits(raw: RawImages, config: DataConfig, seed: int) -> Splits:
    """Splits images by class and adds the fixed corrupted copies to validation and test.

    Args:
        raw: Images as loaded; where test images are missing, ``config.test`` of all are taken.
        config: Shares, limit and corruptions.
        seed: Seed of splits and corruptions.

    Raises:
        DataError: A class has too few images to stand in every split.
    """
    _check_classes(raw)
    everything = ImageSet.of(raw.x_train, raw.y_train)
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    order = rng.permutation(len(everything))
    validation_count = _count(config.validation, len(everything))
    if raw.x_test is None or raw.y_test is None:
        test_index, order = _take_by_class(raw.y_train, order, _count(config.test, len(order)))
        test = everything.take(test_index)
        _check_split("test", test, raw.class_names)
    else:
        test = ImageSet.of(raw.x_test, raw.y_test)
    validation_index, order = _take_by_class(raw.y_train, order, validation_count)
    if config.limit is not None and config.limit < len(order):
        order, _ = _take_by_class(raw.y_train, order, config.limit)
    splits = {"validation": everything.take(validation_index), "test": test}
    if config.corruptions is not None:
        streams = {"validation": _VALIDATION_STREAM, "test": _TEST_STREAM}
        splits = {
            name: corrupt(_rebased(split), config.corruptions, seed * 4 + streams[name])
            for name, split in splits.items()
        }
    train = everything.take(rng.permutation(order))
    _check_split("training", train, raw.class_names)
    _check_split("validation", splits["validation"], raw.class_names)
    return Splits(
        train=train,
        validation=splits["validation"],
        class_names=raw.class_names,
        fingerprint=_fingerprint(train, splits["validation"], splits["test"]),
        _test=splits["test"],
    )


def _rebased(images: ImageSet) -> ImageSet:
    return ImageSet.of(images.pixels, images.labels)


def _count(share: float | int, total: int) -> int:
    return round(share * total) if share < 1 else int(share)


def _take_by_class(
    labels: NDArray[np.int64], order: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Takes ``count`` of ``order`` with every class in proportion; returns taken and left."""
    ranks = np.empty(len(order))
    for label in np.unique(labels[order]):
        members = np.flatnonzero(labels[order] == label)
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    by_rank = np.argsort(ranks, kind="stable")
    return order[by_rank[:count]], order[np.sort(by_rank[count:])]


def _check_classes(raw: RawImages) -> None:
    if len(raw.class_names) < 2:
        raise DataError(f"images must show at least 2 classes, got {len(raw.class_names)}")
    counts = np.bincount(raw.y_train, minlength=len(raw.class_names))
    rarest = int(counts.argmin())
    if counts[rarest] < 3:
        raise DataError(
            f"every class needs at least 3 training images, "
            f"class {raw.class_names[rarest]!r} has {counts[rarest]}"
        )
    if raw.x_test is not None and raw.x_test.shape[1:] != raw.x_train.shape[1:]:
        raise DataError(
            f"test images must have the shape of training images {raw.x_train.shape[1:]}, "
            f"got {raw.x_test.shape[1:]}"
        )


def _check_split(name: str, images: ImageSet, class_names: tuple[str, ...]) -> None:
    missing = sorted(set(range(len(class_names))) - set(images.labels.tolist()))
    if missing:
        raise DataError(
            f"the {name} images show no {class_names[missing[0]]!r}: "
            f"change data.validation, data.test or data.limit"
        )


def _fingerprint(*splits: ImageSet) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(str(split.pixels.shape).encode())
        digest.update(np.ascontiguousarray(split.pixels).data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()[:16]

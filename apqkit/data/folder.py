"""A user's own images as files: one sub-folder a class, read with Pillow."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apqkit.config import DataConfig
from apqkit.data.arrays import required_path
from apqkit.data.images import RawImages
from apqkit.errors import DataError

__all__ = ["load_folder"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}


def load_folder(config: DataConfig) -> RawImages:
    """Reads ``PATH/CLASS/*.png`` (or jpg, bmp, ...).

    If the folder has sub-folders named ``train`` and ``test``, those hold the classes of the two
    splits. Images become grey if all are grey, else RGB; ``data.image_size`` makes them square.

    Raises:
        DataError: No images, images that differ in size, or a file that Pillow cannot read.
    """
    root = required_path(config)
    if not root.is_dir():
        raise DataError(f"data.path {str(root)!r} is no folder")
    parted = (root / "train").is_dir() and (root / "test").is_dir()
    train_root = root / "train" if parted else root
    names = tuple(each.name for each in sorted(train_root.iterdir()) if each.is_dir())
    x_train, y_train = _read_split(train_root, names, config.image_size)
    if not parted:
        return RawImages(_stack(x_train), y_train, names)
    x_test, y_test = _read_split(root / "test", names, config.image_size)
    both = _stack([*x_train, *x_test])
    count = len(x_train)
    return RawImages(both[:count], y_train, names, both[count:], y_test)


def _read_split(
    root: Path, names: tuple[str, ...], size: int | None
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    first: Path | None = None
    for label, name in enumerate(names):
        folder = root / name
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in (each for each in files if each.suffix.lower() in _SUFFIXES):
            image = _read_image(path, size)
            if first is not None and image.shape[:2] != images[0].shape[:2]:
                raise DataError(
                    f"{path} is {image.shape[1]}x{image.shape[0]} and {first} is "
                    f"{images[0].shape[1]}x{images[0].shape[0]}: set data.image_size to resize all"
                )
            first = first or path
            images.append(image)
            labels.append(label)
    if not images:
        raise DataError(
            f"{root} holds no images: expected one sub-folder a class with image files"
        )
    return images, np.array(labels, dtype=np.int64)


def _read_image(path: Path, size: int | None) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            grey = image.mode in {"1", "L"}
            converted = image.convert("L" if grey else "RGB")
            if size is not None:
                converted = converted.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(converted, dtype=np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError) as fault:
        raise DataError(f"{path} is no readable image: {fault}") from None


def _stack(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if all(image.ndim == 2 for image in images):
        return np.stack(images)[:, None]
    coloured = [np.stack([image] * 3, axis=-1) if image.ndim == 2 else image for image in images]
    return np.ascontiguousarray(np.moveaxis(np.stack(coloured), -1, 1))

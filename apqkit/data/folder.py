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
_GREY_MODES = {"1", "L", "LA"}


def load_folder(config: DataConfig) -> RawImages:
    """Reads ``PATH/CLASS/*.png`` (or jpg, bmp, ...).

    If the folder has sub-folders named ``train`` and ``test``, those hold the classes of the two
    splits. Images become grey if all are grey, else RGB; ``data.image_size`` makes them square.
    Transparency is dropped; files and folders whose names begin with a dot are left alone.

    Raises:
        DataError: No images, images that differ in size, a test class without training images, a
            file that Pillow cannot read, or one with more than 8 bits a channel.
    """
    root = required_path(config)
    if not root.is_dir():
        raise DataError(f"data.path {str(root)!r} is no folder")
    parted = (root / "train").is_dir() and (root / "test").is_dir()
    train_root = root / "train" if parted else root
    names = tuple(folder.name for folder in _class_folders(train_root))
    codes = {name: code for code, name in enumerate(names)}
    train = _image_files(train_root)
    test = _image_files(root / "test") if parted else []
    for path in test:
        if path.parent.name not in codes:
            raise DataError(f"{path.parent} is a class that {train_root} does not have")
    pixels = _read_images([*train, *test], config.image_size)
    labels = np.array([codes[path.parent.name] for path in [*train, *test]], dtype=np.int64)
    if not parted:
        return RawImages(pixels, labels, names)
    count = len(train)
    return RawImages(pixels[:count], labels[:count], names, pixels[count:], labels[count:])


def _class_folders(root: Path) -> list[Path]:
    return [each for each in _visible(root) if each.is_dir()]


def _image_files(root: Path) -> list[Path]:
    files = [
        each
        for folder in _class_folders(root)
        for each in _visible(folder)
        if each.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{root} holds no images: expected one sub-folder a class with image files"
        )
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _read_images(files: list[Path], size: int | None) -> NDArray[np.uint8]:
    """Returns (n, 1, height, width) if all are grey, else (n, 3, height, width)."""
    images = []
    for path in files:
        images.append(_read_image(path, size))
        (height, width), expected = images[-1].shape[:2], images[0].shape[:2]
        if (height, width) != expected:
            raise DataError(
                f"{path} is {width}x{height} and {files[0]} is {expected[1]}x{expected[0]}: "
                f"set data.image_size to resize all"
            )
    if all(image.ndim == 2 for image in images):
        return np.stack(images)[:, None]
    coloured = [np.stack([image] * 3, axis=-1) if image.ndim == 2 else image for image in images]
    return np.ascontiguousarray(np.moveaxis(np.stack(coloured), -1, 1))


def _read_image(path: Path, size: int | None) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            deep = image.mode.startswith(("I", "F"))  # 16 or 32 bits: convert() would cut them off
            converted = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    except Exception as fault:  # decoders raise anything from OSError to IndexError
        raise DataError(f"{path} is no readable image: {fault}") from fault
    if deep:
        raise DataError(f"{path} has more than 8 bits a channel: convert it to 8 bits")
    if size is not None:
        converted = converted.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(converted, dtype=np.uint8)

"""Fashion-MNIST (Zalando, MIT licence) from local files: one ``.npz``, or the official four.

The official files, with their MD5 sums as published by the authors, are at
http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/. Nothing is downloaded here.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apqkit.config import DataConfig
from apqkit.data.arrays import images_from_arrays, read_npz, required_path
from apqkit.data.images import RawImages
from apqkit.errors import DataError

__all__ = ["ADDRESS", "CLASS_NAMES", "FILES", "load_fashion_mnist", "read_idx_folder"]

ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES: dict[str, tuple[str, str]] = {
    "x_train": ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "y_train": ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    "x_test": ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
    "y_test": ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
}
"""For each array the official file and its MD5 sum."""

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_fashion_mnist(config: DataConfig) -> RawImages:
    """Returns 60,000 training and 10,000 test images, grey, 28x28, 10 classes.

    Raises:
        DataError: ``data.path`` is missing, broken or another data set.
    """
    if config.path is None:
        raise DataError(
            "data.name 'fashion-mnist' needs data.path: an .npz file, or a folder with the "
            f"official files from {ADDRESS}"
        )
    path = required_path(config)
    raw = read_idx_folder(path, FILES) if path.is_dir() else read_npz(path)
    labels = tuple(str(label) for label in range(len(CLASS_NAMES)))
    if raw.x_train.shape[1:] != (1, 28, 28) or raw.class_names != labels:
        raise DataError(
            f"{path} is not Fashion-MNIST: expected 28x28 grey images and labels 0 to 9, "
            f"got {raw.x_train.shape[1:]} and labels {', '.join(raw.class_names)}"
        )
    return RawImages(raw.x_train, raw.y_train, CLASS_NAMES, raw.x_test, raw.y_test)


def read_idx_folder(folder: Path, files: Mapping[str, tuple[str, str]]) -> RawImages:
    """Reads gzipped IDX files after checking their MD5 sums.

    Args:
        folder: Where they lie.
        files: For each array name the file and its MD5 sum.

    Raises:
        DataError: A file is missing, is not the one with that sum, or is no IDX file.
    """
    arrays = {key: _read_idx(folder / name, md5) for key, (name, md5) in files.items()}
    return images_from_arrays(arrays, str(folder))


def _read_idx(path: Path, md5: str) -> NDArray[np.generic]:
    if not path.is_file():
        raise DataError(f"{path} is missing; it is published at {ADDRESS}")
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path} is damaged: its MD5 sum must be {md5}, got {found}")
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as fault:
        raise DataError(f"{path} is no gzip file: {fault}") from None
    try:
        axes = raw[3]  # two zero bytes, the type (8: unsigned byte), the number of axes
        shape = np.frombuffer(raw, dtype=">u4", count=axes, offset=4).astype(int)
        return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (IndexError, ValueError):
        raise DataError(f"{path} is no IDX file of bytes") from None

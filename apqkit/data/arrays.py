"""Images and labels from arrays: what every loader of a user's own data goes through."""

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apqkit.config import DataConfig
from apqkit.data.images import RawImages
from apqkit.errors import DataError

__all__ = ["images_from_arrays", "read_npz", "required_path"]

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def required_path(config: DataConfig) -> Path:
    """Returns ``data.path``.

    Raises:
        DataError: It is not set, or begins with the ~ of an unknown user.
    """
    if config.path is None:
        raise DataError(f"data.name {config.name!r} needs data.path: --set data.path=PATH")
    try:
        return Path(config.path).expanduser()
    except RuntimeError:
        raise DataError(f"data.path {config.path!r} names no user's home directory") from None


def read_npz(path: Path) -> RawImages:
    """Reads x_train, y_train and, where present, x_test, y_test from a file of plain arrays.

    Other arrays in the file are left alone.

    Raises:
        DataError: The file is missing, broken, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"data.path {str(path)!r} is no file")
    return images_from_arrays(_read_arrays(path), str(path))


def images_from_arrays(arrays: Mapping[str, NDArray[np.generic]], where: str) -> RawImages:
    """Checks named arrays and returns them as images.

    Args:
        arrays: x_train, y_train and optionally x_test, y_test.
        where: The file, for messages.

    Raises:
        DataError: An array is missing, or its shape, type or values are wrong.
    """
    _check_names(arrays, where)
    x_train = _as_pixels(arrays["x_train"], f"x_train in {where}")
    labels = _checked_labels(arrays["y_train"], len(x_train), f"y_train in {where}")
    names, y_train = np.unique(labels, return_inverse=True)
    class_names = tuple(map(str, names))
    if "x_test" not in arrays:
        return RawImages(x_train, y_train.astype(np.int64), class_names)
    x_test = _as_pixels(arrays["x_test"], f"x_test in {where}")
    labels = _checked_labels(arrays["y_test"], len(x_test), f"y_test in {where}")
    y_test = _as_indices(labels, names, f"y_test in {where}")
    return RawImages(x_train, y_train.astype(np.int64), class_names, x_test, y_test)


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no .npz file, or was cut short")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            _check_names(archive.files, str(path))
            return {key: np.asarray(archive[key]) for key in _NAMES if key in archive.files}
    except DataError:
        raise
    except Exception as fault:  # a broken file can raise anything from zip, zlib or the tokenizer
        reason = str(fault).partition("\n")[0]
        raise DataError(f"{path} is damaged or holds objects: {reason}") from fault


def _check_names(names: Collection[str], where: str) -> None:
    if not {"x_train", "y_train"} <= set(names):
        found = ", ".join(sorted(names)) or "nothing"
        raise DataError(f"{where} must hold x_train and y_train, got {found}")
    if ("x_test" in names) != ("y_test" in names):
        raise DataError(f"{where} must hold both x_test and y_test, or neither")


def _as_pixels(array: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    images = _channels_first(array, where)
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if images.dtype.kind not in "iuf":
        raise DataError(f"{where} must be uint8, or floats in 0..1, got {images.dtype}")
    low, high = float(images.min()), float(images.max())  # NaN if any is NaN
    if images.dtype.kind == "f" and 0.0 <= low <= high <= 1.0:
        return np.rint(images.astype(np.float64) * 255).astype(np.uint8)
    if images.dtype.kind in "iu" and 0 <= low <= high <= 255:
        return images.astype(np.uint8)
    raise DataError(
        f"{where} must be uint8, or floats in 0..1, got {images.dtype} in {low:g}..{high:g}"
    )


def _channels_first(array: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    if array.ndim == 3 and array.size:
        return array[:, None]
    if array.ndim == 4 and array.size:
        if array.shape[-1] in (1, 3):
            return np.moveaxis(array, -1, 1)
        if array.shape[1] in (1, 3):
            return array
    raise DataError(
        f"{where} must have shape (n, height, width), with 1 or 3 channels last or first, "
        f"got {array.shape}"
    )


def _checked_labels(labels: NDArray[np.generic], count: int, where: str) -> NDArray[np.generic]:
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise DataError(
            f"{where} must be one-dimensional integers or texts, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if len(labels) != count:
        raise DataError(f"{where} must hold one label an image ({count}), got {len(labels)}")
    return labels


def _as_indices(
    labels: NDArray[np.generic], names: NDArray[np.generic], where: str
) -> NDArray[np.int64]:
    unknown = sorted(set(labels.tolist()) - set(names.tolist()))
    if unknown:
        raise DataError(f"{where} holds the label {unknown[0]!r} that y_train does not have")
    return np.searchsorted(names, labels).astype(np.int64)

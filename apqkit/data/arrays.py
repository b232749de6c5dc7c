"""Images and labels from arrays: what every loader of a user's own data goes through."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apqkit.config import DataConfig
from apqkit.data.images import RawImages
from apqkit.errors import DataError

__all__ = ["images_from_arrays", "read_npz", "required_path"]


def required_path(config: DataConfig) -> Path:
    """Returns ``data.path``.

    Raises:
        DataError: It is not set.
    """
    if config.path is None:
        raise DataError(f"data.name {config.name!r} needs data.path: --set data.path=PATH")
    return Path(config.path).expanduser()


def read_npz(path: Path) -> RawImages:
    """Reads x_train, y_train and, where present, x_test, y_test from a file of plain arrays.

    Raises:
        DataError: The file is missing, broken, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"data.path {str(path)!r} is no file")
    return images_from_arrays(_read_arrays(path), str(path))


def images_from_arrays(arrays: dict[str, NDArray[np.generic]], where: str) -> RawImages:
    """Checks named arrays and returns them as images.

    Args:
        arrays: x_train, y_train and optionally x_test, y_test.
        where: The file, for messages.

    Raises:
        DataError: An array is missing, or its shape, type or values are wrong.
    """
    for key in ("x_train", "y_train"):
        if key not in arrays:
            found = ", ".join(sorted(arrays)) or "nothing"
            raise DataError(f"{where} must hold x_train and y_train, got {found}")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(f"{where} must hold both x_test and y_test, or neither")
    x_train = _as_pixels(arrays["x_train"], f"x_train in {where}")
    names = _class_names(arrays["y_train"], f"y_train in {where}")
    y_train = _as_indices(arrays["y_train"], names, len(x_train), f"y_train in {where}")
    if "x_test" not in arrays:
        return RawImages(x_train, y_train, tuple(map(str, names)))
    x_test = _as_pixels(arrays["x_test"], f"x_test in {where}")
    y_test = _as_indices(arrays["y_test"], names, len(x_test), f"y_test in {where}")
    return RawImages(x_train, y_train, tuple(map(str, names)), x_test, y_test)


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as fault:
        reason = str(fault).splitlines()[0]
        raise DataError(f"{path} is no readable .npz file of plain arrays: {reason}") from None


def _as_pixels(array: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    images = _channels_first(array, where)
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if np.issubdtype(images.dtype, np.floating):
        values = images.astype(np.float64)
        if not np.isfinite(values).all() or values.min() < 0.0 or values.max() > 1.0:
            raise DataError(
                f"{where} must lie in 0..1 when given as floats, "
                f"got {np.nanmin(values):g}..{np.nanmax(values):g}"
            )
        return np.rint(values * 255).astype(np.uint8)
    if np.issubdtype(images.dtype, np.integer) and images.min() >= 0 and images.max() <= 255:
        return images.astype(np.uint8)
    raise DataError(
        f"{where} must be uint8, or floats in 0..1, got {images.dtype} "
        f"in {images.min()}..{images.max()}"
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
        f"{where} must have shape (n, height, width) or (n, height, width, 1 or 3), "
        f"got {array.shape}"
    )


def _class_names(labels: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    if labels.ndim != 1 or not (
        np.issubdtype(labels.dtype, np.integer) or np.issubdtype(labels.dtype, np.str_)
    ):
        raise DataError(
            f"{where} must be one-dimensional integers or texts, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    return np.unique(labels)


def _as_indices(
    labels: NDArray[np.generic], names: NDArray[np.generic], count: int, where: str
) -> NDArray[np.int64]:
    if len(labels) != count:
        raise DataError(f"{where} must hold one label an image ({count}), got {len(labels)}")
    unknown = sorted(set(labels.tolist()) - set(names.tolist()))
    if unknown:
        raise DataError(f"{where} holds the label {unknown[0]!r} that y_train does not have")
    return np.searchsorted(names, labels).astype(np.int64)

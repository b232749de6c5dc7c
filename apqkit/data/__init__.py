"""Data sets by name, splits and corruptions."""

from collections.abc import Callable

from apqkit.config import DataConfig
from apqkit.data.digits import load_digits
from apqkit.data.fashion_mnist import load_fashion_mnist
from apqkit.data.folder import load_folder
from apqkit.data.images import ImageSet, RawImages
from apqkit.data.npz import load_npz
from apqkit.data.splits import Splits, make_splits
from apqkit.registry import lookup

__all__ = ["DATASETS", "ImageSet", "RawImages", "Splits", "load_splits"]

DATASETS: dict[str, Callable[[DataConfig], RawImages]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "npz": load_npz,
    "folder": load_folder,
}
"""Loaders by the name that ``data.name`` takes."""


def load_splits(config: DataConfig, seed: int) -> Splits:
    """Loads a data set and splits it.

    Args:
        config: The ``[data]`` part of the configuration.
        seed: Seed of splits and corruptions.

    Raises:
        UnknownNameError: No data set of that name.
        DataError: Files are missing, broken or of the wrong shape.
    """
    return make_splits(lookup(DATASETS, config.name, "data set")(config), config, seed)

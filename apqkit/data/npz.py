"""A user's own images in one ``.npz`` file."""

from apqkit.config import DataConfig
from apqkit.data.arrays import read_npz, required_path
from apqkit.data.images import RawImages

__all__ = ["load_npz"]


def load_npz(config: DataConfig) -> RawImages:
    """Reads x_train, y_train and, where present, x_test, y_test.

    Images are (n, height, width), (n, height, width, channels) or (n, channels, height, width)
    with 1 or 3 channels, as 8-bit integers or as floats in 0..1. Labels are integers or texts.

    Raises:
        DataError: The file is missing, broken, or holds something else.
    """
    return read_npz(required_path(config))

"""The 1,797 real 8x8 images of handwritten digits that are bundled with scikit-learn."""

import numpy as np

from apqkit.config import DataConfig
from apqkit.data.images import RawImages

__all__ = ["load_digits"]

_GREY_LEVELS = 16  # the images count pixels of 4x4 cells: 0..16


def load_digits(config: DataConfig) -> RawImages:
    """Returns the digits, grey, 10 classes, without test images."""
    del config
    from sklearn import datasets

    bunch = datasets.load_digits()
    pixels = np.rint(bunch.images * (255 / _GREY_LEVELS)).astype(np.uint8)
    names = tuple(str(each) for each in bunch.target_names)
    return RawImages(pixels[:, None], bunch.target.astype(np.int64), names)

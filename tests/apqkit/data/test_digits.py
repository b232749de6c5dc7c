import numpy as np
from sklearn import datasets

from apqkit.config import DataConfig
from apqkit.data.digits import load_digits


def test_the_digits_are_those_of_scikit_learn_in_eight_bits():
    raw = load_digits(DataConfig())
    bunch = datasets.load_digits()
    assert raw.x_train.shape == (1797, 1, 8, 8)
    assert raw.x_train.dtype == np.uint8
    assert np.array_equal(np.rint(raw.x_train[:, 0] / 255 * 16), bunch.images)
    assert (raw.x_train.min(), raw.x_train.max()) == (0, 255)
    assert raw.y_train.tolist() == bunch.target.tolist()
    assert raw.y_train.dtype == np.int64
    assert raw.class_names == tuple("0123456789")
    assert raw.x_test is None

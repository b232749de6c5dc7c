import numpy as np
import pytest

from apqkit.config import DataConfig
from apqkit.data.npz import load_npz
from apqkit.errors import DataError


def test_a_users_file_is_read(tmp_path):
    path = tmp_path / "mine.npz"
    pixels = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
    np.savez(path, x_train=pixels, y_train=np.array(["b", "a"] * 3))
    raw = load_npz(DataConfig(name="npz", path=str(path)))
    assert np.array_equal(raw.x_train[:, 0], pixels)
    assert raw.class_names == ("a", "b")
    assert raw.y_train.tolist() == [1, 0] * 3


def test_a_file_must_be_named():
    with pytest.raises(DataError) as caught:
        load_npz(DataConfig(name="npz"))
    assert str(caught.value) == "data.name 'npz' needs data.path: --set data.path=PATH"

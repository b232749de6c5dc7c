import numpy as np
import pytest

from apqkit.config import Corruptions, DataConfig
from apqkit.data import DATASETS, RawImages, load_splits
from apqkit.errors import DataError, UnknownNameError


def test_a_data_set_is_loaded_by_name_and_split():
    config = DataConfig(validation=100, test=200, corruptions=Corruptions(copies=1))
    splits = load_splits(config, 0)
    assert (len(splits.train), len(splits.validation), len(splits.read_test())) == (1497, 200, 400)
    assert splits.image_shape == (1, 8, 8)
    assert splits.classes == 10


def test_an_unknown_data_set_lists_those_there_are():
    with pytest.raises(UnknownNameError) as caught:
        load_splits(DataConfig(name="digit"), 0)
    assert str(caught.value) == (
        "no data set named 'digit' (did you mean 'digits'?); "
        "there are: digits, fashion-mnist, folder, npz"
    )


def test_a_plug_in_is_one_entry(monkeypatch):
    def mine(config):
        pixels = np.full((12, 1, 4, 4), config.limit, np.uint8)
        return RawImages(pixels, np.arange(12) % 2, ("a", "b"))

    monkeypatch.setitem(DATASETS, "mine", mine)
    splits = load_splits(DataConfig(name="mine", limit=6), 0)
    assert (splits.train.pixels == 6).all()


def test_a_class_missing_from_a_users_file_gives_one_line(tmp_path):
    path = tmp_path / "mine.npz"
    labels = np.repeat(["common", "rare"], [97, 3])
    np.savez(path, x_train=np.zeros((100, 4, 4), np.uint8), y_train=labels)
    config = DataConfig(name="npz", path=str(path), validation=10, test=10)
    with pytest.raises(DataError) as caught:
        load_splits(config, 0)
    assert str(caught.value) == (
        "the test images show no 'rare': change data.validation, data.test or data.limit"
    )
    enough = config.model_copy(update={"validation": 30, "test": 30})
    assert load_splits(enough, 0).classes == 2

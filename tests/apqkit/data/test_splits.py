from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.config import Corruptions, DataConfig
from apqkit.data.images import RawImages
from apqkit.data.splits import make_splits
from apqkit.errors import DataError

NAMES = ("ant", "bee", "cat", "dog")


def raw_images(counts, test_counts=None, shape=(1, 2, 2)):
    """Images whose first pixels spell their number, so that each can be told."""
    labels = np.repeat(np.arange(len(counts)), counts)
    test = {}
    if test_counts is not None:
        y_test = np.repeat(np.arange(len(test_counts)), test_counts)
        test = {"x_test": numbered(len(y_test), shape, 5), "y_test": y_test}
    return RawImages(numbered(len(labels), shape, 0), labels, NAMES[: len(counts)], **test)


def numbered(count, shape, mark):
    pixels = np.zeros((count, *shape), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count) % 256
    pixels[:, 0, 0, 1] = np.arange(count) // 256
    pixels[:, 0, 1, 0] = mark
    return pixels


def numbers(images):
    pixels = images.pixels[~images.corrupted]
    return (pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1].astype(int)).tolist()


def class_counts(images, classes):
    return np.bincount(images.labels[~images.corrupted], minlength=classes)


def refusal(raw, **config):
    with pytest.raises(DataError) as caught:
        make_splits(raw, DataConfig(**config), 0)
    return str(caught.value)


shares = st.floats(0.15, 0.4) | st.integers(12, 16)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(20, 60), min_size=2, max_size=4),
    validation=shares,
    test=shares,
    seed=st.integers(0, 2**32 - 1),
)
def test_every_image_is_in_one_split_and_every_class_in_proportion(counts, validation, test, seed):
    total = sum(counts)
    config = DataConfig(validation=validation, test=test)
    splits = make_splits(raw_images(counts), config, seed)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.read_test()}
    found = sorted(number for images in parts.values() for number in numbers(images))
    assert found == list(range(total))
    for name, share in (("validation", validation), ("test", test)):
        wanted = round(share * total) if share < 1 else share
        assert len(parts[name]) == wanted
        exact = wanted * np.array(counts) / total
        assert (np.abs(class_counts(parts[name], len(counts)) - exact) <= 2).all()


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(20, 40), min_size=2, max_size=4), limit=st.integers(14, 99))
def test_a_limit_thins_the_training_images_by_class(counts, limit):
    raw = raw_images(counts, test_counts=[1] * len(counts))
    whole = make_splits(raw, DataConfig(), 0)
    thinned = make_splits(raw, DataConfig(limit=limit), 0)
    assert len(thinned.train) == min(limit, len(whole.train))
    assert set(numbers(thinned.train)) <= set(numbers(whole.train))
    assert numbers(thinned.validation) == numbers(whole.validation)
    share = min(1.0, limit / len(whole.train))
    exact = class_counts(whole.train, len(counts)) * share
    assert (np.abs(class_counts(thinned.train, len(counts)) - exact) <= 1).all()


def test_labels_stay_with_their_images():
    raw = raw_images([30, 30])
    splits = make_splits(raw, DataConfig(), 3)
    for images in (splits.train, splits.validation, splits.read_test()):
        assert raw.y_train[numbers(images)].tolist() == images.labels.tolist()


def test_test_images_that_the_data_bring_are_taken_as_they_are():
    raw = raw_images([30, 30], test_counts=[4, 0])
    splits = make_splits(raw, DataConfig(validation=10, test=5), 0)
    assert np.array_equal(splits.read_test().pixels, raw.x_test)
    assert splits.read_test().labels.tolist() == [0, 0, 0, 0]
    assert (len(splits.train), len(splits.validation)) == (50, 10)


def test_training_images_come_in_mixed_order():
    labels = make_splits(raw_images([100, 100]), DataConfig(), 0).train.labels
    assert 20 < np.abs(np.diff(labels)).sum() < 80  # half of 100 changes


def test_splits_are_the_same_for_a_seed_and_others_for_another():
    config = DataConfig(corruptions=Corruptions())
    once, again, other = (make_splits(raw_images([30, 30]), config, s) for s in (1, 1, 2))
    assert once.fingerprint == again.fingerprint
    assert numbers(once.train) == numbers(again.train)
    assert sorted(numbers(once.train)) != sorted(numbers(other.train))
    assert np.array_equal(once.validation.pixels, again.validation.pixels)


def test_validation_and_test_images_come_with_corrupted_copies():
    config = DataConfig(validation=10, test=8, corruptions=Corruptions(copies=2))
    plain = make_splits(raw_images([30, 30]), replace_corruptions(config, None), 0)
    splits = make_splits(raw_images([30, 30]), config, 0)
    for images, count in ((splits.validation, 10), (splits.read_test(), 8)):
        assert len(images) == 3 * count
        assert images.corrupted.sum() == 2 * count
        assert images.base.tolist() == list(range(count)) * 3
    assert numbers(splits.validation) == numbers(plain.validation)
    assert numbers(splits.read_test()) == numbers(plain.read_test())
    assert np.array_equal(splits.train.pixels, plain.train.pixels)
    assert not splits.train.corrupted.any()


def replace_corruptions(config, corruptions):
    return config.model_copy(update={"corruptions": corruptions})


def test_validation_and_test_images_are_corrupted_differently():
    same = np.full((40, 1, 6, 6), 128, np.uint8)
    raw = RawImages(same, np.arange(40) % 2, ("a", "b"), same[:10], np.arange(10) % 2)
    splits = make_splits(raw, DataConfig(validation=10, corruptions=Corruptions(copies=1)), 0)
    validation, test = splits.validation.pixels[10:], splits.read_test().pixels[10:]
    assert validation.shape == test.shape
    assert not np.array_equal(validation, test)


def test_a_split_knows_its_shape_and_classes():
    splits = make_splits(raw_images([20, 20, 20], shape=(3, 4, 2)), DataConfig(), 0)
    assert splits.image_shape == (3, 4, 2)
    assert splits.classes == 3
    assert splits.class_names == ("ant", "bee", "cat")


def test_calibration_images_are_the_first_training_images():
    splits = make_splits(raw_images([20, 20]), DataConfig(), 0)
    assert numbers(splits.calibration_images(7)) == numbers(splits.train)[:7]
    assert len(splits.calibration_images(1000)) == len(splits.train) == 20


def test_the_fingerprint_sees_every_pixel_and_label():
    raw = raw_images([20, 20], test_counts=[3, 3])
    known = make_splits(raw, DataConfig(), 0).fingerprint
    changed = []
    for name in ("x_train", "x_test"):
        for number in (0, 2):
            pixels = getattr(raw, name).copy()
            pixels[number, 0, 1, 1] = 1
            changed.append(replace(raw, **{name: pixels}))
    for name in ("y_train", "y_test"):
        labels = getattr(raw, name).copy()
        labels[0] = 1
        changed.append(replace(raw, **{name: labels}))
    found = [make_splits(each, DataConfig(), 0).fingerprint for each in changed]
    assert len({known, *found}) == 7
    assert make_splits(replace(raw, class_names=("x", "y")), DataConfig(), 0).fingerprint == known


def test_one_class_is_refused():
    assert refusal(raw_images([30])) == "images must show at least 2 classes, got 1"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_of_a_class_are_refused(count):
    assert refusal(raw_images([30, count, 30])) == (
        f"every class needs at least 3 training images, class 'bee' has {count}"
    )


def test_three_images_of_a_class_are_enough():
    splits = make_splits(raw_images([3, 30]), DataConfig(), 0)
    for images in (splits.train, splits.validation, splits.read_test()):
        assert class_counts(images, 2)[0] == 1


def test_test_images_of_another_shape_are_refused():
    raw = raw_images([20, 20], test_counts=[3, 3])
    raw = replace(raw, x_test=np.zeros((6, 3, 2, 2), np.uint8))
    assert refusal(raw) == (
        "test images must have the shape of training images (1, 2, 2), got (3, 2, 2)"
    )


@pytest.mark.parametrize(
    ("config", "split", "missing"),
    [
        ({"validation": 1}, "validation", "ant"),
        ({"validation": 0.001}, "validation", "ant"),
        ({"test": 1}, "test", "ant"),
        ({"test": 0.001}, "test", "ant"),
        ({"limit": 2}, "training", "ant"),
        ({"validation": 1000}, "training", "ant"),
        ({"test": 1000}, "training", "ant"),
        ({"validation": 0.5, "test": 0.5}, "training", "ant"),
    ],
)
def test_a_class_missing_from_a_split_is_named(config, split, missing):
    assert refusal(raw_images([4, 40, 40]), **config) == (
        f"the {split} images show no {missing!r}: change data.validation, data.test or data.limit"
    )

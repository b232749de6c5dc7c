import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.config import DataConfig
from apqkit.data.arrays import images_from_arrays, read_npz, required_path
from apqkit.errors import DataError

LABELS = np.array([0, 1, 0, 1, 0, 1])
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5)).astype(np.uint8)


def images(**arrays):
    return images_from_arrays({"x_train": PIXELS, "y_train": LABELS, **arrays}, "FILE")


def refusal(**arrays):
    with pytest.raises(DataError) as caught:
        images(**arrays)
    return str(caught.value)


def file_refusal(path):
    with pytest.raises(DataError) as caught:
        read_npz(path)
    return str(caught.value)


def test_grey_images_get_a_channel():
    raw = images()
    assert raw.x_train.shape == (6, 1, 4, 5)
    assert np.array_equal(raw.x_train[:, 0], PIXELS)
    assert raw.y_train.tolist() == LABELS.tolist()
    assert raw.y_train.dtype == np.int64
    assert raw.class_names == ("0", "1")
    assert raw.x_test is None
    assert raw.y_test is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("axis", [1, 3])
def test_channels_stand_first_or_last(channels, axis):
    pixels = np.stack([PIXELS // (c + 1) for c in range(channels)], axis=axis)
    raw = images(x_train=pixels)
    assert raw.x_train.shape == (6, channels, 4, 5)
    assert raw.x_train.flags.c_contiguous
    for channel in range(channels):
        assert np.array_equal(raw.x_train[:, channel], PIXELS // (channel + 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, ">u2"])
def test_whole_numbers_are_eight_bit_pixels(dtype):
    raw = images(x_train=PIXELS.astype(dtype))
    assert raw.x_train.dtype == np.uint8
    assert np.array_equal(raw.x_train[:, 0], PIXELS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_fractions_of_the_brightest(dtype):
    raw = images(x_train=(PIXELS / 255).astype(dtype))
    assert np.array_equal(raw.x_train[:, 0], PIXELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_labels_may_be_any_integers(dtype):
    raw = images(y_train=(LABELS * 7 + 100).astype(dtype))
    assert raw.class_names == ("100", "107")
    assert raw.y_train.tolist() == LABELS.tolist()


def test_labels_may_be_texts_and_are_sorted():
    raw = images(
        y_train=np.array(["dog", "cat"] * 3), x_test=PIXELS[:2], y_test=np.array(["cat", "dog"])
    )
    assert raw.class_names == ("cat", "dog")
    assert raw.y_train.tolist() == [1, 0] * 3
    assert raw.y_test.tolist() == [0, 1]


def test_test_images_are_read_like_training_images():
    raw = images(x_test=PIXELS[:3, :, :, None] / 255, y_test=np.array([1, 1, 0], np.uint8))
    assert np.array_equal(raw.x_test[:, 0], PIXELS[:3])
    assert raw.y_test.tolist() == [1, 1, 0]
    assert raw.y_test.dtype == np.int64


SHAPE = "must have shape (n, height, width), with 1 or 3 channels last or first"


@pytest.mark.parametrize(
    "shape", [(), (6,), (6, 4), (6, 4, 4, 2), (6, 2, 4, 4), (6, 1, 4, 4, 1), (0, 4, 4), (6, 0, 4)]
)
def test_other_shapes_are_refused(shape):
    text = f"x_train in FILE {SHAPE}, got {shape}"
    assert refusal(x_train=np.zeros(shape, np.uint8)) == text


def with_one(value, dtype=np.float64):
    pixels = np.full((6, 4, 5), 0.5, dtype)
    pixels[3, 2, 1] = value
    return pixels


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (with_one(np.nan), "float64 in nan..nan"),
        (np.full((6, 4, 5), np.nan, np.float32), "float32 in nan..nan"),
        (with_one(np.inf), "float64 in 0.5..inf"),
        (with_one(-np.inf), "float64 in -inf..0.5"),
        (with_one(-0.25), "float64 in -0.25..0.5"),
        (with_one(1.5, np.float16), "float16 in 0.5..1.5"),
        (with_one(256, np.int64), "int64 in 0..256"),
        (with_one(-1, np.int16), "int16 in -1..0"),
        (with_one(True, np.bool_), "bool"),
        (with_one(1, np.complex64), "complex64"),
        (with_one(1, object), "object"),
        (PIXELS.astype(str), "<U3"),
        (PIXELS.astype("timedelta64[s]"), "timedelta64[s]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["x_train", "x_test"])
def test_pixels_out_of_range_or_of_another_type_are_refused(name, pixels, got):
    assert refusal(**{"x_test": PIXELS, "y_test": LABELS, name: pixels}) == (
        f"{name} in FILE must be uint8, or floats in 0..1, got {got}"
    )


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (LABELS[:, None], "int64 of shape (6, 1)"),
        (np.eye(6), "float64 of shape (6, 6)"),
        (np.array(3), "int64 of shape ()"),
        (LABELS / 2, "float64 of shape (6,)"),
        (LABELS > 0, "bool of shape (6,)"),
        (LABELS.astype("S"), "|S21 of shape (6,)"),
        (LABELS.astype(object), "object of shape (6,)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["y_train", "y_test"])
def test_labels_of_another_kind_are_refused(name, labels, got):
    assert refusal(**{"x_test": PIXELS, "y_test": LABELS, name: labels}) == (
        f"{name} in FILE must be one-dimensional integers or texts, got {got}"
    )


@pytest.mark.parametrize("name", ["y_train", "y_test"])
@pytest.mark.parametrize("count", [0, 5, 7])
def test_there_must_be_one_label_an_image(name, count):
    labels = np.resize(LABELS, count)
    assert refusal(**{"x_test": PIXELS, "y_test": LABELS, name: labels}) == (
        f"{name} in FILE must hold one label an image (6), got {count}"
    )


@pytest.mark.parametrize(
    ("labels", "shown"),
    [(LABELS + 1, "2"), (LABELS - 1, "-1"), (np.array(["cat", "dog"] * 3), "'cat'")],
)
def test_a_test_label_that_training_does_not_have_is_named(labels, shown):
    assert refusal(x_test=PIXELS, y_test=labels) == (
        f"y_test in FILE holds the label {shown} that y_train does not have"
    )


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ({}, "nothing"),
        ({"x_train": PIXELS}, "x_train"),
        ({"test_images": PIXELS, "images": PIXELS}, "images, test_images"),
    ],
)
def test_missing_arrays_are_told_with_those_there_are(tmp_path, arrays, got):
    with pytest.raises(DataError) as caught:
        images_from_arrays(arrays, "FILE")
    assert str(caught.value) == f"FILE must hold x_train and y_train, got {got}"
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert file_refusal(path) == f"{path} must hold x_train and y_train, got {got}"


@pytest.mark.parametrize("name", ["x_test", "y_test"])
def test_half_of_the_test_arrays_is_refused(name):
    assert refusal(**{name: PIXELS}) == "FILE must hold both x_test and y_test, or neither"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_gives_what_its_arrays_give(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:2], y_test=LABELS[:2])
    raw = read_npz(path)
    assert np.array_equal(raw.x_train[:, 0], PIXELS)
    assert raw.y_test.tolist() == [0, 1]


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert file_refusal(tmp_path) == f"data.path {str(tmp_path)!r} is no file"
    path = tmp_path / "none.npz"
    assert file_refusal(path) == f"data.path {str(path)!r} is no file"


class Bomb:
    """Unpickling it leaves a mark."""

    mark = ""

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.fixture
def bomb(tmp_path):
    bomb = Bomb()
    bomb.mark = str(tmp_path / "exploded")
    yield bomb
    assert not Path(bomb.mark).exists()


OBJECTS = "Object arrays cannot be loaded when allow_pickle=False"


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_objects_are_never_unpickled(tmp_path, bomb, name):
    path = tmp_path / "a.npz"
    arrays = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS, "y_test": LABELS}
    np.savez(path, **{**arrays, name: np.array([bomb] * 6, dtype=object)})
    assert file_refusal(path) == f"{path} is damaged or holds objects: {OBJECTS}"


def test_other_arrays_in_the_file_are_left_alone(tmp_path, bomb):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=PIXELS, y_train=LABELS, names=np.array([bomb, None]))
    assert len(read_npz(path).x_train) == 6


def test_a_pickle_is_never_read(tmp_path, bomb):
    path = tmp_path / "a.npz"
    path.write_bytes(pickle.dumps({"x_train": bomb}))
    assert file_refusal(path) == f"{path} is no .npz file, or was cut short"


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"hello", npy(PIXELS)], ids=["empty", "text", "npy"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert file_refusal(path) == f"{path} is no .npz file, or was cut short"


def test_a_member_that_is_no_array_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train", "hello")
        archive.writestr("y_train.npy", npy(LABELS))
    assert file_refusal(path) == f"x_train in {path} {SHAPE}, got ()"


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    pixels = np.random.default_rng(1).integers(0, 64, (60, 10, 10)).astype(np.uint8)
    np.savez_compressed(path, x_train=pixels, y_train=np.arange(60) % 3)
    return path, path.read_bytes()


def test_a_file_that_was_cut_short_is_refused(compressed):
    path, content = compressed
    for cut in (1, 30, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert file_refusal(path) == f"{path} is no .npz file, or was cut short"


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_reads_as_images(compressed, data):
    path, content = compressed
    edited = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(-len(content), len(content) - 1) | st.integers(-400, 200))
        edited[at] = data.draw(st.integers(0, 255))
    path.write_bytes(edited)
    try:
        raw = read_npz(path)
    except DataError as fault:
        assert str(path) in str(fault)  # noqa: PT017
        assert "\n" not in str(fault)  # noqa: PT017
    else:
        assert len(raw.x_train) == len(raw.y_train)


def test_a_damaged_file_says_what_is_wrong(compressed):
    path, content = compressed
    edited = bytearray(content)
    edited[60:90] = bytes(30)
    path.write_bytes(edited)
    text = file_refusal(path)
    assert text.startswith(f"{path} is damaged or holds objects: ")
    assert len(text) > len(f"{path} is damaged or holds objects: ")


def test_a_path_is_required():
    with pytest.raises(DataError) as caught:
        required_path(DataConfig(name="npz"))
    assert str(caught.value) == "data.name 'npz' needs data.path: --set data.path=PATH"


def test_a_path_may_start_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert required_path(DataConfig(path="~/a.npz")) == Path("/home/ada/a.npz")
    assert required_path(DataConfig(path="a.npz")) == Path("a.npz")


def test_the_home_of_nobody_is_refused():
    with pytest.raises(DataError) as caught:
        required_path(DataConfig(path="~nobody-of-that-name/a.npz"))
    assert str(caught.value) == (
        "data.path '~nobody-of-that-name/a.npz' names no user's home directory"
    )

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apqkit.config import DataConfig
from apqkit.data import load_splits
from apqkit.data.folder import load_folder
from apqkit.errors import DataError


def pixels_of(seed, height=4, width=5):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def put(tmp_path):
    """Writes one real image file below the folder and returns its pixels, as RGB."""

    def put(name, mode="L", seed=0, size=(5, 4), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = pixels_of(seed, size[1], size[0])
        Image.fromarray(pixels).convert(mode).save(path, **options)
        return pixels

    return put


def load(path, **config):
    return load_folder(DataConfig(name="folder", path=str(path), **config))


def refusal(path, **config):
    with pytest.raises(DataError) as caught:
        load(path, **config)
    return str(caught.value)


def grey(pixels):
    """The luma of ITU-R 601, which Pillow uses."""
    return pixels @ np.array([0.299, 0.587, 0.114])


def test_sub_folders_are_classes_in_order_of_their_names(tmp_path, put):
    put("dog/2.png", seed=1)
    put("cat/b.png", seed=2)
    put("cat/a.png", seed=3)
    raw = load(tmp_path)
    assert raw.class_names == ("cat", "dog")
    assert raw.y_train.tolist() == [0, 0, 1]
    assert raw.y_train.dtype == np.int64
    assert raw.x_train.shape == (3, 1, 4, 5)
    assert raw.x_train.dtype == np.uint8
    for found, seed in zip(raw.x_train[:, 0], (3, 2, 1), strict=True):
        np.testing.assert_allclose(found, grey(pixels_of(seed)), atol=1)
    assert raw.x_test is None


def test_colour_images_are_held_channels_first(tmp_path, put):
    first, second = put("a/1.png", "RGB", 1), put("b/1.bmp", "RGB", 2)
    raw = load(tmp_path)
    assert np.array_equal(raw.x_train, np.stack([first, second]).transpose(0, 3, 1, 2))
    assert raw.x_train.flags.c_contiguous


def test_one_colour_image_makes_all_coloured(tmp_path, put):
    put("a/1.png", "L", 1)
    colour = put("b/1.png", "RGB", 2)
    raw = load(tmp_path)
    assert raw.x_train.shape == (2, 3, 4, 5)
    assert np.array_equal(raw.x_train[1], colour.transpose(2, 0, 1))
    for channel in raw.x_train[0]:
        np.testing.assert_allclose(channel, grey(pixels_of(1)), atol=1)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("1", "png", 1),
        ("L", "pgm", 1),
        ("L", "tif", 1),
        ("LA", "png", 1),
        ("P", "gif", 3),
        ("RGBA", "png", 3),
        ("RGB", "PPM", 3),
        ("RGB", "webp", 3),
        ("CMYK", "jpg", 3),
        ("RGB", "JPEG", 3),
    ],
)
def test_every_common_kind_of_file_is_read(tmp_path, put, mode, suffix, channels):
    for name in ("a", "b"):
        put(f"{name}/1.{suffix}", mode)
    assert load(tmp_path).x_train.shape == (2, channels, 4, 5)


def test_transparency_is_dropped(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.concatenate([pixels_of(0), np.zeros((4, 5, 1), np.uint8)], axis=2)
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    assert np.array_equal(load(tmp_path).x_train[0], pixels[..., :3].transpose(2, 0, 1))


def test_train_and_test_folders_are_the_two_splits(tmp_path, put):
    for number in range(3):
        put(f"train/a/{number}.png", seed=number)
        put(f"train/b/{number}.png", seed=10 + number)
    put("test/b/0.png", "RGB", seed=5)
    raw = load(tmp_path)
    assert raw.class_names == ("a", "b")
    assert raw.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert raw.y_test.tolist() == [1]
    assert raw.x_train.shape == (6, 3, 4, 5)  # grey, but the test image is not
    assert np.array_equal(raw.x_test[0], pixels_of(5).transpose(2, 0, 1))


def test_train_without_test_is_a_class_like_any_other(tmp_path, put):
    put("train/1.png")
    put("car/1.png")
    assert load(tmp_path).class_names == ("car", "train")


def test_a_test_class_without_training_images_is_named(tmp_path, put):
    put("train/a/1.png")
    put("test/b/1.png")
    assert refusal(tmp_path) == (
        f"{tmp_path / 'test' / 'b'} is a class that {tmp_path / 'train'} does not have"
    )


def test_hidden_files_and_folders_are_left_alone(tmp_path, put):
    put("a/1.png")
    put("b/1.png")
    put(".ipynb_checkpoints/1.png", size=(9, 9))
    (tmp_path / "b" / "._1.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "b" / "notes.txt").touch()
    (tmp_path / "README.md").touch()
    raw = load(tmp_path)
    assert raw.class_names == ("a", "b")
    assert len(raw.x_train) == 2


def test_images_of_different_size_are_refused(tmp_path, put):
    put("a/1.png", size=(5, 4))
    put("b/1.png", size=(4, 5))
    assert refusal(tmp_path) == (
        f"{tmp_path / 'b' / '1.png'} is 4x5 and {tmp_path / 'a' / '1.png'} is 5x4: "
        f"set data.image_size to resize all"
    )


def test_test_images_of_different_size_are_refused(tmp_path, put):
    put("train/a/1.png", size=(5, 4))
    put("test/a/1.png", size=(8, 8))
    assert refusal(tmp_path) == (
        f"{tmp_path / 'test' / 'a' / '1.png'} is 8x8 and {tmp_path / 'train' / 'a' / '1.png'} "
        f"is 5x4: set data.image_size to resize all"
    )


def test_an_image_size_makes_all_images_square(tmp_path, put):
    put("a/1.png", "RGB", 1, size=(9, 4))
    put("b/1.png", "L", 2, size=(6, 6))
    raw = load(tmp_path, image_size=6)
    assert raw.x_train.shape == (2, 3, 6, 6)
    np.testing.assert_allclose(raw.x_train[1, 0], grey(pixels_of(2, 6, 6)), atol=1)


def test_resizing_averages(tmp_path):
    (tmp_path / "a").mkdir()
    board = np.kron(np.indices((6, 6)).sum(0) % 2, np.ones((2, 2))) * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a" / "1.png")
    middle = load(tmp_path, image_size=3).x_train[0, 0, 1, 1]
    assert 110 < middle < 145


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")]
)
def test_more_than_eight_bits_are_refused(tmp_path, dtype, suffix):
    path = tmp_path / "a" / f"1.{suffix}"
    path.parent.mkdir()
    Image.fromarray(np.full((4, 5), 40000, dtype)).save(path)
    assert refusal(tmp_path) == f"{path} has more than 8 bits a channel: convert it to 8 bits"


def test_a_file_that_is_no_image_is_named(tmp_path, put):
    put("a/1.png")
    path = tmp_path / "a" / "2.png"
    path.write_bytes(b"hello")
    assert refusal(tmp_path) == (
        f"{path} is no readable image: cannot identify image file '{path}'"
    )
    path.unlink()
    path.mkdir()
    assert refusal(tmp_path) == (
        f"{path} is no readable image: [Errno 21] Is a directory: '{path}'"
    )


def test_an_image_that_was_cut_short_is_named(tmp_path, put):
    put("a/1.png", "RGB", size=(30, 30))
    path = tmp_path / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(tmp_path) == f"{path} is no readable image: image file is truncated"


def test_a_header_that_is_broken_is_named(tmp_path, put):
    put("a/1.png")
    path = tmp_path / "a" / "2.ppm"
    path.write_bytes(b"P6\nfive 4\n255\n")
    assert refusal(tmp_path) == (
        f"{path} is no readable image: invalid literal for int() with base 10: b'five'"
    )


def test_a_header_that_claims_a_giant_is_refused(tmp_path, put):
    put("a/1.bmp", "RGB")
    path = tmp_path / "a" / "1.bmp"
    content = bytearray(path.read_bytes())
    content[18:26] = b"\0\0\1\0" * 2  # width and height
    path.write_bytes(content)
    assert refusal(tmp_path) == (
        f"{path} is no readable image: Image size (4294967296 pixels) exceeds limit of 178956970 "
        f"pixels, could be decompression bomb DOS attack."
    )


@pytest.mark.filterwarnings("ignore")  # Pillow also warns of what it then cannot read
@settings(max_examples=100, deadline=None)
@given(
    suffix=st.sampled_from(["png", "jpg", "bmp", "gif", "tif", "ppm"]),
    edits=st.lists(
        st.tuples(st.integers(0, 60) | st.integers(0, 10**4), st.integers(0, 255)), max_size=4
    ),
    cut=st.none() | st.floats(0, 1),
)
def test_a_damaged_image_is_refused_or_read(tmp_path_factory, suffix, edits, cut):
    root = tmp_path_factory.mktemp("folder")
    path = root / "a" / f"1.{suffix}"
    path.parent.mkdir()
    Image.fromarray(pixels_of(0, 13, 17)).save(path)
    content = bytearray(path.read_bytes())
    for at, value in edits:
        content[at % len(content)] = value
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    try:
        raw = load(root, image_size=8)
    except DataError as fault:
        assert str(fault).startswith(f"{path} ")  # noqa: PT017
    else:
        assert raw.x_train.shape[2:] == (8, 8)


def test_a_folder_without_images_is_refused(tmp_path, put):
    text = f"{tmp_path} holds no images: expected one sub-folder a class with image files"
    assert refusal(tmp_path) == text
    put("1.png")
    (tmp_path / "a").mkdir()
    assert refusal(tmp_path) == text


def test_a_test_folder_without_images_is_refused(tmp_path, put):
    put("train/a/1.png")
    (tmp_path / "test").mkdir()
    assert refusal(tmp_path) == (
        f"{tmp_path / 'test'} holds no images: expected one sub-folder a class with image files"
    )


def test_a_class_without_images_is_named_by_the_splits(tmp_path, put):
    for number in range(4):
        put(f"a/{number}.png")
        put(f"c/{number}.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError) as caught:
        load_splits(DataConfig(name="folder", path=str(tmp_path)), 0)
    assert str(caught.value) == ("every class needs at least 3 training images, class 'b' has 0")


def test_a_path_that_is_no_folder_is_named(tmp_path):
    path = tmp_path / "none"
    assert refusal(path) == f"data.path {str(path)!r} is no folder"
    with pytest.raises(DataError) as caught:
        load_folder(DataConfig(name="folder"))
    assert str(caught.value) == "data.name 'folder' needs data.path: --set data.path=PATH"

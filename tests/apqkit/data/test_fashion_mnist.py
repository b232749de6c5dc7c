import gzip
import hashlib
import struct

import numpy as np
import pytest

from apqkit.config import DataConfig
from apqkit.data.fashion_mnist import (
    ADDRESS,
    CLASS_NAMES,
    FILES,
    load_fashion_mnist,
    read_idx_folder,
)
from apqkit.errors import DataError

RNG = np.random.default_rng(0)
ARRAYS = {
    "x_train": RNG.integers(0, 256, (40, 28, 28)).astype(np.uint8),
    "y_train": (np.arange(40) % 10).astype(np.uint8),
    "x_test": RNG.integers(0, 256, (20, 28, 28)).astype(np.uint8),
    "y_test": (np.arange(20) % 10).astype(np.uint8),
}


def idx(array):
    """The bytes of an IDX file: magic number, one big-endian size an axis, values."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.tobytes()


def load(path):
    return load_fashion_mnist(DataConfig(name="fashion-mnist", path=str(path)))


def refusal(path):
    with pytest.raises(DataError) as caught:
        load(path)
    return str(caught.value)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Writes one of the official files, by default its own array, under its own sum."""

    def put(name, content=None):
        content = gzip.compress(idx(ARRAYS[name])) if content is None else content
        file = FILES[name][0]
        (tmp_path / file).write_bytes(content)
        monkeypatch.setitem(FILES, name, (file, hashlib.md5(content).hexdigest()))
        return tmp_path / file

    for name in ARRAYS:
        put(name)
    return put


def assert_is_the_data_set(raw):
    assert np.array_equal(raw.x_train[:, 0], ARRAYS["x_train"])
    assert np.array_equal(raw.x_test[:, 0], ARRAYS["x_test"])
    assert raw.y_train.tolist() == ARRAYS["y_train"].tolist()
    assert raw.y_test.tolist() == ARRAYS["y_test"].tolist()
    assert raw.class_names == CLASS_NAMES
    assert len(set(CLASS_NAMES)) == 10


def test_the_official_files_are_read_from_a_folder(tmp_path, put):
    assert_is_the_data_set(load(tmp_path))


def test_one_npz_file_does_as_well(tmp_path):
    path = tmp_path / "fashion.npz"
    np.savez_compressed(path, **ARRAYS)
    assert_is_the_data_set(load(path))


def test_the_published_sums_are_those_that_count(tmp_path):
    """As printed in the authors' table."""
    assert dict(FILES.values()) == {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }
    for name, (file, _) in FILES.items():
        (tmp_path / file).write_bytes(gzip.compress(idx(ARRAYS[name])))
    assert "is damaged: its MD5 sum must be 8d4fb7e6c68d591d4c3dfef9ec88bf0d, got " in (
        refusal(tmp_path)
    )


def test_a_path_is_required():
    with pytest.raises(DataError) as caught:
        load_fashion_mnist(DataConfig(name="fashion-mnist"))
    assert str(caught.value) == (
        "data.name 'fashion-mnist' needs data.path: an .npz file, or a folder with the official "
        "files from http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    )


def test_a_path_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "none"
    assert refusal(path) == f"data.path {str(path)!r} is no file"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_its_address(tmp_path, put, name):
    path = tmp_path / FILES[name][0]
    path.unlink()
    assert refusal(tmp_path) == f"{path} is missing; it is published at {ADDRESS}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_another_sum_is_damaged(tmp_path, put, name):
    path, md5 = tmp_path / FILES[name][0], FILES[name][1]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    found = hashlib.md5(content[:-1]).hexdigest()
    assert refusal(tmp_path) == f"{path} is damaged: its MD5 sum must be {md5}, got {found}"


WHOLE = gzip.compress(idx(ARRAYS["x_train"] // 64), mtime=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain text", "Not a gzipped file (b'pl')"),
        (WHOLE[:200], "Compressed file ended before the end-of-stream marker was reached"),
        (
            WHOLE[:10] + b"\x07" + WHOLE[11:],
            "Error -3 while decompressing data: invalid block type",
        ),
    ],
    ids=["text", "cut", "edited"],
)
def test_what_is_no_gzip_file_is_refused(tmp_path, put, content, reason):
    path = put("x_train", content)
    assert refusal(tmp_path) == f"{path} is no gzip file: {reason}"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", idx(ARRAYS["x_train"])[:-1], b"\0\0\x08\xff" * 9],
    ids=["empty", "short", "no sizes", "cut", "axes"],
)
def test_what_is_no_idx_file_is_refused(tmp_path, put, content):
    path = put("x_train", gzip.compress(content))
    assert refusal(tmp_path) == f"{path} is no IDX file of bytes"


@pytest.mark.parametrize(
    ("changed", "got"),
    [
        (
            {name: ARRAYS[name][:, :, :27] for name in ("x_train", "x_test")},
            "(1, 28, 27) and labels 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        ),
        (
            {name: ARRAYS[name] % 3 for name in ("y_train", "y_test")},
            "(1, 28, 28) and labels 0, 1, 2",
        ),
        (
            {name: ARRAYS[name] + 1 for name in ("y_train", "y_test")},
            "(1, 28, 28) and labels 1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
        ),
    ],
)
def test_another_data_set_is_refused(tmp_path, changed, got):
    path = tmp_path / "other.npz"
    np.savez(path, **{**ARRAYS, **changed})
    assert refusal(path) == (
        f"{path} is not Fashion-MNIST: expected 28x28 grey images and labels 0 to 9, got {got}"
    )


def test_idx_files_of_any_name_and_shape_are_read(tmp_path):
    arrays = {"x_train": ARRAYS["x_train"][:, :5, :7], "y_train": ARRAYS["y_train"]}
    files = {}
    for name, array in arrays.items():
        content = gzip.compress(idx(array))
        (tmp_path / f"{name}.gz").write_bytes(content)
        files[name] = (f"{name}.gz", hashlib.md5(content).hexdigest())
    raw = read_idx_folder(tmp_path, files)
    assert np.array_equal(raw.x_train[:, 0], arrays["x_train"])
    assert raw.x_test is None


def test_the_real_images_are_the_published_ones(public_data):
    path = public_data / "fashion_mnist" / "fashion_mnist.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    raw = load(path)
    assert (raw.x_train.shape, raw.x_test.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert np.bincount(raw.y_train).tolist() == [6000] * 10
    assert np.bincount(raw.y_test).tolist() == [1000] * 10
    assert raw.x_train.mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # as published everywhere
    assert raw.x_train.std() / 255 == pytest.approx(0.3530, abs=5e-5)
    assert [raw.class_names[label] for label in raw.y_train[:3]] == [
        "Ankle boot",
        "T-shirt/top",
        "T-shirt/top",
    ]

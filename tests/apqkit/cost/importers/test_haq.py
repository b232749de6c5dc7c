import numpy as np
import pytest

from apqkit.cost.importers import import_table
from apqkit.cost.keys import KEY_COLUMNS, TABLE_OPS, column, key_text
from apqkit.cost.lut_cost import LutCost
from apqkit.errors import CostError
from apqkit.formats import FORMATS, format_code
from apqkit.spaces.base import TableRows

NAME = "haq_latency_lut/qmobilenetv2_imagenet100_batch16_latency_table.npz"
SOURCE = "github.com/mit-han-lab/haq, lib/simulator/lookup_tables"

# Table 2 of Sandler et al. 2018 at 224x224, block by block: input side, channels in, hidden
# channels, channels out, stride.
BLOCKS = (
    (112, 32, 32, 16, 1),
    (112, 16, 96, 24, 2), (56, 24, 144, 24, 1),
    (56, 24, 144, 32, 2), (28, 32, 192, 32, 1), (28, 32, 192, 32, 1),
    (28, 32, 192, 64, 2), (14, 64, 384, 64, 1), (14, 64, 384, 64, 1), (14, 64, 384, 64, 1),
    (14, 64, 384, 96, 1), (14, 96, 576, 96, 1), (14, 96, 576, 96, 1),
    (14, 96, 576, 160, 2), (7, 160, 960, 160, 1), (7, 160, 960, 160, 1),
    (7, 160, 960, 320, 1),
)  # fmt: skip


def layers():
    """(op, channels in, channels out, side, kernel, stride, groups) of the 53 layers."""
    found = [("conv", 3, 32, 224, 3, 2, 1)]
    for side, inputs, hidden, outputs, stride in BLOCKS:
        if hidden > inputs:
            found.append(("conv", inputs, hidden, side, 1, 1, 1))
        found.append(("conv", hidden, hidden, side, 3, stride, hidden))
        found.append(("conv", hidden, outputs, side // stride, 1, 1, 1))
    return [*found, ("conv", 320, 1280, 7, 1, 1, 1), ("linear", 1280, 1000, 1, 1, 1, 1)]


def mobilenet_v2(formats):
    """The network as a table, with one pair of formats a layer."""
    rows = TableRows(1)
    current = rows.add("input", "input", 3, 3, (224, 224), activation_format=0)
    for index, (op, inputs, outputs, side, kernel, stride, groups) in enumerate(layers()):
        weights, activations = (format_code(name) for name in formats[index])
        current = rows.add(
            f"layer{index}", op, inputs, outputs, (side, side), kernel=kernel, stride=stride,
            groups=groups, weight_format=weights, activation_format=activations, relu=True,
            producers=(current,),
        )  # fmt: skip
    return rows.table()


@pytest.fixture(scope="module")
def path(data_file):
    return data_file(NAME, SOURCE)


@pytest.fixture(scope="module")
def array(path):
    with np.load(path, allow_pickle=False) as file:
        return file["latency"]


@pytest.fixture(scope="module")
def table(path):
    return import_table("haq", path, {"ms_per_unit": 1e-5})


@pytest.fixture
def made(tmp_path):
    """Figures that grow with layers and bits, the same for layers of one shape."""
    shapes = layers()
    first = np.array([shapes.index(each) for each in shapes])
    bits = np.arange(1, 9)
    return 1000 * (first[:, None, None] + 1) + 10 * bits[:, None] + bits


@pytest.fixture
def saved(tmp_path):
    def save(array, name="table.npy"):
        path = tmp_path / name
        np.save(path, array) if name.endswith(".npy") else np.savez(path, **array)
        return path

    return save


def refused(path):
    with pytest.raises(CostError) as caught:
        import_table("haq", path, {"ms_per_unit": 1e-5})
    return str(caught.value)


def test_a_network_costs_the_sum_of_its_entries(made, saved):
    rng = np.random.default_rng(0)
    model = LutCost(import_table("haq", saved(made), {"ms_per_unit": 1e-5}))
    for _ in range(20):
        bits = rng.integers(2, 9, (53, 2))
        network = mobilenet_v2([(f"int{w}", f"int{a}") for w, a in bits])
        found = model.cost(network)["latency_ms"]
        wanted = sum(made[i, w - 1, a - 1] for i, (w, a) in enumerate(bits)) * 1e-5
        assert found == pytest.approx(wanted, rel=1e-12)
    assert not model.coverage.estimated


def test_npy_and_npz_are_one_table(made, saved):
    one = import_table("haq", saved(made), {"ms_per_unit": 2.0})
    other = import_table("haq", saved({"any": made}, "table.npz"), {"ms_per_unit": 2.0})
    assert np.array_equal(one.keys, other.keys)
    assert np.array_equal(one.latency_ms, other.latency_ms)


def test_the_header_admits_that_no_unit_is_stated(made, saved):
    header = import_table("haq", saved(made), {"ms_per_unit": 2e-6}).header
    assert header["source_unit"] == "unstated"
    assert header["ms_per_unit"] == "2e-06"
    assert header["left_out"] == "795 figures at bit widths without a format"
    assert 795 == 53 * 15  # 1-bit weights or activations
    assert "int1" not in FORMATS


def test_layers_of_one_shape_are_one_row(made, saved):
    table = import_table("haq", saved(made), {"ms_per_unit": 1.0})
    assert len(table) == len(set(layers())) * 49 == 31 * 49
    made[6] += 1
    path = saved(made)
    assert refused(path) == f"{path}: layers 6 and 9 are of one shape with different figures"


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.ones((53, 8, 7)), "float64 of shape (53, 8, 7)"),
        (np.ones((52, 8, 8), np.int64), "int64 of shape (52, 8, 8)"),
        (np.ones(()), "float64 of shape ()"),
        (np.ones((53, 8, 8), np.complex128), "complex128 of shape (53, 8, 8)"),
        (np.full((53, 8, 8), "1"), "<U1 of shape (53, 8, 8)"),
        (np.ones((53, 8, 8), bool), "bool of shape (53, 8, 8)"),
    ],
)
def test_arrays_of_another_shape_are_refused(array, text, saved):
    path = saved(array)
    assert refused(path) == f"{path} must hold numbers of shape (53, 8, 8), got {text}"


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf, 2.0**32])
def test_figures_that_cannot_be_are_refused(wrong, made, saved):
    made = made.astype(np.float64)
    made[4, 6, 2] = wrong
    path = saved(made)
    assert refused(path) == (
        f"{path}, layer 4 W7A3: a figure must be a positive number, got {wrong}"
    )


def test_units_that_make_figures_impossible_are_refused(made, saved):
    path = saved(made)
    with pytest.raises(CostError) as caught:
        import_table("haq", path, {"ms_per_unit": 1e300})
    assert str(caught.value) == (
        f"{path}, layer 0 W2A2: latency in ms must be a positive number, got {1022 * 1e300!r}"
    )


def test_files_without_an_array_are_refused(saved, tmp_path, made):
    missing = tmp_path / "missing.npy"
    assert refused(missing) == f"{missing} cannot be read: No such file or directory"
    path = tmp_path / "text.npy"
    path.write_text("1, 2, 3")
    assert refused(path) == f"{path} is no array of numbers as numpy writes it"
    path.write_bytes(b"")
    assert refused(path) == f"{path} is no array of numbers as numpy writes it"
    path = saved(made)
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(path) == f"{path} is no array of numbers as numpy writes it"
    path = saved({"a": made}, "table.npz")
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(path) == f"{path} is no array of numbers as numpy writes it"
    path = saved({"a": made, "b": made}, "table.npz")
    assert refused(path) == f"{path} must hold one array, got a, b"
    path = saved({}, "table.npz")
    assert refused(path) == f"{path} must hold one array, got none"


class Bomb:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_pickles_are_not_opened(saved, tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    assert refused(path) == f"{path} is no array of numbers as numpy writes it"


def test_the_published_table_has_a_row_for_every_shape(table, array):
    assert len(table) == 31 * 49
    linear = table.keys[column(table.keys, "op") == TABLE_OPS.index("linear")]
    assert key_text(linear[0]) == (
        "linear in_channels 1280 out_channels 1000 kernel 1 stride 1 groups 1 in_height 1 "
        "in_width 1 weight_format int2 activation_format int2"
    )
    formats = [("int8", "int8")] * 53
    found = LutCost(table).cost(mobilenet_v2(formats))["latency_ms"]
    assert found == pytest.approx(1e-5 * array[:, 7, 7].sum())


def test_the_published_classifier_has_a_thousand_outputs(array):
    """Its figures are bits of 1,280 x 1,000 weights over 256, and at most 21 more."""
    bits = np.arange(1, 9)[:, None] * 1280 * 1000 / 256
    assert ((array[52] - bits >= 0) & (array[52] - bits <= 21)).all()


def test_the_published_table_never_falls_with_bits(table):
    weights, activations = (
        KEY_COLUMNS.index(name) for name in ("weight_format", "activation_format")
    )
    bits = [each.bits for each in FORMATS.values()]
    grid = {}
    for key, ms in zip(table.keys.tolist(), table.latency_ms, strict=True):
        shape = tuple(v for i, v in enumerate(key) if i not in (weights, activations))
        grid.setdefault(shape, np.full((9, 9), np.nan))
        grid[shape][bits[key[weights]], bits[key[activations]]] = ms
    assert len(grid) == 31
    for each in grid.values():
        assert np.isfinite(each[2:, 2:]).all()
        assert (np.diff(each[2:, 2:], axis=0) >= 0).all()
        assert (np.diff(each[2:, 2:], axis=1) >= 0).all()

import dataclasses
import re

import numpy as np
import pytest
import torch
from nasbench201_cells import CellNetwork, data_folder, read_benchmark
from nasbench201_statistics import (
    STATISTICS,
    TABLE,
    draw_cells,
    empty_table,
    layer_places,
    measure_cell,
    read_table,
    write_table,
)

OPS = ("nor_conv_1x1", "none", "skip_connect", "none", "avg_pool_3x3", "nor_conv_3x3")
LARGEST_FILE = 1.5e6  # bytes, what the repository should carry


def small_table(cells=3, seed=0):
    empty = empty_table()
    rng = np.random.default_rng(seed)
    shape = (cells, len(empty.places))
    present = rng.random(shape) < 0.5
    values = rng.normal(size=(*shape, len(empty.statistics))) * present[:, :, None]
    return dataclasses.replace(
        empty,
        index=np.arange(cells) * 7,
        values=values.astype(np.float32),
        present=present,
        scores=rng.normal(size=(cells, len(empty.score_names))),
    )


def assert_equal(found, expected):
    for field in dataclasses.fields(expected):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(right, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right


@pytest.mark.parametrize("cells", [0, 1, 5])
def test_a_table_comes_back_from_its_file_as_it_was(tmp_path, cells):
    table = small_table(cells)
    write_table(tmp_path / "new" / "layers.npz", table)
    assert_equal(read_table(tmp_path / "new" / "layers.npz"), table)
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["layers.npz"]


@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.99])
def test_a_damaged_file_is_named(tmp_path, kept):
    path = tmp_path / "layers.npz"
    write_table(path, small_table())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    start = re.escape(f"{path} is no table of layer statistics, or damaged: ")
    with pytest.raises(ValueError, match=f"^{start}.+"):
        read_table(path)


def test_a_file_with_changed_bytes_is_named(tmp_path):
    path = tmp_path / "layers.npz"
    write_table(path, small_table())
    whole = bytearray(path.read_bytes())
    for place in range(len(whole) // 3, len(whole) // 3 + 200):
        whole[place] ^= 255
    path.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match="is no table of layer statistics, or damaged: "):
        read_table(path)


def test_a_file_with_pickled_objects_is_refused(tmp_path):
    path = tmp_path / "layers.npz"
    np.savez(path, index=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="is no table of layer statistics, or damaged: "):
        read_table(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros((3, 98, 5), np.float32)}, "values must have shape (3, 98, 6), got "),
        ({"present": np.zeros((2, 98), np.bool_)}, "present must have shape (3, 98), got (2, 98)"),
        ({"scores": np.full((3, 14), np.nan)}, "scores must be finite"),
        ({"index": np.array([1, 2, 1])}, "a cell is there twice"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, change, message):
    path = tmp_path / "layers.npz"
    write_table(path, dataclasses.replace(small_table(), **change))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}"):
        read_table(path)


def test_every_cell_has_its_layers_in_the_common_places():
    places = layer_places()
    assert len(places) == len(set(places)) == 1 + 15 * 6 + 2 * 3 + 1
    for ops in (OPS, ["nor_conv_1x1"] * 6, ["skip_connect"] * 6):
        weights = [n for n, each in CellNetwork(ops).named_parameters() if each.dim() >= 2]
        assert weights == [place for place in places if place in weights]


def test_a_measured_cell_has_values_where_it_has_layers():
    values, present, scores = measure_cell(OPS, layer_places())
    assert present.sum() == 1 + 15 * 2 + 2 * 3 + 1
    assert not values[~present].any()
    positive = [STATISTICS.index(name) for name in ("grad_norm", "snip", "fisher", "l2_norm")]
    assert (values[present][:, positive] > 0).all()
    assert np.isfinite(scores).all()


def test_statistics_of_a_cell_agree_with_autograd():
    """The plain way, on the network and batch that the recipe describes."""
    values, present, _ = measure_cell(OPS, layer_places())
    torch.manual_seed(0)
    network = CellNetwork(OPS)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 32, 32, generator=generator)
    labels = torch.randperm(32, generator=generator) % 10
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    weights = [(each.detach(), each.grad) for each in network.parameters() if each.dim() >= 2]
    plain = [[float(g.norm()), float((w * g).abs().sum()), float(w.norm())] for w, g in weights]
    columns = [STATISTICS.index(name) for name in ("grad_norm", "snip", "l2_norm")]
    np.testing.assert_allclose(
        values[present][:, columns], plain, rtol=2e-2
    )  # roundings flip rectifiers


def test_packing_moves_layers_to_the_front_in_their_order():
    table = small_table()
    values, present = table.packed()
    assert values.shape[1] == present.shape[1] == table.present.sum(axis=1).max()
    for row in range(len(table)):
        count = int(present[row].sum())
        assert present[row, :count].all()
        np.testing.assert_array_equal(values[row, :count], table.values[row, table.present[row]])
        assert not values[row, count:].any()


def test_a_longer_draw_begins_with_the_shorter_one(public_data):
    try:
        benchmark = read_benchmark(data_folder(str(public_data)))
    except ValueError as error:
        pytest.skip(str(error))
    assert (draw_cells(benchmark, 300)[:40] == draw_cells(benchmark, 40)).all()


def test_the_committed_table_is_whole_and_small():
    table = read_table(TABLE)
    assert len(table) >= 600
    assert table.places == layer_places()
    assert table.statistics == STATISTICS
    assert TABLE.stat().st_size < LARGEST_FILE

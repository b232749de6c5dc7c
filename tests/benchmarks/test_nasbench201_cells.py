import re

import numpy as np
import pandas as pd
import pytest
import torch
from nasbench201_cells import (
    EDGES,
    OPERATIONS,
    SOURCE,
    CellNetwork,
    data_folder,
    operations,
    read_benchmark,
)
from torch.nn import functional

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
OPS = ("nor_conv_3x3", "none", "skip_connect", "avg_pool_3x3", "none", "nor_conv_1x1")


@pytest.fixture(scope="module")
def published(public_data):
    try:
        return data_folder(str(public_data))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def benchmark(published):
    return read_benchmark(published)


def test_the_text_of_a_cell_names_its_six_operations():
    assert operations(CELL) == OPS


@pytest.mark.parametrize("cell", ["", "|none~0|", CELL.replace("~1", "~0"), CELL + "|none~0|"])
def test_a_text_that_is_no_cell_is_named(cell):
    message = f"a cell reads '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|', got {cell!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        operations(cell)


def test_an_operation_that_is_unknown_is_named():
    message = (
        "no operation named 'conv_5x5'; there are: none, skip_connect, nor_conv_1x1, "
        "nor_conv_3x3, avg_pool_3x3"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        CellNetwork((*OPS[:5], "conv_5x5"))


def test_a_cell_of_five_operations_is_refused():
    with pytest.raises(ValueError, match=r"^a cell has 6 edges, got 5 operations$"):
        CellNetwork(OPS[:5])


def test_data_without_the_files_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("APQKIT_DATA", raising=False)
    for folder in (None, str(tmp_path)):
        with pytest.raises(ValueError, match=r"^needs --data DIR or APQKIT_DATA with ") as raised:
            data_folder(folder)
        assert SOURCE in str(raised.value)


def plain_cell(cell, images):
    """The cell of ``OPS`` in plain lines: node 2 copies node 1, node 3 sums two edges."""
    convolution, norm = cell.edges["0to1"][1], cell.edges["0to1"][2]
    node_1 = norm(convolution(functional.relu(images)))
    last, last_norm = cell.edges["2to3"][1], cell.edges["2to3"][2]
    pooled = functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return pooled + last_norm(last(functional.relu(node_1)))


def test_a_node_is_the_sum_of_the_edges_that_reach_it():
    torch.manual_seed(0)
    network = CellNetwork(OPS, cells=1, channels=4).eval()
    images = torch.randn(2, 4, 8, 8)
    expected = plain_cell(network.blocks[0], images)
    torch.testing.assert_close(network.blocks[0](images), expected)


def test_a_cell_whose_last_node_nothing_reaches_gives_zeros():
    network = CellNetwork(("skip_connect", *["none"] * 5), cells=1, channels=4)
    assert not network.blocks[0](torch.randn(2, 4, 8, 8)).any()


def test_stages_halve_the_image_and_double_the_channels():
    network = CellNetwork(["skip_connect"] * 6, cells=2)
    shapes = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1:]))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    widths = [16, 16, 32, 32, 32, 64, 64, 64]
    assert shapes == [(width, 512 // width, 512 // width) for width in widths]


def test_parameters_of_fifty_cells_agree_with_the_published_ones(benchmark):
    for row in np.random.default_rng(1).choice(len(benchmark.index), 50, replace=False):
        network = CellNetwork([OPERATIONS[code] for code in benchmark.codes[row]])
        assert sum(each.numel() for each in network.parameters()) == benchmark.params[row]


def test_macs_of_ten_cells_agree_with_the_published_ones(published, benchmark):
    cells = pd.read_csv(published / "nasbench201" / "nasbench201.csv.gz").set_index("index")
    for row in np.random.default_rng(2).choice(len(benchmark.index), 10, replace=False):
        network = CellNetwork([OPERATIONS[code] for code in benchmark.codes[row]])
        expected = cells["flops_M"][benchmark.index[row]]
        assert round(counted_macs(network) / 1e6, 2) == pytest.approx(expected, abs=0.011)


def counted_macs(network):
    """Multiplications of convolutions and the linear layer for one image, counted by hooks."""
    counted = []

    def count(module, inputs, output):
        places = output[0, 0].numel() if output.dim() == 4 else 1
        counted.append(module.weight.numel() * places)

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return sum(counted)


def test_codes_say_what_the_published_texts_say(published, benchmark):
    cells = pd.read_csv(published / "nasbench201" / "nasbench201.csv.gz").set_index("index")
    texts = cells["arch_str"][benchmark.index]
    for text, codes in list(zip(texts, benchmark.codes, strict=True))[::97]:
        assert operations(text) == tuple(OPERATIONS[code] for code in codes)


def test_the_published_table_has_9445_cells_with_13_proxies(benchmark):
    assert benchmark.proxies.shape == (9445, 13)
    assert 0.1 <= benchmark.accuracy.min() < benchmark.accuracy.max() == pytest.approx(0.9157)
    assert np.isfinite(benchmark.proxies).all()


def test_one_hot_columns_have_a_one_for_each_edge(benchmark):
    hot = benchmark.one_hot().reshape(-1, len(EDGES), len(OPERATIONS))
    assert (hot.sum(axis=2) == 1).all()
    assert (hot.argmax(axis=2) == benchmark.codes).all()


def test_rows_are_found_by_the_number_of_the_cell(benchmark):
    rows = np.array([5, 0, 9444])
    assert (benchmark.rows(benchmark.index[rows]) == rows).all()
    with pytest.raises(ValueError, match=r"^cell 15625 has no published proxies$"):
        benchmark.rows(np.array([15625]))

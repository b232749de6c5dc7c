import sys

import numpy as np
import pytest

from apqkit.cost.bench_graph import bench_graph
from apqkit.cost.builder import build_lut, host_header
from apqkit.cost.kernels import OPENVINO, kernel_table
from apqkit.cost.keys import column, key_of
from apqkit.cost.lut_cost import LutCost
from apqkit.cost.measure import row_times
from apqkit.cost.openvino_runtime import openvino_node_times
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.types import SilentProgress


def key(op, number_format, **columns):
    formats = dict.fromkeys(("activation_format", "output_format"), number_format)
    if op in ("conv", "linear"):
        formats["weight_format"] = number_format
    shape = {"in_channels": 32, "out_channels": 32, "in_height": 8, "in_width": 8, "groups": 1}
    return key_of(op, {**shape, "stride": 1, **formats, **columns})


def test_every_kind_of_row_leaves_its_time():
    pytest.importorskip("openvino")
    rows = [
        key("conv", "int8", kernel=3),
        key("conv", "fp32", kernel=3),
        key("conv", "int8", kernel=1, output_format="fp32"),
        key("add", "int8"),
        key("linear", "fp32", kernel=1, in_height=1, in_width=1),
        key("global_pool", "int8"),
        key("quantize", "fp32", output_format="int8"),
    ]
    times = openvino_node_times(bench_graph(np.array(rows), 8).SerializeToString())
    found = [row_times(times, row) for row in range(len(rows))]
    assert all(each is not None and each.shape == (20,) for each in found)
    assert found[1].mean() > 0.01  # 8 x 64 x 9,216 multiply-accumulates


def test_integer_kernels_may_write_fp32_and_all_kernels_read_one_order(tiny_networks):
    networks = tiny_networks.with_formats("int8", None)
    mine = kernel_table(networks, block=0, runtime=OPENVINO)
    other = kernel_table(networks, block=16)
    int8 = format_code("int8")
    counts = [(column(t.keys, "activation_format") == int8).sum() for t in (mine, other)]
    assert counts[0] > counts[1]
    assert not mine.conversions[..., 2:].any()
    assert mine.conversions[..., :2].any()


def test_a_table_prices_its_space_without_estimates(tiny_space, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("APQKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("apqkit.cost.measure._FEWEST_ROUNDS", 1)
    picks = np.zeros((3, len(tiny_space.dims)), dtype=np.int64)
    picks[1:] = 1
    networks = tiny_space.network(tiny_space.repair(picks)).with_formats("int8", "int8")
    table = build_lut(networks, batch=2, runtime=OPENVINO, progress=SilentProgress())
    assert table.header["runtime"].startswith("openvino 20")
    assert table.header["precision"] == "f32"
    model = LutCost(table)
    assert (model.cost(networks)["latency_ms"] > 0).all()
    assert not model.coverage.estimated


def test_without_openvino_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CostError) as caught:
        host_header(1, OPENVINO)
    assert str(caught.value) == (
        "OpenVINO is not installed: pip install -c constraints.txt 'apqkit[openvino]'"
    )

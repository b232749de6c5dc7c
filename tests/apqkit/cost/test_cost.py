import numpy as np
import pandas as pd
import pytest

from apqkit.config import CostConfig
from apqkit.cost import (
    DEVICES,
    BitFusionCost,
    LutCost,
    NetworkCost,
    device_model,
    find_device,
    measure,
)
from apqkit.cost.bitfusion import BITFUSION_ARRAYS
from apqkit.cost.kernels import kernel_table
from apqkit.cost.lut import read_lut
from apqkit.errors import CostError
from apqkit.testing import check_cost_model
from apqkit.types import SilentProgress

SILENT = SilentProgress()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every layer and conversion takes this machine a millisecond."""

    def rows(names, load, counts, times_of):
        return {(name, row): (1.0, 1.0, 1.0, 60) for name in names for row in range(counts[name])}

    monkeypatch.setenv("APQKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "measured_rows", rows)


@pytest.fixture
def networks(tiny_networks):
    return tiny_networks.take(slice(0, 6)).with_formats("int4", "int8")


@pytest.fixture
def measured(networks, tmp_path):
    """A table that this machine wrote at batch 1."""
    path = tmp_path / "mine.csv"
    DEVICES["host"].prepare(networks, CostConfig(), path, SILENT)
    return path


def device_of(name):
    if name == "host-openvino":
        pytest.importorskip("openvino")
    return find_device(name)


def message(call, *arguments, **options):
    with pytest.raises(CostError) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_prices_what_it_prepared(name, networks, tmp_path):
    path = tmp_path / "cost" / "lut.csv"
    device_of(name).prepare(networks, CostConfig(batch=2), path, SILENT)
    model = device_model(name, batch=2, table_path=path)
    check_cost_model(model, networks)
    terms = model.layer_terms(networks)
    assert {each.shape for each in terms.values()} == {networks.op.shape}
    costs = model.cost(networks)
    np.testing.assert_allclose(costs["latency_ms"], terms["latency_ms"].sum(axis=1))
    totals = model.totals({term: rows.sum(axis=1) for term, rows in terms.items()})
    assert set(totals) == set(costs)
    for metric, values in totals.items():
        np.testing.assert_allclose(values, costs[metric])


@pytest.mark.parametrize("name", DEVICES)
def test_preparing_again_writes_the_same_bytes(name, networks, tmp_path):
    path = tmp_path / "lut.csv"
    contents = []
    for _ in range(2):
        device_of(name).prepare(networks, CostConfig(), path, SILENT)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_a_simulator_leaves_what_it_simulated(networks, tmp_path):
    path = tmp_path / "lut.csv"
    DEVICES["bitfusion-2x4"].prepare(networks, CostConfig(batch=3), path, SILENT)
    model = BitFusionCost(BITFUSION_ARRAYS["bitfusion-2x4"], batch=3)
    model.cost(networks)
    pd.testing.assert_frame_equal(pd.read_csv(path), model.priced_rows())


def test_the_path_of_a_table_is_a_device(measured, networks, tmp_path):
    device = find_device(str(measured))
    header = read_lut(measured).header
    assert device.says == f"table mine.csv of host, {header['processor']}, {header['runtime']}"
    path = tmp_path / "run" / "lut.csv"
    device.prepare(networks, CostConfig(), path, SILENT)
    assert path.read_bytes() == measured.read_bytes()
    measured.unlink()  # the run keeps a copy of its own
    model = device.load(1, path)
    assert isinstance(model, LutCost)
    kernels = kernel_table(networks, block=int(header["fp32_block"]))
    rows = (networks.active & ~kernels.inside).sum(axis=1) - 1  # all but the input
    expected = rows + kernels.conversions.sum(axis=(1, 2))
    assert model.cost(networks)["latency_ms"].tolist() == expected.tolist()


def test_a_table_of_another_batch_is_refused(measured, networks, tmp_path):
    path = tmp_path / "run" / "lut.csv"
    expected = f"{measured} was measured at batch 1, cost.batch asks for 8"
    prepare, settings = find_device(str(measured)).prepare, CostConfig(batch=8)
    assert message(prepare, networks, settings, path, SILENT) == expected
    assert not path.exists()
    assert message(device_model, "host", batch=8, table_path=measured) == expected


def test_a_table_file_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "note10.csv"
    assert message(find_device, str(path)) == f"cost.device {str(path)!r} is no file"


def test_an_unknown_device_is_answered_with_those_there_are():
    assert message(find_device, "bitfusion-2x5") == (
        "no device named 'bitfusion-2x5' (did you mean 'bitfusion-2x4'?); there are: "
        "a100, bitfusion-16x32, bitfusion-16x32-wide, bitfusion-2x4, bitfusion-apq, cpu-avx2, "
        "cpu-avx512-vnni, h100, host, host-openvino, t4, tpu-v3, tpu-v4, v100, the path of a "
        "table (.csv) or of a folder that a device measured"
    )


def test_every_device_says_what_its_figures_are():
    says = {name: find_device(name).says for name in DEVICES}
    assert says["host"] == "this machine in ONNX Runtime, one thread"
    assert all("fp8 is priced as int8" in says[name] for name in BITFUSION_ARRAYS)


@pytest.mark.parametrize("kind", ["network", "bitfusion", "lut"])
def test_every_cost_model_prices_networks(kind, measured, networks):
    models = {
        "network": NetworkCost,
        "bitfusion": lambda: BitFusionCost(BITFUSION_ARRAYS["bitfusion-2x4"]),
        "lut": lambda: LutCost(read_lut(measured)),
    }
    check_cost_model(models[kind](), networks)

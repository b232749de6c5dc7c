import json
import shutil
import subprocess
import sys

import pytest

from apqkit.config import load_config
from apqkit.cost import find_device, read_lut
from apqkit.errors import ConfigError, CostError
from apqkit.pipeline import (
    build_space_table,
    check_space_table,
    prepare_space_table,
    resolved,
)

INT8 = [
    'space.weight_formats=["int4", "int8"]',
    'space.activation_formats=["int8"]',
    "space.options.hidden_choices=2",
    "cost.device=host",
]


def settings(*overrides):
    return resolved(load_config("smoke", [*INT8, *overrides]))


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """One round of timing: what is tested is not how well."""
    monkeypatch.setenv("APQKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("apqkit.cost.measure._FEWEST_ROUNDS", 1)


@pytest.fixture
def built(tmp_path):
    return build_space_table(settings(), tmp_path / "lut.csv"), tmp_path / "lut.csv"


def test_the_table_of_a_space_prices_it_whole(built):
    table, path = built
    assert table.device == "this machine in ONNX Runtime, one thread"
    assert table.nodes > 20
    assert table.edges >= 2  # what the image is turned into, and what is cut to 4 bits
    assert table.nodes + table.edges == len(table.table) == len(read_lut(path))
    assert not table.estimated
    assert table.share_estimated == 0.0


def test_a_table_that_lacks_rows_says_what_it_estimates(built, tmp_path):
    _, path = built
    lines = path.read_text().splitlines()
    kept = [line for number, line in enumerate(lines) if number < 20 or number % 2]
    short = tmp_path / "short.csv"
    short.write_text("\n".join(kept) + "\n")
    config = settings(f"cost.device={short}")
    found = build_space_table(config, tmp_path / "out.csv")
    assert found.device.startswith("table short.csv of host, ")
    assert len(found.table) + len(found.estimated) >= len(lines) - 20
    assert 0.0 < found.share_estimated < 1.0
    for each in found.estimated.values():
        assert each["latency_ms"] > 0
        assert each["relative_error"] > 0
    assert (tmp_path / "out.csv").read_bytes() == short.read_bytes()


def test_another_machine_measures_what_was_prepared(tmp_path):
    folder = tmp_path / "device"
    rows = prepare_space_table(settings(), folder)
    assert {each.suffix for each in folder.iterdir()} == {".onnx", ".csv", ".py"}
    shutil.copytree(folder, tmp_path / "there")
    there = tmp_path / "there"
    command = [sys.executable, there / "measure.py", "--device", "box"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(there / "measured.csv")
    table = read_lut(there / "measured.csv")
    assert len(table) == rows
    config = settings(f"cost.device={there}")
    assert find_device(str(there)).says.startswith("table measured.csv of box, ")
    found = build_space_table(config, tmp_path / "lut.csv")
    assert not found.estimated


def test_a_prepared_folder_that_nobody_measured_is_no_device(tmp_path):
    prepare_space_table(settings(), tmp_path / "device")
    with pytest.raises(CostError) as caught:
        find_device(str(tmp_path / "device"))
    assert str(caught.value) == (
        f"{tmp_path / 'device'} holds no measured.csv: run measure.py there on the device"
    )


def test_whole_networks_are_checked_against_the_table(built, tmp_path):
    _, path = built
    check = check_space_table(settings(), path, tmp_path / "check", networks=5)
    assert len(check.measured_ms) == 5
    figures = json.loads((tmp_path / "check" / "check.json").read_text())
    assert figures["networks"] == 5
    assert (tmp_path / "check" / "scatter.png").exists()


def test_a_table_of_another_machine_cannot_be_checked_here(built, tmp_path):
    _, path = built
    other = tmp_path / "other.csv"
    other.write_text(path.read_text().replace("# threads: 1", "# threads: 4"))
    with pytest.raises(CostError) as caught:
        check_space_table(settings(), other, tmp_path / "check", networks=5)
    assert str(caught.value) == ("tables of different hardware do not mix: threads is '4' and '1'")


def test_a_simulator_has_no_table(tmp_path):
    with pytest.raises(CostError) as caught:
        build_space_table(settings("cost.device=bitfusion-2x4"), tmp_path / "lut.csv")
    assert str(caught.value) == ("device 'bitfusion-2x4' is computed by formulas: it has no table")
    assert not (tmp_path / "lut.csv").exists()


def test_a_table_without_a_format_of_the_space_is_refused(built, tmp_path):
    _, path = built
    config = settings(f"cost.device={path}", 'space.weight_formats=["int8", "fp32"]')
    with pytest.raises(ConfigError) as caught:
        build_space_table(config, tmp_path / "out.csv")
    assert str(caught.value) == (
        f"space.weight_formats offers 'fp32', which device {str(path)!r} cannot run: leave it out "
        "or choose another cost.device"
    )


def test_only_native_formats_are_offered_where_that_is_asked_for():
    config = settings("cost.native_only=true")
    assert config.space.weight_formats == ("int8",)
    assert config.space.activation_formats == ("int8",)
    simulated = settings("cost.native_only=true", "cost.device=bitfusion-2x4")
    assert simulated.space.weight_formats == ("int4", "int8")


def test_native_formats_of_a_bare_table_are_not_known(built):
    _, path = built
    with pytest.raises(CostError) as caught:
        settings("cost.native_only=true", f"cost.device={path}")
    assert str(caught.value) == (
        f"cost.native_only: it is not known what {str(path)!r} computes natively"
    )

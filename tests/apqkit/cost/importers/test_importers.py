import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apqkit.config import load_config
from apqkit.cost.importers import IMPORTERS, Importer, TableOptions, import_table
from apqkit.cost.importers.rows import ImportedRows, header_of
from apqkit.cost.lut import make_table, read_lut, write_lut
from apqkit.cost.lut_cost import FREE_HEADER
from apqkit.errors import ConfigError, CostError, UnknownNameError
from apqkit.types import OPS

SMALL = {  # a file of each dialect, and what it leaves open
    "apq": (
        "small.dict",
        '{"(16, 64, 112, 1, 1, 0, 1)-W4A8": {"energy": 0.93, "latency": 0.55},'
        ' "head": {"energy": 0.51, "latency": 0.3}, "tail": {"energy": 0.15, "latency": 0.08}}',
        {},
    ),
    "hw-nas-bench": ("small.json", '{"FC_Cin1504_Cout100": 0.5}', {"device": "raspi4"}),
    "nsganetv2": ("small.yaml", "classifier-input:1280-output:1000:\n  mean: 0.03\n", {}),
    "ofa": (
        "small.yaml",
        "Conv-input:160x160x3-output:80x80x24:\n  count: 498\n  mean: 0.5\n  std: 0.01\n",
        {"device": "note10", "expand": "channels"},
    ),
}


@pytest.fixture
def small(tmp_path):
    def write(dialect):
        if dialect == "haq":
            path = tmp_path / "small.npy"
            np.save(path, np.full((53, 8, 8), 1000))
            return path, {"ms_per_unit": 1e-5}
        name, text, options = SMALL[dialect]
        path = tmp_path / name
        path.write_text(text)
        return path, options

    return write


def tried(dialect, path, options):
    """What is imported, or None and the refusal."""
    try:
        return import_table(dialect, path, options), ""
    except CostError as fault:
        return None, str(fault)


@pytest.mark.parametrize("dialect", IMPORTERS)
def test_tables_of_every_dialect_can_be_written_and_read(dialect, small, tmp_path):
    path, options = small(dialect)
    table = import_table(dialect, path, options)
    write_lut(tmp_path / "lut.csv", table)
    again = read_lut(tmp_path / "lut.csv")
    assert np.array_equal(again.keys, table.keys)
    for name in ("latency_ms", "p10_ms", "p90_ms", "energy_mj"):
        assert getattr(again, name) == pytest.approx(getattr(table, name), nan_ok=True)
    assert np.array_equal(again.count, table.count)
    assert again.header == table.header


@pytest.mark.parametrize("dialect", IMPORTERS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_in_one_line(dialect, data, small):
    path, options = small(dialect)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        cut = data.draw(st.integers(0, 8))
        content[place : place + cut] = data.draw(st.binary(max_size=4))
        content = content or bytearray(b" ")
    path.write_bytes(content)
    table, fault = tried(dialect, path, options)
    assert "\n" not in fault
    assert (table.latency_ms > 0).all() if table else fault.startswith(str(path))


@pytest.mark.parametrize("dialect", IMPORTERS)
def test_headers_say_where_figures_come_from(dialect, small):
    path, options = small(dialect)
    header = import_table(dialect, path, options).header
    assert header["units"] == "ms"
    assert int(header["batch"]) == (16 if dialect == "haq" else 1)
    assert all(header[name] for name in ("device", "runtime", "licence", "source"))
    assert {"input", "add"} <= set(header[FREE_HEADER].split()) <= set(OPS)


@pytest.mark.parametrize("dialect", IMPORTERS)
def test_options_go_into_the_header(dialect, small):
    path, options = small(dialect)
    said = {"device": "mine", "batch": 4, "licence": "none", "source": "me", "runtime": "r"}
    header = import_table(dialect, path, {**options, **said}).header
    assert {name: header[name] for name in said} == {**said, "batch": "4"}


def test_a_source_that_is_not_named_is_the_file(small):
    path, options = small("ofa")
    assert import_table("ofa", path, options).header["source"] == "small.yaml"


@pytest.mark.parametrize("dialect", IMPORTERS)
def test_every_dialect_says_what_it_is_in_one_line(dialect):
    assert IMPORTERS[dialect].says
    assert "\n" not in IMPORTERS[dialect].says


def test_an_unknown_dialect_is_named(tmp_path):
    with pytest.raises(UnknownNameError) as caught:
        import_table("nsganet2", tmp_path / "x.yaml")
    assert str(caught.value) == (
        "no table dialect named 'nsganet2' (did you mean 'nsganetv2'?); "
        "there are: apq, haq, hw-nas-bench, nsganetv2, ofa"
    )


@pytest.mark.parametrize(
    ("dialect", "options", "text"),
    [
        ("haq", {}, "ms_per_unit is required"),
        ("haq", {"ms_per_unit": 0.0}, "ms_per_unit must be greater than 0, got float 0.0"),
        (
            "haq",
            {"ms_per_unit": float("inf")},
            "ms_per_unit must be a finite number, got float inf",
        ),
        (
            "haq",
            {"ms_per_units": 1.0},
            "ms_per_unit is required",
        ),
        (
            "apq",
            {"batchs": 2},
            "unknown key 'batchs' (did you mean 'batch'?); "
            "allowed: device, runtime, batch, licence, source",
        ),
        ("apq", {"batch": 0}, "batch must be greater than or equal to 1, got int 0"),
        ("apq", {"device": "a\nb"}, r"device must be one line of text, got str 'a\nb'"),
        ("apq", {"source": " "}, "source must be one line of text, got str ' '"),
        ("ofa", {"expand": "ratio"}, "device is required"),
        ("ofa", {"device": "x"}, "expand is required"),
        (
            "ofa",
            {"device": "x", "expand": "width"},
            "expand must be 'ratio' or 'channels', got str 'width'",
        ),
        ("hw-nas-bench", {}, "device is required"),
    ],
)
def test_a_wrong_option_is_named(dialect, options, text, small):
    path, _ = small(dialect)
    with pytest.raises(ConfigError) as caught:
        import_table(dialect, path, options)
    assert str(caught.value) == text


def test_a_dialect_from_outside_is_one_entry(monkeypatch, tmp_path):
    def read(path, options):
        frame = json.loads(path.read_text())
        rows = ImportedRows(path)
        assert not len(rows)
        return make_table(header_of(options, path), np.zeros((1, 16)), [frame["ms"]])

    monkeypatch.setitem(IMPORTERS, "mine", Importer("mine", TableOptions, read))
    (tmp_path / "mine.json").write_text('{"ms": 2.5}')
    table = import_table("mine", tmp_path / "mine.json", {"device": "mine"})
    assert table.latency_ms.tolist() == [2.5]


def test_an_imported_table_is_a_device(small, tmp_path):
    from apqkit.cost import find_device

    path, options = small("nsganetv2")
    write_lut(tmp_path / "desktop.csv", import_table("nsganetv2", path, options))
    model = find_device(str(tmp_path / "desktop.csv")).load(1, tmp_path / "desktop.csv")
    assert "latency_ms" in model.metrics
    assert load_config("smoke", [f"cost.device={tmp_path / 'desktop.csv'}"]).cost.batch >= 1

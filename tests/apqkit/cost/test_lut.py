from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost.keys import CONVERSIONS, KEY_COLUMNS, TABLE_OPS, key_of
from apqkit.cost.lut import (
    LookupTable,
    check_same_hardware,
    make_table,
    missing_keys,
    read_lut,
    write_lut,
)
from apqkit.errors import CostError
from apqkit.formats import FORMATS

HEADER = {"device": "toy", "batch": "1", "units": "ms", "date": "2026-01-02"}
COLUMN = {name: index for index, name in enumerate(KEY_COLUMNS)}
FIGURES = ("latency_ms", "p10_ms", "p90_ms", "count")


def conv_key(**changes):
    columns = {
        "in_channels": 8, "out_channels": 16, "kernel": 3, "stride": 1, "groups": 1,
        "in_height": 6, "in_width": 4, "activation": "relu", "weight_format": "int8",
        "activation_format": "int8", "output_format": "int8",
    }  # fmt: skip
    return key_of("conv", columns | changes)


def table_of(keys, **energies):
    prices = np.random.default_rng(0).uniform(0.001, 0.1, len(keys))
    count = np.full(len(keys), 60)
    return LookupTable(
        dict(HEADER), np.array(keys), prices, prices * 0.9, prices * 1.2, count, **energies
    )


@pytest.fixture(scope="module")
def lut():
    """Thirty rows: layers and conversions."""
    layers = [
        conv_key(in_channels=each, kernel=kernel) for each in range(8, 20) for kernel in (1, 3)
    ]
    edges = [
        key_of(each, {"in_channels": 8, "activation_format": "int8", "output_format": "fp32"})
        for each in CONVERSIONS
    ]
    return table_of([*layers, *edges, key_of("pool", {"in_channels": 8, "kernel": 2})])


@pytest.fixture
def file(lut, tmp_path):
    path = tmp_path / "lut.csv"
    write_lut(path, lut)
    return path


def refused(path):
    with pytest.raises(CostError) as caught:
        read_lut(path)
    return str(caught.value)


def tried(path):
    """What is read, or None and the refusal."""
    try:
        return read_lut(path), ""
    except CostError as fault:
        return None, str(fault)


def edited(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))
    return path


def with_field(path, name, value, row=1):
    """Writes a value into a column of a row, counted from 1."""
    lines = path.read_text().splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("op,"))
    column = lines[head].split(",").index(name)
    fields = lines[head + row].split(",")
    fields[column] = value
    lines[head + row] = ",".join(fields)
    path.write_text("\n".join([*lines, ""]))


def same_figures(first, second, rtol=1e-11):
    assert np.array_equal(first.keys, second.keys)
    assert np.array_equal(first.count, second.count)
    for name in ("latency_ms", "p10_ms", "p90_ms", "energy_mj"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=rtol)


def test_what_is_written_is_read_back(lut, file):
    read = read_lut(file)
    assert read.header == lut.header
    assert len(read) == len(lut.keys)
    same_figures(read, lut)


def test_a_file_is_the_same_bytes_after_a_round_trip(file):
    before = file.read_bytes()
    write_lut(file, read_lut(file))
    assert file.read_bytes() == before


def values_of(name):
    if name == "op":
        return st.integers(0, len(TABLE_OPS) - 1)
    if name.endswith("_format"):
        return st.integers(-1, len(FORMATS) - 1)
    return st.integers(0, 4 if name == "activation" else 2**31)


KEYS = st.tuples(*(values_of(name) for name in KEY_COLUMNS))
FIGURE = st.floats(1e-9, 1e6)
ENERGY = st.one_of(st.just(float("nan")), FIGURE)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(KEYS, st.tuples(FIGURE, FIGURE, FIGURE, ENERGY), min_size=1, max_size=6))
def test_any_rows_survive_a_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("lut") / "lut.csv"
    latency, p10, p90, energy = np.array(list(rows.values())).T
    count = np.arange(1, len(rows) + 1)
    table = LookupTable(HEADER, np.array(list(rows)), latency, p10, p90, count, energy)
    write_lut(path, table)
    first = path.read_bytes()
    read = read_lut(path)
    same_figures(read, table)
    write_lut(path, read)
    assert path.read_bytes() == first


def test_the_file_reads_well(tmp_path):
    pool = key_of("pool", {"in_channels": 8, "kernel": 2, "activation_format": "fp32"})
    one = np.array([0.25, 1 / 3])
    keys = np.stack([conv_key(), pool])
    table = LookupTable(HEADER, keys, one, one, one, np.array([1, 60]), np.array([0.5, np.nan]))
    write_lut(tmp_path / "lut.csv", table)
    assert (tmp_path / "lut.csv").read_text() == (
        "# device: toy\n# batch: 1\n# units: ms\n# date: 2026-01-02\n"
        "op,in_channels,hidden_channels,out_channels,kernel,stride,groups,in_height,in_width,"
        "activation,squeeze_excite,residual,weight_format,activation_format,output_format,"
        "signed_input,latency_ms,p10_ms,p90_ms,count,energy_mj\n"
        "conv,8,0,16,3,1,1,6,4,relu,0,0,int8,int8,int8,0,0.25,0.25,0.25,1,0.5\n"
        "pool,8,0,0,2,0,0,0,0,none,0,0,none,fp32,none,0,"
        "0.333333333333,0.333333333333,0.333333333333,60,\n"
    )


def test_a_table_without_energies_has_no_column_for_them(lut, file):
    assert np.isnan(lut.energy_mj).all()
    assert "energy_mj" not in file.read_text()
    assert np.isnan(read_lut(file).energy_mj).all()


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "lut.csv"
    assert refused(path) == f"{path} cannot be read: No such file or directory"


def test_an_empty_file_is_no_table(tmp_path):
    path = tmp_path / "lut.csv"
    path.write_text("")
    assert refused(path) == f"{path} is no look-up table: No columns to parse from file"


def test_a_file_that_is_no_text_is_no_table(tmp_path):
    path = tmp_path / "lut.csv"
    path.write_bytes(b"\xff\xfe\x00")
    assert refused(path) == (
        f"{path} is no look-up table: 'utf-8' codec can't decode byte 0xff in position 0: "
        f"invalid start byte"
    )


def test_a_row_with_too_many_fields_is_refused_in_one_line(file):
    last = file.read_text().splitlines()[-1]
    rows = len([line for line in file.read_text().splitlines() if line[0] != "#"])
    edited(file, last, last + ",1")
    assert refused(file) == (
        f"{file} is no look-up table: Error tokenizing data. C error: "
        f"Expected 20 fields in line {rows}, saw 21"
    )


def test_rows_that_all_have_a_field_too_many_are_refused(file):
    lines = file.read_text().splitlines()
    file.write_text("\n".join(f"{line},7" if line[0].islower() else line for line in lines))
    edited(file, "count,7", "count")
    assert refused(file) == f"{file} holds an unknown value in column 'op': 8"


def test_a_foreign_csv_is_no_table(tmp_path):
    path = tmp_path / "lut.csv"
    path.write_text("a,b\n1,2\n")
    assert refused(path) == f"{path} is no look-up table: it lacks the column 'op'"


def test_a_renamed_column_is_named(file):
    edited(file, "p90_ms", "p99_ms")
    assert refused(file) == f"{file} is no look-up table: it lacks the column 'p90_ms'"


@pytest.mark.parametrize(("line", "got"), [("# units: us\n", "'us'"), ("", "None")])
def test_other_units_are_refused(file, line, got):
    edited(file, "# units: ms\n", line)
    assert refused(file) == f"{file} must be in units 'ms', got {got}"


def test_a_table_without_rows_is_refused(file):
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]))
    assert refused(file) == f"{file} holds no rows"


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("value", ["0.0", "-1.5", "nan", "inf", "fast", "", "1e+300"])
def test_impossible_figures_are_refused_with_their_row(file, name, value):
    with_field(file, name, value, row=7)
    assert refused(file) == (f"{file} holds a {name} that is no positive number: {value} in row 7")


@pytest.mark.parametrize("value", ["0", "-2", "nan", "much"])
def test_impossible_energies_are_refused_with_their_row(lut, tmp_path, value):
    path = tmp_path / "lut.csv"
    write_lut(path, replace(lut, energy_mj=np.where(np.arange(len(lut)) < 3, np.nan, 0.5)))
    with_field(path, "energy_mj", value, row=5)
    assert refused(path) == (
        f"{path} holds a energy_mj that is no positive number: {value} in row 5"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("op", "deconv"), ("op", ""), ("op", "1"), ("activation", "gelu"),
        ("weight_format", "int9"), ("activation_format", "none?"), ("output_format", "0"),
        ("kernel", "-3"), ("kernel", "2.5"), ("kernel", "big"), ("groups", "1e+300"),
        ("in_height", "inf"), ("in_width", ""), ("signed_input", "True"),
        ("hidden_channels", "-1"), ("in_channels", "99999999999999999999"),
    ],
)  # fmt: skip
def test_unknown_values_are_refused(file, name, value):
    with_field(file, name, value)
    assert refused(file) == f"{file} holds an unknown value in column {name!r}: {value}"


def test_a_layer_that_stands_there_twice_is_named(file):
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[5], ""]))
    assert refused(file) == (
        f"{file} holds a layer twice: conv in_channels 8 out_channels 16 kernel 1 stride 1 "
        f"groups 1 in_height 6 in_width 4 activation relu weight_format int8 "
        f"activation_format int8 output_format int8"
    )


def test_a_file_cut_anywhere_is_refused_or_merely_shorter(file):
    content = file.read_bytes()
    whole = [tuple(key) for key in read_lut(file).keys.tolist()]
    for end in [*range(0, 450, 3), *range(len(content) - 150, len(content))]:
        file.write_bytes(content[:end])
        read, refusal = tried(file)
        if read is None:
            assert str(file) in refusal
            assert "\n" not in refusal
        else:
            kept = [tuple(key) for key in read.keys.tolist()]
            assert kept == whole[: len(kept)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_spoiled_byte_gives_one_line_or_a_table(lut, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("lut") / "lut.csv"
    content = bytearray(lut.to_csv().encode()[:1500])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    read, refusal = tried(path)
    assert "\n" not in refusal
    assert read is None or (read.latency_ms > 0).all()


def test_tables_of_one_device_are_joined(lut):
    later = {**HEADER, "date": "2026-02-03", "source": "a second run"}
    first, second = lut.take(np.arange(5)), lut.take(np.arange(5, len(lut)))
    joined = first.joined(replace(second, header=later))
    assert joined.header == later
    assert joined.to_csv() == replace(lut, header=later).to_csv()


def test_a_table_with_energies_and_one_without_are_joined(lut, tmp_path):
    with_energy = replace(lut.take(np.arange(3)), energy_mj=np.array([0.1, 0.2, 0.3]))
    joined = with_energy.joined(lut.take(np.arange(3, 6)))
    assert joined.energy_mj[:3].tolist() == [0.1, 0.2, 0.3]
    assert np.isnan(joined.energy_mj[3:]).all()
    write_lut(tmp_path / "lut.csv", joined)
    same_figures(read_lut(tmp_path / "lut.csv"), joined)


def test_rows_are_taken_by_index_or_mask(lut):
    mask = np.arange(len(lut)) % 3 == 0
    by_mask, by_index = lut.take(mask), lut.take(np.flatnonzero(mask))
    assert by_mask.to_csv() == by_index.to_csv()
    assert np.array_equal(by_mask.latency_ms, lut.latency_ms[::3])
    assert len(by_mask) == len(lut.keys[::3])


def test_tables_of_different_hardware_do_not_mix(lut):
    with pytest.raises(CostError) as caught:
        lut.joined(replace(lut, header={**HEADER, "batch": "8"}))
    assert str(caught.value) == "tables of different hardware do not mix: batch is '1' and '8'"
    with pytest.raises(CostError) as caught:
        check_same_hardware(HEADER, {**HEADER, "threads": "2"})
    assert str(caught.value) == (
        "tables of different hardware do not mix: threads is None and '2'"
    )


def test_headers_may_differ_in_date_and_source():
    check_same_hardware(HEADER, {**HEADER, "date": "2030-01-01", "source": "elsewhere"})


def test_missing_keys_are_those_that_a_table_lacks(lut):
    assert np.array_equal(missing_keys(None, lut.keys), lut.keys)
    assert missing_keys(lut, lut.keys).shape == (0, len(KEY_COLUMNS))
    assert np.array_equal(missing_keys(lut.take(np.arange(3, 9)), lut.keys[:9]), lut.keys[:3])


def test_the_spread_is_that_of_a_normal_distribution_with_these_quantiles(lut):
    runs = np.random.default_rng(0).normal(3.0, 0.25, 200_000)
    p10, p90 = np.quantile(runs, (0.1, 0.9))
    one = replace(lut.take(np.arange(1)), p10_ms=np.array([p10]), p90_ms=np.array([p90]))
    assert one.spread_ms[0] == pytest.approx(0.25, rel=0.01)


def test_figures_of_others_become_quantiles_of_a_normal_distribution():
    keys = [conv_key(), conv_key(kernel=1)]
    table = make_table(
        HEADER, keys, [3.0, 0.5], sd_ms=[0.25, 0.0], count=[7, 9], energy_mj=[0.1, 0.2]
    )
    runs = np.random.default_rng(0).normal(3.0, 0.25, 200_000)
    np.testing.assert_allclose(
        [table.p10_ms[0], table.p90_ms[0]], np.quantile(runs, (0.1, 0.9)), rtol=2e-3
    )
    np.testing.assert_allclose(table.spread_ms, [0.25, 0.0])
    assert (table.p10_ms[1], table.p90_ms[1]) == (0.5, 0.5)
    assert (table.count.tolist(), table.energy_mj.tolist()) == ([7, 9], [0.1, 0.2])
    assert table.header == HEADER


def test_a_spread_wider_than_the_mean_leaves_quantiles_that_can_be_read_back(tmp_path):
    table = make_table(HEADER, [conv_key()], [0.01], sd_ms=[1.0])
    write_lut(tmp_path / "lut.csv", table)
    read = read_lut(tmp_path / "lut.csv")
    assert 0 < read.p10_ms[0] < read.latency_ms[0] < read.p90_ms[0]
    assert np.isnan(read.energy_mj).all()
    assert read.count.tolist() == [1]

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost.keys import KEY_COLUMNS, distinct_keys
from apqkit.cost.lut import (
    LookupTable,
    LutCost,
    carrier_columns,
    check_same_hardware,
    missing_keys,
    named_key,
    read_lut,
    write_lut,
)
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.testing import check_cost_model
from apqkit.types import OPS, CostModel

HEADER = {"device": "toy", "batch": "1", "units": "ms", "date": "2026-01-02"}
COLUMN = {name: index for index, name in enumerate(KEY_COLUMNS)}


def table_of(keys, rng=None):
    rng = rng or np.random.default_rng(0)
    prices = rng.uniform(0.001, 0.1, len(keys))
    return LookupTable(
        dict(HEADER), keys, prices, prices * 0.9, prices * 1.2, np.full(len(keys), 60)
    )


def conv_key(**changes):
    key = {
        "op": OPS.index("conv"), "in_channels": 8, "out_channels": 16, "kernel": 3, "stride": 1,
        "groups": 1, "in_height": 6, "in_width": 4, "activation": 1, "weight_format": 0,
        "activation_format": 0, "signed_input": 0,
    }  # fmt: skip
    return np.array([(key | changes)[name] for name in KEY_COLUMNS])


@pytest.fixture(scope="module")
def runnable(tiny_networks):
    """Networks whose every format has a kernel."""
    weights = np.where(tiny_networks.weight_format == format_code("fp8_e4m3"), 0, 1)
    weight_format = np.where(weights == 1, tiny_networks.weight_format, format_code("int8"))
    narrow = tiny_networks.activation_format == format_code("fp4_e2m1")
    activation_format = np.where(narrow, format_code("int8"), tiny_networks.activation_format)
    return replace(tiny_networks, weight_format=weight_format, activation_format=activation_format)


@pytest.fixture(scope="module")
def lut(runnable):
    columns, _ = carrier_columns(runnable)
    return table_of(distinct_keys(runnable, columns).keys)


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


def test_what_is_written_is_read_back(lut, file):
    read = read_lut(file)
    assert read.header == lut.header
    assert np.array_equal(read.keys, lut.keys)
    assert np.array_equal(read.count, lut.count)
    for name in ("latency_ms", "p10_ms", "p90_ms"):
        np.testing.assert_allclose(getattr(read, name), getattr(lut, name), rtol=5e-6)


def test_a_file_is_the_same_bytes_after_a_round_trip(file):
    before = file.read_bytes()
    write_lut(file, read_lut(file))
    assert file.read_bytes() == before


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=6))
def test_any_figures_survive_two_round_trips_unchanged(tmp_path_factory, prices):
    path = tmp_path_factory.mktemp("lut") / "lut.csv"
    keys = np.stack([conv_key(in_channels=each + 1) for each in range(len(prices))])
    column = np.array(prices)
    write_lut(path, LookupTable(HEADER, keys, column, column, column, np.ones(len(prices), int)))
    first = path.read_bytes()
    write_lut(path, read_lut(path))
    assert path.read_bytes() == first


def test_the_file_reads_well(tmp_path):
    key = conv_key(weight_format=format_code("int8"), activation_format=format_code("int8"))
    pool = conv_key(op=OPS.index("pool"), weight_format=-1)
    one = np.array([0.25, 1 / 3])
    write_lut(tmp_path / "lut.csv", LookupTable(HEADER, np.stack([key, pool]), one, one, one, one))
    assert (tmp_path / "lut.csv").read_text() == (
        "# device: toy\n# batch: 1\n# units: ms\n# date: 2026-01-02\n"
        "op,in_channels,out_channels,kernel,stride,groups,in_height,in_width,activation,"
        "weight_format,activation_format,signed_input,latency_ms,p10_ms,p90_ms,count\n"
        "conv,8,16,3,1,1,6,4,1,int8,int8,0,0.25,0.25,0.25,0\n"
        "pool,8,16,3,1,1,6,4,1,none,fp32,0,0.333333,0.333333,0.333333,0\n"
    )


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
        f"Expected 16 fields in line {rows}, saw 17"
    )


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


@pytest.mark.parametrize("name", ["latency_ms", "p10_ms", "p90_ms", "count"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "fast", "", "1e300"])
def test_impossible_figures_are_refused(file, name, value):
    head, rows = file.read_text().split("count\n")
    first, rest = rows.split("\n", 1)
    fields = first.split(",")
    fields[len(KEY_COLUMNS) + ["latency_ms", "p10_ms", "p90_ms", "count"].index(name)] = value
    file.write_text(f"{head}count\n{','.join(fields)}\n{rest}")
    assert refused(file) == f"{file} holds a {name} that is no positive number"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("op", "deconv"), ("op", ""), ("weight_format", "int9"), ("activation_format", "none?"),
        ("kernel", "-3"), ("kernel", "2.5"), ("kernel", "big"), ("groups", "1e300"),
        ("in_height", "inf"), ("in_width", ""),
    ],
)  # fmt: skip
def test_unknown_values_are_refused(file, name, value):
    head, rows = file.read_text().split("count\n")
    first, rest = rows.split("\n", 1)
    fields = first.split(",")
    fields[COLUMN[name]] = value
    file.write_text(f"{head}count\n{','.join(fields)}\n{rest}")
    assert refused(file) == f"{file} holds an unknown value in column {name!r}"


def test_a_layer_that_stands_there_twice_is_named(file):
    last = file.read_text().splitlines()[-1]
    file.write_text(file.read_text() + last + "\n")
    layer = " ".join(last.split(",")[: len(KEY_COLUMNS)])
    assert refused(file) == f"{file} holds a layer twice: {layer}"


def test_a_file_cut_anywhere_is_refused_or_merely_shorter(file):
    content = file.read_bytes()
    whole = [tuple(key) for key in read_lut(file).keys.tolist()]
    last_rows = len(content) - 150
    for end in [*range(0, 450, 3), *range(last_rows, len(content))]:
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
    later = {**HEADER, "date": "2026-02-03"}
    first, second = (
        replace(lut, keys=lut.keys[part], **{
            name: getattr(lut, name)[part] for name in ("latency_ms", "p10_ms", "p90_ms", "count")
        })
        for part in (slice(0, 5), slice(5, None))
    )  # fmt: skip
    joined = first.joined(replace(second, header=later))
    assert joined.header == later
    assert joined.to_csv() == replace(lut, header=later).to_csv()


def test_tables_of_different_hardware_do_not_mix(lut):
    with pytest.raises(CostError) as caught:
        lut.joined(replace(lut, header={**HEADER, "batch": "8"}))
    assert str(caught.value) == ("tables of different hardware do not mix: batch is '1' and '8'")
    with pytest.raises(CostError) as caught:
        check_same_hardware(HEADER, {**HEADER, "threads": "2"})
    assert str(caught.value) == (
        "tables of different hardware do not mix: threads is None and '2'"
    )


def test_latency_is_the_sum_of_looked_up_layers(runnable, lut):
    model: CostModel = LutCost(lut)
    columns, _ = carrier_columns(runnable)
    prices = {tuple(key): ms for key, ms in zip(lut.keys.tolist(), lut.latency_ms, strict=True)}
    rows = model.layer_latency_ms(runnable)
    for at in np.ndindex(runnable.op.shape):
        expected = prices[tuple(columns[at].tolist())] if runnable.active[at] else 0.0
        assert rows[at] == expected
    np.testing.assert_allclose(model.cost(runnable)["latency_ms"], rows.sum(axis=1))
    assert model.coverage.estimated == {}
    check_cost_model(model, runnable)


@pytest.mark.parametrize(
    ("weights", "activations", "carrier"),
    [
        ("int4", "int3", "int8"),
        ("int8", "int8", "int8"),
        ("int4", "fp32", "fp32"),
        ("fp32", "int8", "fp32"),
        ("fp32", "fp32", "fp32"),
    ],
)
def test_layers_run_in_the_carrier_of_their_formats(runnable, weights, activations, carrier):
    table = runnable.with_formats(weights, activations)
    columns, runs = carrier_columns(table)
    assert runs.all()
    weighted = table.active & (table.weight_format >= 0)
    for name in ("weight_format", "activation_format"):
        assert (columns[..., COLUMN[name]][weighted] == format_code(carrier)).all()
    signed = columns[..., COLUMN["signed_input"]][weighted]
    assert signed.any() == (carrier == "int8")  # fp32 kernels do not care


@pytest.mark.parametrize(("weights", "activations"), [("fp8_e4m3", None), (None, "fp4_e2m1")])
def test_a_format_without_a_kernel_is_not_a_number_never_zero(runnable, lut, weights, activations):
    table = runnable.with_formats(weights, activations)
    model = LutCost(lut)
    without = table.active & (table.op != OPS.index("input"))
    if activations is None:
        without &= table.weight_format >= 0
    assert np.array_equal(np.isnan(model.layer_latency_ms(table)), without)
    assert np.isnan(model.cost(table)["latency_ms"]).all()


def test_a_missing_layer_is_estimated_named_and_counted(runnable, lut):
    row = runnable.names.index("head")
    columns, _ = carrier_columns(runnable)
    gone = tuple(columns[0, row].tolist())
    kept = np.array([tuple(key) != gone for key in lut.keys.tolist()])
    short = table_of(lut.keys[kept])
    model = LutCost(short)
    rows = model.layer_latency_ms(runnable)
    assert (rows[runnable.active] > 0).all()
    text = " ".join(map(str, named_key(np.array(gone))))
    assert list(model.coverage.estimated) == [text]
    assert model.coverage.estimated[text] == rows[0, row]
    again = model.layer_latency_ms(runnable)
    assert np.array_equal(again, rows)
    assert len(model.coverage.estimated) == 1


def one_row(key, price=0.5):
    figures = np.array([price])
    return LutCost(LookupTable(HEADER, key[None], figures, figures, figures, np.array([60])))


def estimate(known, wanted):
    return one_row(known)._price(tuple(wanted.tolist()))


def test_an_estimate_grows_with_arithmetic_and_memory():
    # Twice the output channels: 2 x the MACs; (8 + 32) / (8 + 16) x the elements moved.
    wider = estimate(conv_key(), conv_key(out_channels=32))
    assert wider == pytest.approx(0.5 * np.sqrt(2 * 40 / 24))
    # Stride 2: a quarter of the MACs; 24 x 8 read and 6 x 16 written instead of 24 x 24.
    strided = estimate(conv_key(), conv_key(stride=2))
    assert strided == pytest.approx(0.5 * np.sqrt(0.25 * (24 * 8 + 6 * 16) / (24 * 24)))
    # An add has no MACs: only the elements count.
    add = {"op": OPS.index("add"), "kernel": 0, "weight_format": -1}
    small, large = (conv_key(**add, in_height=side) for side in (6, 12))
    assert estimate(small, large) == pytest.approx(0.5 * np.sqrt(2))


def test_estimates_are_monotone_in_channels():
    sizes = [estimate(conv_key(), conv_key(in_channels=c)) for c in (1, 2, 8, 9, 64)]
    assert all(small < large for small, large in pairwise(sizes))


def test_an_estimate_prefers_the_nearest_layer_of_the_same_carrier():
    int8 = format_code("int8")
    keys = np.stack(
        [
            conv_key(in_channels=64),
            conv_key(in_channels=10),
            conv_key(in_channels=9, weight_format=int8, activation_format=int8),
        ]
    )
    prices = np.array([7.0, 2.0, 1.0])
    model = LutCost(LookupTable(HEADER, keys, prices, prices, prices, np.full(3, 60)))
    assert model._price(tuple(conv_key(in_channels=9).tolist())) == pytest.approx(
        2.0 * np.sqrt(0.9 * (9 + 16) / (10 + 16))
    )


def test_another_carrier_serves_where_there_is_no_other():
    int8 = format_code("int8")
    known = conv_key(weight_format=int8, activation_format=int8)
    assert estimate(known, conv_key()) == pytest.approx(0.5)


def test_an_op_that_the_table_lacks_is_named():
    with pytest.raises(CostError) as caught:
        estimate(conv_key(), conv_key(op=OPS.index("global_pool"), weight_format=-1))
    assert str(caught.value) == (
        "the table of toy has no row of op 'global_pool' to estimate from"
    )


def test_missing_keys_are_those_that_a_table_lacks(runnable, lut):
    columns, _ = carrier_columns(runnable)
    keys = distinct_keys(runnable, columns)
    assert np.array_equal(missing_keys(None, keys), keys.keys)
    assert missing_keys(lut, keys).shape == (0, len(KEY_COLUMNS))
    assert np.array_equal(missing_keys(table_of(lut.keys[3:]), keys), lut.keys[:3])


def test_networks_without_layers_cost_nothing(runnable, lut):
    nothing = replace(runnable, active=np.zeros_like(runnable.active))
    assert (LutCost(lut).cost(nothing)["latency_ms"] == 0).all()

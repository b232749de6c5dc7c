import json
import platform
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from apqkit.cost import builder, measure
from apqkit.cost.builder import build_lut, cache_directory, host_header, prepare_folder
from apqkit.cost.interpolation import fit_interpolator
from apqkit.cost.keys import CONVERSIONS, KEY_COLUMNS, TABLE_OPS, column, key_of, key_text
from apqkit.cost.lut import read_lut
from apqkit.cost.lut_cost import KIND_COLUMNS, LutCost, wanted_keys
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.testing import check_cost_model
from apqkit.types import SilentProgress

SILENT = SilentProgress()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("APQKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lut"


@pytest.fixture
def networks(tiny_space):
    dims = tiny_space.dims
    picks = np.concatenate([largest_picks(dims), smallest_picks(dims)])
    return tiny_space.network(picks).with_formats("int4", "int8")


@pytest.fixture
def many(tiny_networks):
    """Networks whose layers mix integers and fp32: some hundred rows."""
    swapped = {}
    for name, narrow in (("weight_format", "fp8_e4m3"), ("activation_format", "fp4_e2m1")):
        codes = getattr(tiny_networks, name)
        swapped[name] = np.where(codes == format_code(narrow), format_code("int8"), codes)
    return replace(tiny_networks, **swapped)


class Timer:
    """Takes the place of clock and runtime: a row takes a second, and its price its size."""

    def __init__(self):
        self.now = 0.0
        self.batches = []  # the keys of each

    def monotonic(self):
        return self.now

    def graph(self, keys, batch):
        """A model that remembers its rows."""
        return SimpleNamespace(SerializeToString=lambda: (keys, batch))

    def measured_rows(self, names, load, counts, times_of):
        del times_of
        parts = [load(name)[0] for name in names]
        assert [len(each) for each in parts] == [counts[name] for name in names]
        keys = np.concatenate(parts)
        self.batches.append(keys)
        self.now += len(keys)
        prices = iter(price_of(keys).tolist())
        return {
            (name, row): (price := next(prices), price * 0.9, price * 1.2, 60)
            for name in names
            for row in range(counts[name])
        }

    @property
    def keys(self):
        return np.concatenate(self.batches)


def price_of(keys):
    """ms that follow the size of tensors within a tenth."""
    pixels = column(keys, "in_height") * column(keys, "in_width")
    taps = np.maximum(column(keys, "kernel"), 1) ** 2
    size = pixels * column(keys, "in_channels") * np.maximum(column(keys, "out_channels"), 1)
    return 1e-5 * (size * taps) ** 0.7 * (1 + 0.1 * np.sin(keys @ np.arange(len(KEY_COLUMNS))))


@pytest.fixture
def timer(monkeypatch):
    found = Timer()
    clock = SimpleNamespace(monotonic=found.monotonic, strftime=lambda text: "2026-01-02")
    monkeypatch.setattr(builder, "time", clock)
    monkeypatch.setattr(measure, "measured_rows", found.measured_rows)
    monkeypatch.setattr("apqkit.cost.bench_graph.bench_graph", found.graph)
    monkeypatch.setattr(builder, "_ROWS_A_MODEL", 8)
    monkeypatch.setattr(builder, "_MODELS_A_BATCH", 3)
    return found


def wanted_of(table):
    return wanted_keys(table, block=int(host_header(1)["fp32_block"]))


def as_set(keys):
    return set(map(tuple, keys.tolist()))


def built(networks, **options):
    return build_lut(networks, **{"batch": 1, "progress": SILENT} | options)


def refused(networks, **options):
    with pytest.raises(CostError) as caught:
        built(networks, **options)
    return str(caught.value)


# Whole tables


def test_every_row_is_timed_once_and_never_again(networks, cache, monkeypatch):
    monkeypatch.setattr(measure, "_MOST_ROUNDS", 3)
    first = built(networks)
    assert as_set(first.keys) == as_set(wanted_of(networks).keys)
    assert (first.p10_ms <= first.latency_ms * (1 + 1e-9)).all()
    assert (first.latency_ms <= first.p90_ms * (1 + 1e-9)).all()
    assert (first.count >= 20).all()
    (file,) = cache.iterdir()
    written = file.read_bytes()

    def refuse(*arguments):
        raise AssertionError("a layer was timed")

    monkeypatch.setattr(measure, "measured_rows", refuse)
    second = built(networks)
    assert second.to_csv().encode() == written == file.read_bytes()
    model = LutCost(second)
    check_cost_model(model, networks)
    assert model.coverage.estimated == {}


def test_rows_carry_what_was_measured_of_them(many, timer):
    table = built(many)
    np.testing.assert_allclose(table.latency_ms, price_of(table.keys))
    np.testing.assert_allclose(table.p10_ms, 0.9 * table.latency_ms)
    np.testing.assert_allclose(table.p90_ms, 1.2 * table.latency_ms)
    assert (table.count == 60).all()
    assert as_set(table.keys) == as_set(wanted_of(many).keys)
    assert len(timer.keys) == len(table)


def test_only_new_rows_are_timed(many, timer):
    built(many.take(slice(0, 4)))
    before, timer.batches = as_set(timer.keys), []
    table = built(many)
    assert len(timer.keys) > 0
    assert before.isdisjoint(as_set(timer.keys))
    assert as_set(table.keys) == before | as_set(timer.keys) == as_set(wanted_of(many).keys)


def test_each_batch_has_a_table_of_its_own(networks, timer, cache):
    for batch in (1, 4):
        assert built(networks, batch=batch).header["batch"] == str(batch)
    assert len(list(cache.iterdir())) == 2


def test_another_runtime_or_processor_gets_a_table_of_its_own(networks, timer, cache, monkeypatch):
    built(networks)
    monkeypatch.setattr(onnxruntime, "__version__", "0.0.1")
    built(networks)
    monkeypatch.setattr(measure, "_cpu", lambda *names: "abacus")
    built(networks)
    headers = [read_lut(file).header for file in cache.iterdir()]
    assert len(headers) == 3
    assert sum(each["processor"] == "abacus" for each in headers) == 1


def test_a_table_of_yesterday_is_still_good(networks, timer, cache):
    built(networks)
    timed = len(timer.keys)
    (file,) = cache.iterdir()
    file.write_text(file.read_text().replace("# date: 2026-01-02", "# date: 2001-01-01"))
    assert built(networks).header["date"] == "2001-01-01"
    assert len(timer.keys) == timed


def test_networks_without_a_kernel_have_nothing_to_time(networks, timer):
    floats = networks.with_formats("fp8_e4m3", "fp4_e2m1")
    assert refused(floats) == "there is no layer to time"
    assert timer.batches == []


def test_a_row_that_the_profile_lacks_is_named(networks, monkeypatch):
    key = wanted_of(networks).keys[0]

    def lacking(names, load, counts, times_of):
        return {(n, r): (1.0, 1.0, 1.0, 1) for n in names for r in range(counts[n])
                if not np.array_equal(rows[n, r], key)}  # fmt: skip

    rows = {}

    def graph(keys, batch):
        name = str(len({each for each, _ in rows}))
        rows.update({(name, row): each for row, each in enumerate(keys)})
        return SimpleNamespace(SerializeToString=bytes)

    monkeypatch.setattr(measure, "measured_rows", lacking)
    monkeypatch.setattr("apqkit.cost.bench_graph.bench_graph", graph)
    assert refused(networks) == (
        f"the runtime's profile shows no kernel for layer {key_text(key)}"
    )


def test_progress_counts_rows(many, timer):
    seen = []

    class Counting(SilentProgress):
        @contextmanager
        def task(self, label, total):
            seen.append((label, total))
            yield seen.append

    built(many, progress=Counting())
    (label, total), *steps = seen
    assert label == "cost, timing layers on this machine"
    assert steps == [len(each) for each in timer.batches]
    assert sum(steps) == total == len(timer.keys)


# A budget of time


def test_without_a_budget_every_batch_holds_layers_of_all_formats_and_sizes(many, timer):
    table = built(many)
    batches = timer.batches[:-1]
    assert len(batches) > 2
    assert all(len(each) == 24 for each in batches)
    conv = TABLE_OPS.index("conv")
    channels = table.keys[table.keys[:, 0] == conv, 1]
    for batch in batches:
        assert np.isin(batch[:, 0], [TABLE_OPS.index(each) for each in CONVERSIONS]).any()
        layers = batch[batch[:, 0] == conv]
        assert set(column(layers, "weight_format")) == {format_code("int8"), format_code("fp32")}
        assert layers[:, 1].min() <= np.quantile(channels, 0.25)
        assert layers[:, 1].max() >= np.quantile(channels, 0.75)


def kinds_of(keys):
    return np.stack([column(keys, name) for name in KIND_COLUMNS], axis=1)


def test_no_time_at_all_still_gives_a_table_that_prices_the_networks(many, timer, cache):
    table = built(many, budget_s=0.0)
    assert len(timer.batches) == 1
    assert len(table) == 24 < len(wanted_of(many).keys)
    model = LutCost(table)
    costs = model.cost(many)
    assert np.isfinite(costs["latency_ms"]).all()
    assert (costs["latency_ms"] > 0).all()
    gone = as_set(wanted_of(many).keys) - as_set(table.keys)
    assert set(model.coverage.estimated) == {key_text(np.array(key)) for key in gone}
    assert read_lut(*cache.iterdir()).to_csv() == table.to_csv()


def test_a_second_call_goes_on_where_time_ran_out(many, timer):
    first = built(many, budget_s=0.0)
    while len(first) < len(wanted_of(many).keys):
        second = built(many, budget_s=0.0)
        assert len(second) == min(len(first) + 24, len(wanted_of(many).keys))
        assert np.array_equal(second.keys[: len(first)], first.keys)
        first = second
    timed = len(timer.keys)
    assert built(many, budget_s=0.0).to_csv() == first.to_csv()
    assert len(timer.keys) == timed == len(first)


def test_no_batch_begins_after_the_time_is_out(many, timer):
    table = built(many, budget_s=60.0)  # a row takes a second, a batch has 24
    assert [len(each) for each in timer.batches] == [24, 24, 24]
    assert len(table) == 72


def test_time_enough_times_all(many, timer):
    everything = len(wanted_of(many).keys)
    assert len(built(many, budget_s=everything + 1.0)) == everything


def scores(known, rows, uses):
    """For each row uses times expected error in ms; without end for kinds that are new."""
    found = {}
    for kind in as_set(kinds_of(rows)):
        alike = (kinds_of(known.keys) == kind).all(axis=1)
        process = alike.any() and fit_interpolator(known.keys[alike], known.latency_ms[alike])
        for key in rows[(kinds_of(rows) == kind).all(axis=1)]:
            estimate, error = process.predict(key[None]) if process else ([np.inf], [1.0])
            found[tuple(key.tolist())] = float(estimate[0] * error[0]) * uses[tuple(key.tolist())]
    return found


def test_rows_whose_estimate_is_worst_and_that_matter_most_come_first(many, timer):
    wanted = wanted_of(many)
    uses = dict(zip(map(tuple, wanted.keys.tolist()), wanted.uses.tolist(), strict=True))
    known = built(many, budget_s=0.0)
    for _ in range(4):
        rest = np.array(sorted(set(uses) - as_set(known.keys)))
        score = scores(known, rest, uses)
        timer.batches = []
        known = built(many, budget_s=0.0)
        chosen = as_set(timer.keys)
        passed = set(score) - chosen
        assert min(score[key] for key in chosen) >= max(score[key] for key in passed) * (1 - 1e-6)
    assert np.isfinite(max(score.values()))  # the last choice was among known kinds


# The cache


def test_a_damaged_cache_names_the_file_and_the_cure(networks, timer, cache):
    built(networks)
    (file,) = cache.iterdir()
    good = file.read_text()
    file.write_text(good.replace("latency_ms", "latency"))
    assert refused(networks) == (
        f"{file} is no look-up table: it lacks the column 'latency_ms'; "
        f"delete {file} to time its layers again"
    )
    file.write_text(good.replace("# threads: 1\n", "# threads: 8\n"))
    assert refused(networks) == (
        f"tables of different hardware do not mix: threads is '8' and '1'; "
        f"delete {file} to time its layers again"
    )


def test_a_cache_that_cannot_be_made_is_said_before_the_work(
    networks, timer, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APQKIT_CACHE", str(tmp_path / "file"))
    assert refused(networks) == (
        f"{tmp_path / 'file' / 'lut'} cannot be made: Not a directory; "
        f"set APQKIT_CACHE to a folder for tables"
    )
    assert timer.batches == []


def test_every_batch_is_kept_as_soon_as_it_is_timed(many, timer, cache, monkeypatch):
    measured = timer.measured_rows

    def interrupted(*arguments):
        if len(timer.batches) == 2:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(measure, "measured_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        built(many)
    (file,) = cache.iterdir()
    assert as_set(read_lut(file).keys) == as_set(timer.keys)
    assert len(timer.keys) == 48


def test_the_header_says_what_a_figure_depends_on():
    header = host_header(4)
    assert list(header) == [
        "device", "schema", "units", "batch", "runtime_rules", "processor", "cpu_flags", "system",
        "runtime", "threads", "fp32_block", "date",
    ]  # fmt: skip
    assert header["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert header["system"] == f"{platform.system()} {platform.machine()}"
    assert (header["threads"], header["batch"], header["units"]) == ("1", "4", "ms")
    assert all(value and "\n" not in value for value in header.values())
    assert json.loads(json.dumps(header)) == header


def test_the_cache_lies_where_the_user_says_or_in_the_home(monkeypatch, tmp_path):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.setenv("APQKIT_CACHE", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory() == tmp_path / ".cache" / "apqkit"


# A folder for another machine


def plan_of(folder):
    """Header, and file, row and key of each line."""
    lines = (folder / "plan.csv").read_text().splitlines()
    header = dict(line[2:].split(": ") for line in lines if line[0] == "#")
    names, *rows = [line.split(",") for line in lines if line[0] != "#"]
    assert names == ["file", "row", *KEY_COLUMNS]
    keys = [key_of(row[2], dict(zip(KEY_COLUMNS[1:], row[3:], strict=True))) for row in rows]
    return header, [(row[0], int(row[1])) for row in rows], np.array(keys)


def test_a_folder_holds_the_script_the_plan_and_a_model_for_every_row(many, tmp_path):
    folder = tmp_path / "new" / "device"
    count = prepare_folder(many, folder, batch=3)
    header, places, keys = plan_of(folder)
    assert count == len(keys) == len(places)
    assert as_set(keys) == as_set(wanted_of(many).keys)
    assert header == {
        "schema": host_header(3)["schema"], "units": "ms", "batch": "3",
        "runtime_rules": "onnxruntime",
    }  # fmt: skip
    models = {name for name, _ in places}
    assert {each.name for each in folder.iterdir()} == models | {
        "plan.csv", "probe.onnx", "measure.py",
    }  # fmt: skip
    assert (folder / "measure.py").read_bytes() == Path(measure.__file__).read_bytes()
    for name in models:
        rows = sorted(row for file, row in places if file == name)
        assert rows == list(range(len(rows)))
        nodes = onnx.load(folder / name).graph.node
        for row in rows:
            assert any(node.name.startswith(f"layer{row}_") for node in nodes)
        assert not any(node.name.startswith(f"layer{len(rows)}_") for node in nodes)


def test_the_runtimes_own_ops_stand_in_models_of_their_own(many, tmp_path):
    prepare_folder(many, tmp_path / "device", batch=1)
    own = set()
    for path in (tmp_path / "device").glob("layers*.onnx"):
        nodes = onnx.load(path).graph.node
        reorders = {each.domain != "" for each in nodes if each.name.startswith("layer")}
        assert len(reorders) == 1
        own |= reorders
    assert own == {True, False}


def test_blocks_are_planned_for_where_this_machine_has_none(many, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "probed_block", lambda model: 0)
    prepare_folder(many, tmp_path / "device", batch=1)
    _, _, keys = plan_of(tmp_path / "device")
    assert as_set(keys) == as_set(wanted_keys(many, block=16).keys)


def test_models_are_named_by_what_they_hold(networks, tmp_path):
    names = []
    for folder, batch in (("one", 1), ("two", 1), ("three", 2)):
        prepare_folder(networks, tmp_path / folder, batch=batch)
        names.append({each.name for each in (tmp_path / folder).glob("layers*.onnx")})
    assert names[0] == names[1]
    assert names[0].isdisjoint(names[2])


def test_a_folder_that_is_not_empty_is_left_alone(networks, tmp_path):
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(CostError) as caught:
        prepare_folder(networks, folder, batch=1)
    assert str(caught.value) == f"{folder} is not empty: prepare a new folder"
    assert [each.name for each in folder.iterdir()] == ["mine.txt"]


def test_an_empty_folder_will_do(networks, tmp_path):
    (tmp_path / "device").mkdir()
    assert prepare_folder(networks, tmp_path / "device", batch=1) > 0


def test_a_folder_that_cannot_be_written_is_said(networks, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "device"
    with pytest.raises(CostError) as caught:
        prepare_folder(networks, folder, batch=1)
    assert str(caught.value) == f"{folder} cannot be written: Not a directory"

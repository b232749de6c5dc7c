import json
import platform
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from apqkit.cost import host
from apqkit.cost.host import build_host_table, cache_directory, host_header, time_layers
from apqkit.cost.keys import KEY_COLUMNS, distinct_keys
from apqkit.cost.lut import LutCost, carrier_columns, read_lut
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.testing import check_cost_model
from apqkit.types import OPS, SilentProgress

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
def no_timing(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a layer was timed")

    monkeypatch.setattr(host, "time_layers", refuse)


@pytest.fixture
def quick_timing(monkeypatch):
    """Takes the place of the runtime; remembers what it was asked to time."""
    asked = []

    def times(keys, *, batch):
        asked.extend((batch, *key) for key in keys.tolist())
        return np.tile(np.linspace(1.0, 2.0, 60), (len(keys), 1))

    monkeypatch.setattr(host, "time_layers", times)
    return asked


def keys_of(table):
    columns, runs = carrier_columns(table)
    return distinct_keys(replace(table, active=table.active & runs), columns).keys


def conv_key(**changes):
    int8 = format_code("int8")
    key = {
        "op": OPS.index("conv"), "in_channels": 16, "out_channels": 16, "kernel": 3, "stride": 1,
        "groups": 1, "in_height": 8, "in_width": 8, "activation": 1, "weight_format": int8,
        "activation_format": int8, "signed_input": 0,
    }  # fmt: skip
    return [(key | changes)[name] for name in KEY_COLUMNS]


def test_every_distinct_layer_is_timed_once_and_never_again(networks, cache, request):
    first = build_host_table(networks, batch=1, progress=SILENT)
    assert sorted(first.keys.tolist()) == sorted(keys_of(networks).tolist())
    assert (first.p10_ms <= first.latency_ms * (1 + 1e-9)).all()
    assert (first.latency_ms <= first.p90_ms * (1 + 1e-9)).all()
    assert (first.count == 60).all()
    (file,) = cache.iterdir()
    written = file.read_bytes()

    request.getfixturevalue("no_timing")
    second = build_host_table(networks, batch=1, progress=SILENT)
    assert second.to_csv().encode() == written == file.read_bytes()
    model = LutCost(second)
    check_cost_model(model, networks)
    assert model.coverage.estimated == {}


def test_only_new_layers_are_timed(networks, quick_timing):
    build_host_table(networks.take(slice(0, 1)), batch=1, progress=SILENT)
    before = set(quick_timing)
    quick_timing.clear()
    table = build_host_table(networks, batch=1, progress=SILENT)
    assert quick_timing
    assert before.isdisjoint(quick_timing)
    assert len(table.keys) == len(before) + len(quick_timing) == len(keys_of(networks))


def test_each_batch_has_a_table_of_its_own(networks, quick_timing, cache):
    for batch in (1, 4):
        assert build_host_table(networks, batch=batch, progress=SILENT).header["batch"] == str(
            batch
        )
    assert len(list(cache.iterdir())) == 2
    assert {each[0] for each in quick_timing} == {1, 4}


def test_another_runtime_or_processor_gets_a_table_of_its_own(
    networks, quick_timing, cache, monkeypatch
):
    build_host_table(networks, batch=1, progress=SILENT)
    monkeypatch.setattr(onnxruntime, "__version__", "0.0.1")
    build_host_table(networks, batch=1, progress=SILENT)
    monkeypatch.setattr(host, "processor_name", lambda: "abacus")
    build_host_table(networks, batch=1, progress=SILENT)
    headers = [read_lut(file).header for file in cache.iterdir()]
    assert len(headers) == 3
    assert sum(each["processor"] == "abacus" for each in headers) == 1


def test_a_table_of_yesterday_is_still_good(networks, quick_timing, cache):
    build_host_table(networks, batch=1, progress=SILENT)
    timed = len(quick_timing)
    (file,) = cache.iterdir()
    today = host_header(1)["date"]
    file.write_text(file.read_text().replace(f"# date: {today}", "# date: 2001-01-01"))
    assert build_host_table(networks, batch=1, progress=SILENT).header["date"] == "2001-01-01"
    assert len(quick_timing) == timed


def test_formats_without_a_kernel_are_not_timed(networks, quick_timing):
    floats = networks.with_formats("fp8_e4m3", "fp4_e2m1")
    table = build_host_table(floats, batch=1, progress=SILENT)
    assert [OPS[key[0]] for key in table.keys] == ["input"]
    assert np.isnan(LutCost(table).cost(floats)["latency_ms"]).all()


def test_nothing_to_time_is_said(networks, no_timing):
    nothing = replace(networks, active=np.zeros_like(networks.active))
    with pytest.raises(CostError) as caught:
        build_host_table(nothing, batch=1, progress=SILENT)
    assert str(caught.value) == "there is no layer to time"


def test_a_damaged_cache_names_the_file_and_the_cure(networks, quick_timing, cache):
    build_host_table(networks, batch=1, progress=SILENT)
    (file,) = cache.iterdir()
    good = file.read_text()
    file.write_text(good.replace("latency_ms", "latency"))
    with pytest.raises(CostError) as caught:
        build_host_table(networks, batch=1, progress=SILENT)
    assert str(caught.value) == (
        f"{file} is no look-up table: it lacks the column 'latency_ms'; "
        f"delete {file} to time its layers again"
    )
    file.write_text(good.replace("# threads: 1\n", "# threads: 8\n"))
    with pytest.raises(CostError) as caught:
        build_host_table(networks, batch=1, progress=SILENT)
    assert str(caught.value) == (
        f"tables of different hardware do not mix: threads is '8' and '1'; "
        f"delete {file} to time its layers again"
    )


def test_a_cache_that_cannot_be_made_is_said_before_the_work(
    networks, no_timing, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APQKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(CostError) as caught:
        build_host_table(networks, batch=1, progress=SILENT)
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'lut'} cannot be made: Not a directory; "
        f"set APQKIT_CACHE to a folder for tables"
    )


def test_figures_are_those_of_the_middle_of_the_repeats(networks, monkeypatch):
    times = np.concatenate([np.full(12, 100.0), np.arange(36) + 1.0, np.zeros(12)])
    shuffled = np.random.default_rng(0).permutation(times)
    monkeypatch.setattr(
        host, "time_layers", lambda keys, *, batch: np.tile(shuffled, (len(keys), 1))
    )
    table = build_host_table(networks, batch=1, progress=SILENT)
    assert table.latency_ms.tolist() == [18.5] * len(table.keys)  # the mean of 1 to 36
    assert set(table.p10_ms) == {1e-5}  # a zero of the clock is no price
    assert set(table.p90_ms) == {100.0}


def test_progress_counts_layers(networks, quick_timing):
    seen = []

    class Counting(SilentProgress):
        @contextmanager
        def task(self, label, total):
            seen.append((label, total))
            yield seen.append

    build_host_table(networks, batch=1, progress=Counting())
    (label, total), *steps = seen
    assert label == "cost, timing layers on this machine"
    assert sum(steps) == total == len(quick_timing)


def test_larger_layers_take_longer():
    small = conv_key()
    large = conv_key(in_channels=64, out_channels=64, in_height=32, in_width=32)
    times = time_layers(np.array([small, large]), batch=1, repeats=20)
    assert times.shape == (2, 20)
    assert np.median(times[1]) > 5 * np.median(times[0])


def test_a_kernel_that_the_profile_lacks_is_named(monkeypatch):
    monkeypatch.setattr(host, "_profiled", lambda model, feeds, repeats: {})
    with pytest.raises(CostError) as caught:
        time_layers(np.array([conv_key()]), batch=1)
    assert str(caught.value) == (
        "the runtime's profile shows no kernel for layer conv 16 16 3 1 1 8 8 1 int8 int8 0"
    )


def test_all_kernels_of_a_layer_count_and_warm_up_runs_do_not(monkeypatch):
    def event(name, microseconds, category="Node"):
        return {"name": f"{name}_kernel_time", "cat": category, "dur": microseconds}

    runs = [
        [event("layer0_Conv", 1000 + i), event("layer0_out", 10), event("layer10_Add", 7),
         event("Transpose_token", 99), event("layer0_Conv", 5, "Session")]
        for i in range(5)
    ]  # fmt: skip
    events = [{"cat": "Session"}, *(each for run in runs for each in run)]
    kernels = host._kernel_times(events, 3)
    assert set(kernels) == {0, 10}
    monkeypatch.setattr(host, "_profiled", lambda *arguments: {0: kernels[0]})
    times = time_layers(np.array([conv_key()]), batch=1, repeats=3)
    np.testing.assert_allclose(times, [[1.012, 1.013, 1.014]])


def test_the_header_says_what_a_figure_depends_on():
    header = host_header(4)
    assert list(header) == [
        "device", "schema", "processor", "cpu_flags", "system", "runtime", "threads", "batch",
        "units", "date",
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

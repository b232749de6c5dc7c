import ast
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from apqkit.cost import measure
from apqkit.cost.bench_graph import bench_graph, block_probe
from apqkit.cost.builder import prepare_folder
from apqkit.cost.keys import key_of
from apqkit.cost.lut import read_lut
from apqkit.cost.lut_cost import LutCost
from apqkit.cost.measure import (
    BLOCK_PROBES,
    hardware,
    kernel_times,
    measured_rows,
    probed_block,
    row_times,
)
from apqkit.spaces.base import largest_picks, smallest_picks

WHOLE_FILE = Path(measure.__file__).read_text()


def conv(**changes):
    columns = {
        "in_channels": 16, "out_channels": 16, "kernel": 3, "stride": 1, "groups": 1,
        "in_height": 8, "in_width": 8, "weight_format": "int8", "activation_format": "int8",
        "output_format": "int8",
    }  # fmt: skip
    return key_of("conv", columns | changes)


@pytest.fixture(scope="module")
def networks(tiny_space):
    dims = tiny_space.dims
    picks = np.concatenate([largest_picks(dims), smallest_picks(dims)])
    table = tiny_space.network(picks)
    return table.with_formats("int8", "int8")


@pytest.fixture(scope="module")
def prepared(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("device") / "plan"
    prepare_folder(networks, folder, batch=2)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy of a prepared folder, whose script measures in a hurry."""
    copy = tmp_path / "plan"
    shutil.copytree(prepared, copy)
    hurried = re.sub(r"_WARM_UP, _RUNS = \d+, \d+", "_WARM_UP, _RUNS = 1, 3", WHOLE_FILE)
    hurried = re.sub(r"_ROUNDS, (\w+)_ROUNDS = \d+, \d+", r"_ROUNDS, \1_ROUNDS = 1, 1", hurried)
    assert hurried != WHOLE_FILE
    (copy / "measure.py").write_text(hurried)
    return copy


def run(folder, *arguments):
    command = [sys.executable, "measure.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def module_of(folder):
    """The copied script as a module of its own."""
    spec = importlib.util.spec_from_file_location("copied", folder / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(folder):
    lines = (folder / "measured.csv").read_text().splitlines()
    return [line for line in lines if line[0] != "#"]


def models_of(folder):
    return sorted(each.name for each in folder.glob("layers*.onnx"))


# The script on a device


def test_the_script_imports_numpy_and_onnxruntime_alone():
    imported = set()
    for node in ast.walk(ast.parse(WHOLE_FILE)):
        if isinstance(node, ast.Import):
            imported |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_a_prepared_folder_is_measured_without_this_package(prepared, networks, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(prepared, folder)
    alone = (
        "import runpy, sys\n"
        "for name in ('apqkit', 'onnx', 'pandas', 'scipy', 'sklearn', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['measure.py', '--device', 'toy board']\n"
        "runpy.run_path('measure.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", alone], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == str(folder / "measured.csv")
    table = read_lut(folder / "measured.csv")
    assert len(table) == len((folder / "plan.csv").read_text().splitlines()) - 5
    assert (table.p10_ms <= table.latency_ms * (1 + 1e-9)).all()
    assert (table.latency_ms <= table.p90_ms * (1 + 1e-9)).all()
    assert (table.count >= 20).all()
    assert table.header["device"] == "toy board"
    assert table.header["batch"] == "2"
    assert table.header["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    model = LutCost(table)
    costs = model.cost(networks)
    assert model.coverage.estimated == {}
    assert (costs["latency_ms"] > 0).all()


def test_killed_and_started_again_it_goes_on(folder):
    script = folder / "measure.py"
    slowly = re.sub(r"_MODELS_IN_TURN = \d+", "_MODELS_IN_TURN = 1", script.read_text())
    slowly = slowly.replace(
        "        chosen = waiting[start", "        time.sleep(0.4)\n        chosen = waiting[start"
    )
    script.write_text(slowly)
    with subprocess.Popen(
        [sys.executable, "measure.py"], cwd=folder, stdout=subprocess.PIPE
    ) as it:
        assert it.stdout.readline().startswith(b"1 of ")
        it.send_signal(signal.SIGKILL)
    first = rows_of(folder)
    script.write_text(slowly.replace("time.sleep(0.4)", "pass"))
    done = run(folder)
    assert (done.returncode, done.stderr) == (0, "")
    models = len(models_of(folder))
    assert done.stdout.splitlines()[:-1] == [
        f"{each} of {models - 1} models" for each in range(1, models)
    ]
    rows = rows_of(folder)
    assert rows[: len(first)] == first
    assert len(rows) == len(rows_of_plan(folder))
    before = (folder / "measured.csv").read_bytes()
    assert run(folder).stdout.splitlines() == [str(folder / "measured.csv")]
    assert (folder / "measured.csv").read_bytes() == before


def rows_of_plan(folder):
    return [line for line in (folder / "plan.csv").read_text().splitlines() if line[0] != "#"]


def test_a_model_that_the_runtime_cannot_load_is_left_out_with_one_line(folder):
    first, *others = models_of(folder)
    (folder / first).write_bytes(b"no model")
    done = run(folder)
    assert done.returncode == 0
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"{first} is left out: ")
    measured = {row.split(",")[0] for row in rows_of(folder)[1:]}
    assert measured == set(others)
    assert len(read_lut(folder / "measured.csv")) == len(rows_of(folder)) - 1


@pytest.mark.parametrize("name", ["plan.csv", "probe.onnx"])
def test_a_folder_that_was_not_copied_whole_is_said(folder, name):
    (folder / name).unlink()
    done = run(folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{folder / name} is missing: copy the whole folder\n"


@pytest.fixture
def copied(folder, monkeypatch):
    """The script of a folder in this process, its timing replaced; notes what is timed."""
    module = module_of(folder)
    asked = []

    def rows(names, load, counts):
        asked.extend(names)
        return {(name, row): (0.5, 0.4, 0.6, 60) for name in names for row in range(counts[name])}

    monkeypatch.setattr(module, "measured_rows", rows)
    monkeypatch.setattr(module, "_can_run", lambda path: True)
    return module, asked


def test_measured_again_under_another_name_everything_is_new(folder, copied):
    module, asked = copied
    assert module.main(["--device", "one"]) == 0
    assert asked == models_of(folder)
    assert module.main(["--device", "one"]) == 0
    assert asked == models_of(folder)
    assert module.main(["--device", "two"]) == 0
    assert asked == 2 * models_of(folder)
    assert read_lut(folder / "measured.csv").header["device"] == "two"
    assert len(rows_of(folder)) == len(rows_of_plan(folder))


def test_another_runtime_starts_from_nothing(folder, copied, monkeypatch):
    module, asked = copied
    module.main([])
    monkeypatch.setattr(onnxruntime, "__version__", "0.0.1")
    module.main([])
    assert asked == 2 * models_of(folder)


def test_a_new_plan_in_the_same_folder_keeps_no_row_of_the_old(
    folder, copied, tiny_space, tmp_path
):
    module, asked = copied
    module.main([])
    other = tiny_space.network(largest_picks(tiny_space.dims)).in_fp32()
    prepare_folder(other, tmp_path / "new", batch=2)
    for each in (tmp_path / "new").iterdir():
        if each.name != "measure.py":
            shutil.copy(each, folder)
    asked.clear()
    module.main([])
    assert asked == models_of(tmp_path / "new")
    assert len(rows_of(folder)) == len(rows_of_plan(folder))
    model = LutCost(read_lut(folder / "measured.csv"))
    model.cost(other)
    assert model.coverage.estimated == {}


# Rounds and what is made of them


class Clock:
    """Takes the place of the runtime: rounds of given means, in turn, with five runs each."""

    def __init__(self, **means):
        self.means = {name: iter(each) for name, each in means.items()}
        self.asked = []

    def __call__(self, model):
        self.asked.append(model.decode())
        return {"layer0_y": np.full(5, next(self.means[model.decode()]))}


def measured(clock, rows=1):
    names = list(clock.means)
    return measured_rows(names, str.encode, dict.fromkeys(names, rows), clock)


def test_a_layer_that_takes_the_same_each_round_needs_few_rounds():
    found = measured(Clock(a=[2.0] * 9))
    assert found == {("a", 0): (2.0, 2.0, 2.0, 3 * 5)}


def test_an_unsteady_layer_gets_more_rounds_but_no_end():
    clock = Clock(a=[1.0, 1.15] * 9)
    ((_, low, high, count),) = measured(clock).values()
    assert 3 < len(clock.asked) <= 9
    assert (low, high) == (1.0, 1.15)
    assert count == 5 * len(clock.asked)
    endless = Clock(a=[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0])
    measured(endless)
    assert len(endless.asked) == 9


def test_rounds_that_other_work_disturbed_do_not_count():
    clock = Clock(a=[1.0, 5.0, 1.0, 3.0, 1.0, 9.0])
    assert measured(clock) == {("a", 0): (1.0, 1.0, 1.0, 15)}
    assert len(clock.asked) == 5


def test_models_take_turns_until_each_is_known():
    clock = Clock(a=[1.0] * 3, b=[1.0, 1.15] * 9, c=[3.0] * 3)
    measured(clock)
    assert clock.asked[:9] == list("abcabcabc")
    assert set(clock.asked[9:]) == {"b"}


def test_figures_are_those_of_the_middle_of_the_runs(monkeypatch):
    monkeypatch.setattr(measure, "_FEWEST_ROUNDS", 1)
    runs = np.concatenate([np.full(12, 100.0), np.arange(36) + 1.0, np.zeros(12)])
    shuffled = np.random.default_rng(0).permutation(runs)
    ((mean, low, high, count),) = measured_rows(
        ["a"], str.encode, {"a": 1}, lambda model: {"layer0_y": shuffled}
    ).values()
    assert mean == 18.5  # of 1 to 36
    assert (low, high) == (1e-5, 100.0)  # a zero of the clock is no price
    assert count == 60


def test_rows_that_leave_no_kernel_are_left_out():
    found = measured(Clock(a=[2.0] * 9), rows=2)
    assert list(found) == [("a", 0)]


def test_all_kernels_of_a_layer_count_and_those_of_others_do_not():
    times = {
        "layer1_y_nchwc": np.array([1.0, 2.0]), "layer1_out": np.array([0.5, 0.5]),
        "layer10_y": np.array([7.0, 7.0]), "feed1_y": np.array([9.0, 9.0]),
        "Transpose_token_3": np.array([9.0, 9.0]),
    }  # fmt: skip
    assert row_times(times, 1).tolist() == [1.5, 2.5]
    assert row_times(times, 10).tolist() == [7.0, 7.0]
    assert row_times(times, 0) is None


def test_runs_of_the_warm_up_do_not_count(monkeypatch):
    monkeypatch.setattr(measure, "_RUNS", 3)
    events = [
        {"name": f"{name}_kernel_time", "dur": base + run}
        for run in range(5)
        for name, base in (("layer0_y", 1000), ("layer1_y", 10))
    ]
    monkeypatch.setattr(measure, "profile", lambda model: events)
    times = kernel_times(b"")
    assert times["layer0_y_kernel_time"].tolist() == [1.002, 1.003, 1.004]
    assert times["layer1_y_kernel_time"].tolist() == [0.012, 0.013, 0.014]


def test_larger_layers_take_longer():
    keys = np.stack([conv(), conv(in_channels=64, out_channels=64, in_height=32, in_width=32)])
    times = kernel_times(bench_graph(keys, 1).SerializeToString())
    small, large = (row_times(times, row) for row in (0, 1))
    assert small.shape == large.shape == (20,)
    assert np.median(large) > 5 * np.median(small)


@pytest.mark.parametrize("block", [0, 4, 8, 16, 64])
def test_the_block_is_the_fewest_channels_that_are_reordered(monkeypatch, block):
    runs = measure._WARM_UP + measure._RUNS
    reordered = [each for each in BLOCK_PROBES if block and each >= block]
    ops = ["Conv"] * len(BLOCK_PROBES) + ["ReorderInput"] * len(reordered)
    events = [{"args": {"op_name": op}} for op in ops * runs]
    monkeypatch.setattr(measure, "profile", lambda model: events)
    assert probed_block(b"") == block


def test_the_block_of_this_machine_is_found_again():
    model = block_probe().SerializeToString()
    assert probed_block(model) == probed_block(model)
    assert probed_block(model) in {0, *BLOCK_PROBES}


def test_the_hardware_says_what_a_figure_depends_on():
    said = hardware()
    assert list(said) == ["processor", "cpu_flags", "system", "runtime", "threads"]
    assert said["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert said["threads"] == "1"
    assert all(value and "\n" not in value for value in said.values())


@pytest.mark.parametrize(
    ("text", "processor", "flags"),
    [
        (
            "model name\t: Abacus 9\nflags\t\t: fpu avx2 avx512_vnni\n",
            "Abacus 9",
            "avx2 avx512_vnni",
        ),
        (
            "processor: 0\nFeatures\t: fp asimd asimddp\nHardware\t: Board\n",
            "Board",
            "asimd asimddp",
        ),
        ("model name : Old\nflags : fpu\n", "Old", "none of note"),
    ],
)
def test_processors_are_read_from_the_kernel(tmp_path, monkeypatch, text, processor, flags):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(
        measure,
        "Path",
        lambda path: tmp_path / "cpuinfo" if path == "/proc/cpuinfo" else Path(path),
    )
    assert (hardware()["processor"], hardware()["cpu_flags"]) == (processor, flags)


def test_a_device_without_the_runtime_is_told_so(folder, monkeypatch, capsys):
    monkeypatch.setattr(measure, "__file__", str(folder / "measure.py"))
    monkeypatch.setattr(measure, "find_spec", lambda name: None)
    assert measure.main(["--device", "box"]) == 2
    assert capsys.readouterr().err == (
        "onnxruntime is not installed here: pip install onnxruntime\n"
    )
    assert not (folder / "measured.csv").exists()

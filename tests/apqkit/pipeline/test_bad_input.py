"""What a user gets wrong: one line on stderr, exit code 2, and nothing on disk has changed."""

import json
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest

import apqkit
from apqkit.cli import _run

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
LABELS = np.arange(60) % 3
ROOT_KEYS = (
    "seed, threads, plugins, data, space, supernet, samples, predictor, transfer, cost, search, "
    "finetune, export"
)
FORMATS = (
    "bf16, fp32, fp4_e2m1, fp6_e2m3, fp6_e3m2, fp8_e3m4, fp8_e4m3, fp8_e5m2, int16, int2, int3, "
    "int4, int5, int6, int7, int8, mxfp4_e2m1, mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2, "
    "mxint8, nvfp4, uint16, uint2, uint3, uint4, uint5, uint6, uint7, uint8"
)
METRICS = "accuracy, latency_ms, energy_mj, size_kib, bops, peak_activation_kib, macs, params"
PRICING = ["cost, simulating", "latency_ms of the largest"]  # what goes before some checks
STAGES = "cost, supernet, samples, predictor, search, export, report"


@pytest.fixture
def fails(capsys):
    """Runs the command line; it must end with 2 and one line of its own, which is returned."""

    def run(*arguments, progress=()):
        code = _run([str(each) for each in arguments])
        printed, said = capsys.readouterr()
        lines = [each for each in said.splitlines() if not each.startswith(tuple(progress))]
        assert (code, printed, len(lines)) == (2, "", 1), said
        assert lines[0].startswith("apqkit: ")
        return lines[0].removeprefix("apqkit: ")

    return run


@pytest.fixture
def copied_run(smoke_run, tmp_path):
    """A copy of the finished run that a test may spoil."""
    return shutil.copytree(smoke_run[0], tmp_path / "run")


def settings(*overrides):
    return [part for each in overrides for part in ("--set", each)]


def contents(path):
    """Every file of a directory with its bytes, the lock aside."""
    files = [each for each in path.rglob("*") if each.is_file() and each.name != ".lock"]
    return {each: each.read_bytes() for each in files}


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "search.verfy=30",
            "unknown key 'search.verfy' (did you mean 'search.verify'?); allowed: strategy, "
            "objectives, limits, verify, rounds, population, generations, storage",
        ),
        ("sed=1", f"unknown key 'sed' (did you mean 'seed'?); allowed: {ROOT_KEYS}"),
        (
            "space.options.stm=8",
            "unknown key 'space.options.stm' (did you mean 'space.options.stem'?); allowed: pool, "
            "stem, stem_stride, stages, expand, smallest_expand, hidden_choices, channel_step, "
            "head, depthwise_formats",
        ),
        (
            'space.weight_formats=["int44"]',
            f"no format named 'int44' (did you mean 'int4'?); there are: {FORMATS}",
        ),
        (
            'space.first_last_formats=["uint8"]',
            "space formats are named without sign, got 'uint8': tensors that cannot be negative "
            "use the unsigned twin by themselves",
        ),
        (
            "space.name=mobilnet",
            "no space named 'mobilnet' (did you mean 'mobilenet'?); there are: apq, mobilenet",
        ),
        (
            "data.name=digit",
            "no data set named 'digit' (did you mean 'digits'?); there are: digits, "
            "fashion-mnist, folder, npz",
        ),
        (
            "cost.device=bitfusion-2x",
            "no device named 'bitfusion-2x' (did you mean 'bitfusion-2x4'?); there are: "
            "a100, bitfusion-16x32, bitfusion-16x32-wide, bitfusion-2x4, bitfusion-apq, cpu-avx2, "
            "cpu-avx512-vnni, h100, host, host-openvino, t4, tpu-v3, tpu-v4, v100, the path of a "
            "table (.csv) or of a folder that a device measured",
        ),
        ("cost.device=phone.csv", "cost.device 'phone.csv' is no file"),
        (
            "predictor.name=rigde",
            "no predictor named 'rigde' (did you mean 'ridge'?); there are: auto, "
            "bayesian_ridge, blend, boosted_trees, extra_trees, gaussian_process, mlp, parzc, "
            "random_forest, rank_average, ridge",
        ),
        (
            'predictor.proxies=["synflo"]',
            "no proxy named 'synflo' (did you mean 'synflow'?); there are: epe_nas, fisher, "
            "fisher_channel, flops, grad_norm, grasp, jacov, l2_norm, meco, naswot, naswot_mean, "
            "params, plain, snip, sqnr, swap, synflow, zen, zico",
        ),
        (
            "search.strategy=evlution",
            "no search strategy named 'evlution' (did you mean 'evolution'?); there are: "
            "evolution, nsga2, random",
        ),
        ('seed="one"', "seed must be integer, got str 'one'"),
        ("seed=-1", "seed must be greater than or equal to 0, got int -1"),
        (
            "samples.fp32=0",
            "samples.fp32 and samples.mixed must both be 0, so that proxies alone propose, or "
            "both be at least 8, got 0 and 24",
        ),
        (
            "transfer.mode=magic",
            "transfer.mode must be one of auto, feature, residual, warm, multitask, got 'magic'",
        ),
        ("samples.fp32=2", "samples.fp32 must be 0 or an integer of at least 8, got int 2"),
        (
            "data.validation=1.5",
            "data.validation must be a fraction between 0 and 1 or a number of at least 1, "
            "got float 1.5",
        ),
        (
            'search.objectives={accuracy="up"}',
            "search.objectives.accuracy must be 'max' or 'min', got str 'up'",
        ),
        ("seed", "--set takes key=value with a dotted key, got 'seed'"),
        ("=3", "--set takes key=value with a dotted key, got '=3'"),
        ("seed.x=3", "--set seed.x: 'seed' is a value, not a table of keys"),
        (
            'plugins=["no_such_lab.formats"]',
            "plugins: module 'no_such_lab.formats' cannot be imported: "
            "No module named 'no_such_lab'",
        ),
        ('plugins=[""]', "plugins: module '' cannot be imported: Empty module name"),
        ("data.name=npz", "data.name 'npz' needs data.path: --set data.path=PATH"),
        (
            "data.limit=2",
            "the training images show no '0': change data.validation, data.test or data.limit",
        ),
    ],
)
def test_a_wrong_value_is_named_before_anything_is_written(override, message, fails, tmp_path):
    path = tmp_path / "run"
    assert fails("run-search", "smoke", "--out", path, *settings(override)) == message
    assert not path.exists()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("import no_such_lab\n", "No module named 'no_such_lab'"),
        ("1 / 0\n", "division by zero"),
        ("raise KeyError\n", "KeyError"),
        ("def broken(:\n", "invalid syntax (lab_plugin.py, line 1)"),
    ],
)
def test_a_plug_in_that_fails_is_named(lines, reason, fails, tmp_path, monkeypatch):
    (tmp_path / "lab_plugin.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lab_plugin", raising=False)
    message = fails(
        "run-search", "smoke", "--out", tmp_path / "run", *settings('plugins=["lab_plugin"]')
    )
    assert message == f"plugins: module 'lab_plugin' cannot be imported: {reason}"


def test_an_unknown_configuration_is_named(fails, tmp_path):
    known = ", ".join(apqkit.config.shipped_configs())
    assert fails("run-search", "smok", "--out", tmp_path / "run") == (
        f"no configuration 'smok' (did you mean 'smoke'?): neither a file nor one of {known}"
    )


def test_unreadable_toml_is_named(fails, tmp_path):
    broken, binary, folder = (tmp_path / f"{name}.toml" for name in ("broken", "binary", "folder"))
    broken.write_text("seed = \n")
    binary.write_bytes(b"\xff\xfe")
    folder.mkdir()
    known = ", ".join(apqkit.config.shipped_configs())
    assert [fails("show-config", each) for each in (broken, binary, folder)] == [
        f"{broken} is not valid TOML: Invalid value (at line 1, column 8)",
        f"{binary} is not valid TOML: 'utf-8' codec can't decode byte 0xff in position 0: "
        "invalid start byte",
        f"no configuration '{folder}': neither a file nor one of {known}",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run-serch"], "No such command 'run-serch'. Did you mean 'run-search'?"),
        (
            ["run-search", "--ot", "x"],
            "No such option: --ot (Possible options: --out, --redo, --set)",
        ),
        (["run-search", "--out"], "Option '--out' requires an argument."),
        (["export"], "Missing argument 'DIR'."),
        (["list", "formats", "spaces"], "Got unexpected extra argument(s) (spaces)"),
        (
            ["list", "format"],
            "no kind of thing to list named 'format' (did you mean 'formats'?); there are: "
            "configs, datasets, devices, formats, predictors, proxies, spaces, strategies, tables",
        ),
    ],
)
def test_a_wrong_command_is_explained(arguments, message, fails):
    assert fails(*arguments) == message


@pytest.mark.parametrize("flag", ["--until", "--redo"])
def test_an_unknown_stage_is_named(flag, fails, tmp_path):
    assert fails("run-search", "smoke", "--out", tmp_path / "run", flag, "serch") == (
        f"{flag} 'serch' is no stage (did you mean 'search'?); there are: {STAGES}"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x_train": np.array([{}] * 60, dtype=object), "y_train": LABELS},
            "{path} is damaged or holds objects: Object arrays cannot be loaded when "
            "allow_pickle=False",
        ),
        (
            {"x_train": PIXELS.reshape(60, 64), "y_train": LABELS},
            "x_train in {path} must have shape (n, height, width), with 1 or 3 channels last or "
            "first, got (60, 64)",
        ),
        (
            {"x_train": PIXELS, "y_train": LABELS[1:]},
            "y_train in {path} must hold one label an image (60), got 59",
        ),
        (
            {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS, "y_test": LABELS + 1},
            "y_test in {path} holds the label 3 that y_train does not have",
        ),
        (
            {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:, 1:], "y_test": LABELS},
            "test images must have the shape of training images (1, 8, 8), got (1, 7, 8)",
        ),
        (
            {"images": PIXELS, "labels": LABELS},
            "{path} must hold x_train and y_train, got images, labels",
        ),
        (
            {"x_train": np.full((60, 8, 8), np.nan), "y_train": LABELS},
            "x_train in {path} must be uint8, or floats in 0..1, got float64 in nan..nan",
        ),
    ],
)
def test_wrong_arrays_are_explained(arrays, message, fails, tmp_path):
    data = saved(tmp_path / "mine.npz", **arrays)
    found = fails(
        "run-search", "smoke", "--out", tmp_path / "run",
        *settings("data.name=npz", f'data.path="{data}"'),
    )  # fmt: skip
    assert found == message.format(path=data)
    assert not (tmp_path / "run").exists()


def test_missing_and_truncated_data_files_are_named(fails, tmp_path):
    whole = saved(tmp_path / "whole.npz", x_train=PIXELS, y_train=LABELS)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-100])
    messages = [
        fails(
            "run-search", "smoke", "--out", tmp_path / "run",
            *settings("data.name=npz", f'data.path="{path}"'),
        )
        for path in (tmp_path / "none.npz", cut)
    ]  # fmt: skip
    assert messages == [
        f"data.path '{tmp_path / 'none.npz'}' is no file",
        f"{cut} is no .npz file, or was cut short",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            'search.objectives={accuracy="max", latency="min"}',
            "search.objectives.latency is no metric (did you mean 'latency_ms'?); there are: "
            f"{METRICS}",
        ),
        (
            'search.objectives={accuracy="min", latency_ms="min"}',
            "search.objectives.accuracy must be 'max', got 'min'",
        ),
        (
            "search.limits={size_kb=6.0}",
            f"search.limits.size_kb is no metric (did you mean 'size_kib'?); there are: {METRICS}",
        ),
        (
            "search.limits={params=10.0}",
            "no candidate meets search.limits.params <= 10: the smallest attainable value is "
            "about 834",
        ),
    ],
)
def test_a_metric_or_limit_that_cannot_be_met_is_named(override, message, fails, tmp_path):
    path = tmp_path / "run"
    found = fails("run-search", "smoke", "--out", path, *settings(override), progress=PRICING)
    assert found == message
    # what was priced is kept: corrected objectives and limits go on from there
    assert list(json.loads((path / "manifest.json").read_text())["stages"]) == ["cost"]
    assert not (path / "supernet").exists()


def test_the_smallest_attainable_value_is_attained(fails, tmp_path):
    """Counted by hand over the smallest network of the space."""
    from apqkit.config import SpaceConfig, load_config
    from apqkit.cost import NetworkCost
    from apqkit.spaces import build_space
    from apqkit.spaces.base import smallest_picks

    config = load_config("smoke")
    assert isinstance(config.space, SpaceConfig)
    space = build_space(config.space, (1, 8, 8), 10)
    cost = NetworkCost().cost(space.network(smallest_picks(space.dims)))
    message = fails(
        "run-search", "smoke", "--out", tmp_path / "run", *settings("search.limits={params=10.0}"),
        progress=PRICING,
    )  # fmt: skip
    assert message.endswith(f"about {cost['params'][0]:.4g}")


def test_a_corrected_limit_goes_on_in_the_same_directory(fails, capsys, tmp_path):
    path = tmp_path / "run"
    command = ["run-search", "smoke", "--out", str(path), "--until", "cost"]
    fails(*command, *settings("search.limits={params=10.0}"), progress=PRICING)
    assert _run(command) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_a_machine_without_the_torch_device_is_told_before_training(fails, tmp_path):
    message = fails(
        "run-search", "smoke", "--out", tmp_path / "run",
        *settings('supernet.torch_device="gpu"'),
    )  # fmt: skip
    assert message.partition(": ")[0] == "supernet.torch_device 'gpu' cannot be used"
    assert "gpu" in message.partition(": ")[2]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"] == {}


def test_a_storage_that_cannot_be_opened_is_named_before_training(fails, tmp_path):
    message = fails(
        "run-search", "smoke", "--out", tmp_path / "run",
        *settings('search.storage="carrier://pigeon"'),
    )  # fmt: skip
    assert message == (
        "the study in carrier://pigeon cannot be opened: "
        "Can't load plugin: sqlalchemy.dialects:carrier"
    )
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"] == {}


def test_a_run_directory_that_cannot_be_written_is_named(fails, tmp_path):
    in_the_way = tmp_path / "thesis.pdf"
    in_the_way.write_text("do not touch")
    assert fails("run-search", "smoke", "--out", in_the_way) == (
        f"{in_the_way} is a file; a run needs a directory"
    )
    assert fails("run-search", "smoke", "--out", in_the_way / "run") == (
        f"{in_the_way}/run cannot be written: Not a directory"
    )
    assert fails("run-search", "smoke", "--out", "/proc/run") == (
        "/proc/run cannot be written: No such file or directory"
    )
    assert in_the_way.read_text() == "do not touch"


def test_a_foreign_directory_is_left_alone(fails, tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    assert fails("run-search", "smoke", "--out", tmp_path) == (
        f"{tmp_path} is not empty and holds no run of apqkit (it has 'thesis.tex'): "
        "use another --out"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", ["report", "export", "finetune"])
def test_a_directory_without_a_run_is_refused(command, fails, tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        assert fails(command, path) == f"{path} holds no run of apqkit: it has no resolved.json"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "key", "stage", "before", "now"),
    [
        ("samples.mixed=30", "samples.mixed", "samples", 24, 30),
        ("seed=1", "seed", "cost", 0, 1),
        ("predictor.name=blend", "predictor.name", "predictor", "ridge", "blend"),
    ],
)
def test_a_changed_configuration_is_refused(override, key, stage, before, now, fails, copied_run):
    held = contents(copied_run)
    assert fails("run-search", "smoke", "--out", copied_run, *settings(override)) == (
        f"{copied_run} was made with {key} = {before!r}, now {now!r} (stage {stage}): use "
        f"--redo {stage} to make it and what follows again, or another --out"
    )
    assert contents(copied_run) == held


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "samples.mixed=30",
            "{path} was made with samples.mixed = 24, now 30 (stage samples): use --redo samples "
            "to make it and what follows again, or another --out",
        ),
        (
            "search.strategy=evlution",
            "no search strategy named 'evlution' (did you mean 'evolution'?); there are: "
            "evolution, nsga2, random",
        ),
        (
            'search.storage="carrier://pigeon"',
            "the study in carrier://pigeon cannot be opened: "
            "Can't load plugin: sqlalchemy.dialects:carrier",
        ),
    ],
)
def test_a_mistake_beside_redo_deletes_nothing(override, message, fails, copied_run):
    held = contents(copied_run)
    found = fails(
        "run-search", "smoke", "--out", copied_run, "--redo", "search", *settings(override)
    )
    assert found == message.format(path=copied_run)
    assert contents(copied_run) == held


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("cost/lut.csv", "cost"),
        ("supernet/weights.safetensors", "supernet"),
        ("samples/mixed.jsonl", "samples"),
        ("predictor/scores.json", "predictor"),
        ("predictor/mixed/rows.npz", "predictor"),
        ("search/journal.log", "search"),
        ("search/knee.json", "search"),
        ("search/pareto.csv", "search"),
        ("export/timing.csv", "export"),
    ],
)
@pytest.mark.parametrize("spoil", ["truncated", "missing"])
def test_a_damaged_file_is_named_with_its_cure(name, stage, spoil, fails, copied_run):
    file = copied_run / name
    if spoil == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5])
    held = contents(copied_run)
    message = (
        f"{file} is missing, truncated or edited since stage {stage} wrote it; "
        f"use --redo {stage} to make it again"
    )
    assert fails("run-search", "smoke", "--out", copied_run) == message
    for command in ("report", "export", "finetune"):
        assert fails(command, copied_run) == message
    assert contents(copied_run) == held


def test_an_edited_sample_is_noticed(fails, copied_run):
    file = copied_run / "samples" / "fp32.jsonl"
    first, *others = file.read_text().splitlines()
    better = {**json.loads(first), "accuracy": 1.0}
    file.write_text("\n".join([json.dumps(better), *others]) + "\n")
    assert fails("report", copied_run) == (
        f"{file} is missing, truncated or edited since stage samples wrote it; "
        "use --redo samples to make it again"
    )


def unfinished(run, stage):
    """Makes a run look as if it was killed in the middle of a stage."""
    manifest = json.loads((run / "manifest.json").read_text())
    names = list(manifest["stages"])
    for name in names[names.index(stage) + 1 :]:
        del manifest["stages"][name]
        shutil.rmtree(run / name)
    manifest["stages"][stage] |= {"status": "running", "files": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{}\n", "holds a line that is no sample"),
        ('{"kind": "mixed"\n', "is damaged in line 1"),
        ("[1, 2]\n", "is damaged in line 1"),
    ],
)
def test_samples_that_are_none_are_refused_when_a_run_goes_on(text, fault, fails, copied_run):
    unfinished(copied_run, "samples")
    file = copied_run / "samples" / "fp32.jsonl"
    file.write_text(text)
    found = fails("run-search", "smoke", "--out", copied_run, progress=["stage ", "samples, "])
    assert found == f"{file} {fault}; use --redo samples"
    assert file.read_text() == text


def test_samples_of_other_candidates_are_refused_when_a_run_goes_on(fails, copied_run):
    unfinished(copied_run, "samples")
    file = copied_run / "samples" / "fp32.jsonl"
    first, second, *others = file.read_text().splitlines()
    file.write_text("\n".join([first, others[0], second]) + "\n")
    found = fails("run-search", "smoke", "--out", copied_run, progress=["stage ", "samples, "])
    assert found == f"{file} holds other candidates from line 2 on; use --redo samples"


def test_a_truncated_checkpoint_is_refused_when_a_run_goes_on(fails, copied_run):
    unfinished(copied_run, "supernet")
    weights = copied_run / "supernet" / "weights.safetensors"
    weights.with_name("history.csv").unlink()  # which says that training is over
    checkpoint = weights.with_name("checkpoint_fp32.safetensors")
    checkpoint.write_bytes(weights.read_bytes()[:-50])
    found = fails("run-search", "smoke", "--out", copied_run, progress=["stage ", "supernet, "])
    assert found == (
        f"{checkpoint} is truncated or was not written by apqkit; "
        "delete the run or use --redo supernet"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"versions"', '"verses"'),
        lambda text: text.replace('"status": "done"', '"status": 3'),
    ],
)
def test_a_damaged_manifest_is_refused(spoil, fails, copied_run):
    file = copied_run / "manifest.json"
    file.write_text(spoil(file.read_text()))
    held = contents(copied_run)
    for arguments in (("run-search", "smoke", "--out", copied_run), ("report", copied_run)):
        assert fails(*arguments) == (f"{file} is damaged; use another --out or delete the run")
    assert contents(copied_run) == held


def test_a_manifest_of_another_schema_is_refused(fails, copied_run):
    file = copied_run / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 9}))
    assert fails("report", copied_run) == (
        f"{file} has schema 9, this version reads 2: use another --out"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"seed"', '"sed"'),
        lambda text: text.replace('"seed": 0', '"seed": "no"'),
        lambda text: text.replace('"seed": 0', '"seed": 1'),
    ],
)
def test_a_damaged_resolved_configuration_is_refused_and_mended_by_the_search(
    spoil, fails, capsys, copied_run
):
    file = copied_run / "resolved.json"
    whole = file.read_text()
    file.write_text(spoil(whole))
    held = contents(copied_run)
    for command in ("report", "export", "finetune"):
        assert fails(command, copied_run) == (
            f"{file} is damaged; run the search again with the same --out"
        )
    assert contents(copied_run) == held
    assert _run(["run-search", "smoke", "--out", str(copied_run)]) == 0
    assert file.read_text() == whole


def test_a_carrier_that_there_is_not_is_named(fails, copied_run):
    held = contents(copied_run)
    assert fails("export", copied_run, "--carrier", "int4") == (
        "carrier must be int8 or packed, got 'int4'"
    )
    assert contents(copied_run) == held


@pytest.mark.parametrize("command", ["export", "finetune"])
def test_a_pick_that_is_on_no_front_is_named(command, fails, copied_run):
    keys = apqkit.read_front(copied_run).members.keys
    held = contents(copied_run)
    assert fails(command, copied_run, "--pick", "zzzzzzzz") == (
        f"no member of the front has the key 'zzzzzzzz'; there are: knee, {', '.join(keys)}"
    )
    assert contents(copied_run) == held


def test_a_file_in_the_way_is_named(fails, copied_run):
    (copied_run / "finetune").write_text("in the way")
    key = apqkit.read_front(copied_run).knee_key
    assert fails("finetune", copied_run) == f"{copied_run}/finetune/{key}: Not a directory"


def test_an_unfinished_search_is_named(fails, copied_run):
    unfinished(copied_run, "samples")
    assert fails("report", copied_run) == (
        f"{copied_run} holds no finished search: run apqkit run-search with --out {copied_run} "
        "first"
    )


HOLD = """
import sys
from pathlib import Path
from apqkit.run import RunDirectory
with RunDirectory.opened(Path(sys.argv[1]), create=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_on_a_run_is_told_who_holds_it(fails, copied_run):
    held = contents(copied_run)
    command = [sys.executable, "-c", HOLD, str(copied_run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        message = (
            f"{copied_run} is in use by process {holder.pid} on {platform.node()}; "
            "wait for it or use another --out"
        )
        for arguments in (("run-search", "smoke", "--out", copied_run), ("report", copied_run)):
            assert fails(*arguments) == message
        holder.stdin.close()
    assert contents(copied_run) == held
    assert len(apqkit.read_front(copied_run)) >= 1


def test_a_real_process_ends_with_two_and_no_traceback(run_apqkit, tmp_path):
    done = run_apqkit("run-search", "smok", cwd=tmp_path, check=False)
    known = ", ".join(apqkit.config.shipped_configs())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "apqkit: no configuration 'smok' (did you mean 'smoke'?): neither a file nor one of "
        f"{known}\n"
    )
    assert list(tmp_path.iterdir()) == []

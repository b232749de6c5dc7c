import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.errors import RunError
from apqkit.run import (
    RunDirectory,
    append_line,
    fingerprint_of,
    processor_name,
    read_lines,
    write_atomically,
    write_json,
)

INPUTS = {"schema": 1, "seed": 0, "space.weight_formats": ["int4", "int8"]}
STAGES = ("cost", "supernet", "samples")
HOLD = """
with RunDirectory.opened(Path(sys.argv[1]), create=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(code, *arguments):
    """A second process that runs code with the names of apqkit.run at hand."""
    head = "import sys\nfrom pathlib import Path\nfrom apqkit.run import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def refusal(path, *, create=True):
    with (
        pytest.raises(RunError) as caught,
        RunDirectory.opened(path, create=create),
    ):
        pass  # pragma: no cover
    return str(caught.value)


def make_stage(run, stage, inputs=INPUTS, files=("a.txt", "deep/b.txt")):
    folder = run.begin(stage, inputs)
    for name in files:
        write_atomically(folder / name, f"{stage} {name}")
    run.finish(stage)


@pytest.fixture
def path(tmp_path):
    """A run with three finished stages."""
    path = tmp_path / "run"
    with RunDirectory.opened(path, create=True) as run:
        for stage in STAGES:
            make_stage(run, stage)
    return path


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    path = tmp_path / "run"
    with start(HOLD, path) as holder:
        assert holder.stdout.readline() == "held\n"
        assert refusal(path) == (
            f"{path} is in use by process {holder.pid} on {platform.node()}; "
            f"wait for it or use another --out"
        )
        holder.communicate("")
    with RunDirectory.opened(path, create=False):
        pass


def test_this_process_keeps_others_out_until_it_is_done(tmp_path):
    path = tmp_path / "run"
    with RunDirectory.opened(path, create=True), start(HOLD, path) as second:
        _, fault = second.communicate()
    assert fault.splitlines()[-1] == (
        f"apqkit.errors.RunError: {path} is in use by process {os.getpid()} on "
        f"{platform.node()}; wait for it or use another --out"
    )
    with start(HOLD, path) as third:
        assert third.stdout.readline() == "held\n"
        third.communicate("")


def test_a_run_is_locked_within_a_process_too(path):
    with RunDirectory.opened(path, create=False):
        assert refusal(path).startswith(f"{path} is in use by process {os.getpid()} on ")


def test_a_killed_process_leaves_the_lock_free(tmp_path):
    path = tmp_path / "run"
    with start(HOLD, path) as holder:
        holder.stdout.readline()
        kill(holder)
    with RunDirectory.opened(path, create=True) as run:
        assert run.stages == {}


def test_a_holder_without_a_name_is_another_process(path):
    lock = path / ".lock"
    with start(
        "import fcntl\n"
        "file = open(sys.argv[1], 'r+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.truncate(0)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()",
        lock,
    ) as holder:
        holder.stdout.readline()
        assert refusal(path) == (
            f"{path} is in use by another process; wait for it or use another --out"
        )
        holder.communicate("")


def test_an_error_inside_leaves_the_lock_free(path):
    with pytest.raises(ZeroDivisionError), RunDirectory.opened(path, create=False):
        _ = 1 / 0
    with RunDirectory.opened(path, create=False):
        pass


def test_a_run_is_a_run_from_its_first_file_on(tmp_path):
    path = tmp_path / "run"
    code = (
        "with RunDirectory.opened(Path(sys.argv[1]), create=True) as run:\n"
        "    write_atomically(run.path / 'config.toml', 'seed = 0')\n"
        "    print('written', flush=True)\n"
        "    sys.stdin.read()"
    )
    with start(code, path) as process:
        assert process.stdout.readline() == "written\n"
        kill(process)
    with RunDirectory.opened(path, create=True) as run:
        assert run.stages == {}


def test_a_kill_before_the_manifest_is_complete_does_no_harm(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".manifest.json.tmp").write_text('{"sche', encoding="utf-8")
    with RunDirectory.opened(tmp_path, create=True) as run:
        make_stage(run, "cost")
        assert run.is_done("cost", INPUTS)


def test_a_new_run_says_what_made_it(tmp_path):
    path = tmp_path / "deep" / "run"
    with RunDirectory.opened(path, create=True) as run:
        run.describe({"seed": 3})
        run.describe({"device": "host"})
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 2
    assert manifest["versions"]["python"] == platform.python_version()
    for name in ("torch", "numpy", "scikit-learn", "optuna"):
        assert manifest["versions"][name] == metadata.version(name)
    assert manifest["machine"] == {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
    }
    assert manifest["facts"] == {"seed": 3, "device": "host"}
    assert manifest["stages"] == {}


def test_facts_are_kept_when_a_run_is_opened_again(path):
    with RunDirectory.opened(path, create=False) as run:
        run.describe({"seed": 3, "device": "host"})
    with RunDirectory.opened(path, create=False) as run:
        run.describe({"seed": 4})
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["facts"] == {"seed": 4, "device": "host"}


def test_a_version_that_is_not_installed_is_unknown(tmp_path, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("apqkit.run.metadata.version", version)
    with RunDirectory.opened(tmp_path / "run", create=True):
        pass
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["versions"]["torch"] == "unknown"


def test_the_processor_is_the_one_that_the_system_names():
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert processor_name() == (names[0] if names else platform.processor() or "unknown")


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    (tmp_path / "zebra").mkdir()
    assert refusal(tmp_path) == (
        f"{tmp_path} is not empty and holds no run of apqkit (it has 'thesis.tex'): "
        f"use another --out"
    )
    assert sorted(each.name for each in tmp_path.iterdir()) == ["thesis.tex", "zebra"]


def test_an_empty_directory_becomes_a_run(tmp_path):
    with RunDirectory.opened(tmp_path, create=True) as run:
        make_stage(run, "cost")
    assert (tmp_path / "manifest.json").is_file()


def test_a_file_is_no_run(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert refusal(path) == f"{path} is a file; a run needs a directory"


def test_a_run_that_must_exist_is_not_made(tmp_path):
    path = tmp_path / "run"
    assert refusal(path, create=False) == f"{path} is no run directory: it does not exist"
    assert not path.exists()
    path.mkdir()
    assert refusal(path, create=False) == f"{path} is no run directory: it is empty"
    assert list(path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "run"
    assert refusal(below) == f"{below} cannot be written: Not a directory"
    nowhere = Path("/proc/apqkit-run")
    assert refusal(nowhere) == f"{nowhere} cannot be written: No such file or directory"
    long = tmp_path / ("x" * 300)
    assert refusal(long) == f"{long} cannot be written: File name too long"
    (tmp_path / "odd" / ".lock").mkdir(parents=True)
    odd = tmp_path / "odd"
    assert refusal(odd) == f"{odd} cannot be written: Is a directory"


def test_a_file_system_without_locks_is_named(path, monkeypatch):
    def flock(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("apqkit.run.fcntl.flock", flock)
    assert refusal(path) == f"{path} cannot be locked: No locks available"


def manifest_with(**changed):
    record = {"inputs": {}, "status": "done", "seconds": 1.0, "files": {}}
    return {
        "schema": 2,
        "facts": {},
        "versions": {},
        "machine": {},
        "stages": {"cost": {**record, **changed}},
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema": 2, "sta',
        b"\xff\xfe",
        b"[]",
        b"5",
        b"{}",
        b'{"schema": 2}',
        b'{"schema": 2, "facts": {}, "stages": []}',
        b'{"schema": 2, "facts": 5, "stages": {}}',
        b'{"schema": 2, "facts": {}, "stages": {}, "versions": {}}',
        b'{"schema": 2, "facts": {}, "stages": {}, "machine": {}}',
        b'{"schema": 2, "facts": {}, "stages": {"cost": 5}}',
        b'{"schema": 2, "facts": {}, "stages": {"cost": {}}}',
        json.dumps(manifest_with(status="finished")).encode(),
        json.dumps(manifest_with(inputs=[1])).encode(),
        json.dumps(manifest_with(seconds="long")).encode(),
        json.dumps(manifest_with(files={"a": 5})).encode(),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    assert refusal(tmp_path) == f"{path} is damaged; use another --out or delete the run"
    assert path.read_bytes() == content


def test_a_sound_manifest_of_the_same_form_is_read(tmp_path):
    write_json(tmp_path / "manifest.json", manifest_with(seconds=2.0))
    with RunDirectory.opened(tmp_path, create=False) as run:
        assert run.stages["cost"].seconds == 2.0


def test_a_manifest_that_is_a_directory_is_damaged(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    assert refusal(tmp_path) == (
        f"{tmp_path / 'manifest.json'} is damaged; use another --out or delete the run"
    )


@pytest.mark.parametrize(("schema", "shown"), [(1, "1"), (3, "3"), ("a", "'a'")])
def test_a_manifest_of_another_schema_is_refused(tmp_path, schema, shown):
    write_json(tmp_path / "manifest.json", {**manifest_with(), "schema": schema, "stages": 5})
    assert refusal(tmp_path) == (
        f"{tmp_path / 'manifest.json'} has schema {shown}, this version reads 2: use another --out"
    )


def test_a_finished_stage_stays_done(path):
    with RunDirectory.opened(path, create=False) as run:
        assert [run.is_done(stage, INPUTS) for stage in STAGES] == [True] * 3
        assert not run.is_done("search", INPUTS)
        assert list(run.stages) == list(STAGES)
        assert list(run.stages["cost"].files) == ["cost/a.txt", "cost/deep/b.txt"]


def test_a_run_can_be_moved(path):
    moved = path.rename(path.with_name("elsewhere"))
    with RunDirectory.opened(moved, create=False) as run:
        assert run.is_done("cost", INPUTS)


def test_a_stage_that_was_begun_is_not_done(tmp_path):
    path = tmp_path / "run"
    code = (
        "with RunDirectory.opened(Path(sys.argv[1]), create=True) as run:\n"
        "    folder = run.begin('samples', {'seed': 0})\n"
        "    append_line(folder / 'fp32.jsonl', {'accuracy': 0.5})\n"
        "    print('begun', flush=True)\n"
        "    sys.stdin.read()"
    )
    with start(code, path) as process:
        assert process.stdout.readline() == "begun\n"
        kill(process)
    with RunDirectory.opened(path, create=True) as run:
        assert run.stages["samples"].status == "running"
        assert not run.is_done("samples", {"seed": 0})
        folder = run.begin("samples", {"seed": 0})
        assert read_lines(folder / "fp32.jsonl", "") == [{"accuracy": 0.5}]
        run.finish("samples")
        assert run.is_done("samples", {"seed": 0})


def test_a_stage_that_was_begun_with_other_inputs_is_refused(tmp_path):
    path = tmp_path / "run"
    with RunDirectory.opened(path, create=True) as run:
        run.begin("samples", {"seed": 0})
        with pytest.raises(RunError) as caught:
            run.is_done("samples", {"seed": 1})
    assert str(caught.value) == (
        f"{path} was made with seed = 0, now 1 (stage samples): "
        f"use --redo samples to make it and what follows again, or another --out"
    )


def test_a_stage_takes_the_time_since_it_began(tmp_path):
    with RunDirectory.opened(tmp_path / "run", create=True) as run:
        time.sleep(0.3)  # does not count
        started = time.monotonic()
        folder = run.begin("cost", INPUTS)
        time.sleep(0.1)
        run.finish("cost")
        assert 0.1 <= run.stages["cost"].seconds <= time.monotonic() - started + 0.01
        assert folder == run.path / "cost"


def break_by_editing(file):
    file.write_text(file.read_text().replace("a", "b"), encoding="utf-8")


def break_by_cutting(file):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [break_by_editing, break_by_cutting, Path.unlink])
def test_a_file_that_was_harmed_since_is_named(path, harm):
    harm(path / "supernet" / "a.txt")
    with RunDirectory.opened(path, create=False) as run:
        assert run.is_done("cost", INPUTS)
        with pytest.raises(RunError) as caught:
            run.is_done("supernet", INPUTS)
    assert str(caught.value) == (
        f"{path / 'supernet' / 'a.txt'} is missing, truncated or edited since stage supernet "
        f"wrote it; use --redo supernet to make it again"
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 7}, "seed = 0, now 7"),
        (
            {"space.weight_formats": ["int4"]},
            "space.weight_formats = ['int4', 'int8'], now ['int4']",
        ),
        ({"plugins": ["mylab"]}, "plugins = None, now ['mylab']"),
        ({"seed": None}, "seed = 0, now None"),
        ({"seed": 1, "data.images": "ab"}, "seed = 0, now 1"),  # the first, not by the alphabet
    ],
)
def test_changed_inputs_are_named_with_the_cure(path, change, difference):
    with (
        RunDirectory.opened(path, create=False) as run,
        pytest.raises(RunError) as caught,
    ):
        run.is_done("samples", {**INPUTS, **change})
    assert str(caught.value) == (
        f"{path} was made with {difference} (stage samples): "
        f"use --redo samples to make it and what follows again, or another --out"
    )


def test_an_input_that_is_gone_is_named(path):
    with (
        RunDirectory.opened(path, create=False) as run,
        pytest.raises(RunError, match="was made with seed = 0, now None"),
    ):
        run.is_done("samples", {name: v for name, v in INPUTS.items() if name != "seed"})


def test_redo_forgets_stages_and_what_they_left(path):
    (path / "finetune").mkdir()
    with RunDirectory.opened(path, create=False) as run:
        run.redo(["supernet", "samples", "search"])
        assert list(run.stages) == ["cost"]
        assert run.is_done("cost", INPUTS)
        assert not run.is_done("supernet", {"seed": 5})
    left = {each.name for each in path.iterdir()}
    assert left == {".lock", "manifest.json", "cost", "finetune"}
    with RunDirectory.opened(path, create=False) as run:
        assert list(run.stages) == ["cost"]


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_redo_that_was_killed_leaves_nothing_stale(path, monkeypatch, deleted):
    calls = []

    def rmtree(folder):
        if len(calls) == deleted:
            (Path(folder) / "a.txt").unlink()
            raise KeyboardInterrupt
        calls.append(folder)
        remove(folder)

    remove = shutil.rmtree
    monkeypatch.setattr("apqkit.run.shutil.rmtree", rmtree)
    with (
        pytest.raises(KeyboardInterrupt),
        RunDirectory.opened(path, create=False) as run,
    ):
        run.redo(STAGES)
    monkeypatch.undo()
    with RunDirectory.opened(path, create=False) as run:
        left = [stage for stage in STAGES if (path / stage).exists()]
        assert list(run.stages) == left == list(STAGES[: 3 - deleted])
        with pytest.raises(RunError, match=f"use --redo {left[-1]} to make it again"):
            run.is_done(left[-1], INPUTS)
        run.redo(STAGES)
        assert run.stages == {}


def test_what_cannot_be_deleted_is_named(path):
    shutil.rmtree(path / "samples")
    (path / "samples").touch()
    with RunDirectory.opened(path, create=False) as run:
        with pytest.raises(RunError) as caught:
            run.redo(["samples"])
        assert str(caught.value) == f"{path / 'samples'} cannot be deleted: Not a directory"
        assert "samples" in run.stages


def test_the_log_keeps_lines_with_their_time(path):
    for text in ("stage cost begins", "Größe 6 KiB"):
        with RunDirectory.opened(path, create=False) as run:
            run.log(text)
    lines = (path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["stage cost begins", "Größe 6 KiB"]
    for line in lines:
        time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    code = (
        "for turn in range(10**9):\n"
        "    write_atomically(Path(sys.argv[1]), b'%c' % (97 + turn % 26) * 2_000_000)\n"
        "    turn == 3 and print('going', flush=True)"
    )
    for attempt in range(3):
        with start(code, path) as process:
            process.stdout.readline()
            time.sleep(0.013 * attempt)
            kill(process)
        content = path.read_bytes()
        assert content == content[:1] * 2_000_000
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_makes_the_folders_on_the_way(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": [1, None]})
    assert path.read_text() == '{\n  "x": [\n    1,\n    null\n  ]\n}\n'


def test_a_kill_loses_one_line_at_most(tmp_path):
    path = tmp_path / "lines.jsonl"
    code = (
        "for number in range(10**9):\n"
        "    append_line(Path(sys.argv[1]), {'number': number, 'ballast': 'x' * 5000})\n"
        "    print(number, flush=True)"
    )
    with start(code, path) as process:
        for _ in range(20):
            said = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        said = [said, *map(int, process.stdout.read().split())][-1]
    rows = read_lines(path, "")
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert len(rows) in (said + 1, said + 2)  # killed before or after it said so
    append_line(path, {"number": len(rows)})
    assert len(read_lines(path, "")) == len(rows) + 1


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), plain), max_size=4), data=st.data())
def test_a_file_cut_anywhere_gives_its_whole_lines(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.touch()
    for row in rows:
        append_line(path, row)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = rows[: content[:cut].count(b"\n")]
    assert read_lines(path, "") == whole
    append_line(path, {"next": 1})
    assert read_lines(path, "") == [*whole, {"next": 1}]


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl", "") == []


@pytest.mark.parametrize("line", [b"", b'{"a": 1', b"[1]", b"5", b"null", b"\xff", b"\x00\x00"])
def test_a_damaged_line_is_named_with_the_cure(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(RunError) as caught:
        read_lines(path, "use --redo samples")
    assert str(caught.value) == f"{path} is damaged in line 2; use --redo samples"


def test_fingerprints_see_values_and_not_their_order():
    known = fingerprint_of({"a": 1, "b": [1, 2]})
    assert re.fullmatch("[0-9a-f]{16}", known)
    assert fingerprint_of({"b": [1, 2], "a": 1}) == known
    others = [{"a": 1}, {"a": 1, "b": [2, 1]}, {"a": "1", "b": [1, 2]}, {"a": 1.5, "b": [1, 2]}]
    assert len({known, *map(fingerprint_of, others)}) == 5


def test_what_is_added_to_a_finished_stage_on_purpose_is_recorded(path):
    with RunDirectory.opened(path, create=False) as run:
        seconds = run.stages["cost"].seconds
        write_atomically(path / "cost" / "a.txt", "changed on purpose")
        run.refresh("cost")
        assert run.is_done("cost", INPUTS)
        assert run.stages["cost"].seconds == seconds


def test_a_stage_that_is_not_done_is_not_refreshed_into_one(tmp_path):
    with RunDirectory.opened(tmp_path / "run", create=True) as run:
        run.begin("cost", INPUTS)
        run.refresh("cost")
        run.refresh("samples")
        assert run.stages["cost"].status == "running"
        assert list(run.stages) == ["cost"]


def test_versions_that_changed_since_the_run_began_are_told(path):
    manifest = json.loads((path / "manifest.json").read_text())
    now = manifest["versions"]["torch"]
    manifest["versions"]["torch"] = "1.0"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with RunDirectory.opened(path, create=False) as run:
        assert run.changed_versions() == {"torch": ("1.0", now)}

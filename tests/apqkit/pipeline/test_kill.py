import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

# Where the ten kills fall: the stage that must have begun, and the longest wait after that.
SMOKE_MOMENTS = [
    ("cost", 0.05), ("supernet", 2.0), ("supernet", 3.0), ("samples", 0.3), ("samples", 0.5),
    ("predictor", 1.0), ("search", 0.5), ("search", 1.5), ("export", 0.5), ("report", 0.5),
]  # fmt: skip
DIGITS_MOMENTS = [
    ("cost", 0.05), ("supernet", 60.0), ("supernet", 60.0), ("samples", 8.0), ("samples", 8.0),
    ("predictor", 8.0), ("search", 12.0), ("search", 20.0), ("export", 1.5), ("report", 1.0),
]  # fmt: skip


def start(path, config):
    command = [sys.executable, "-m", "apqkit", "run-search", config, "--out", str(path)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def begun_stages(path):
    manifest = path / "manifest.json"
    return json.loads(manifest.read_text())["stages"] if manifest.exists() else {}


def sample_lines(path):
    lines = []
    for kind in ("fp32", "mixed"):
        file = path / "samples" / f"{kind}.jsonl"
        content = file.read_bytes() if file.exists() else b""
        lines += content[: content.rfind(b"\n") + 1].splitlines()
    return lines


def kill_in(path, config, stage, longest_wait, rng):
    """Starts the command and kills it a random while after a stage has begun."""
    process = start(path, config)
    while stage not in begun_stages(path) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(longest_wait * rng.random())
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), errors.decode()
    return process.returncode != 0


def check_killed_run(path, config, moments, reference, seed):
    rng = np.random.default_rng(seed)
    kept, killed_in = [], []
    for stage, longest_wait in moments:
        if kill_in(path, config, stage, longest_wait, rng):
            states = {name: each["status"] for name, each in begun_stages(path).items()}
            killed_in += [name for name, status in states.items() if status == "running"]
        now = sample_lines(path)
        assert now[: len(kept)] == kept, "a sample that was written before the kill is lost"
        kept = now
    process = start(path, config)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert len(set(killed_in)) >= 4, f"kills fell in too few stages: {killed_in}"
    for name in ("pareto.csv", "evaluated.csv", "references.csv"):
        found = (path / "search" / name).read_bytes()
        assert found == (reference / "search" / name).read_bytes(), name


def test_a_run_killed_ten_times_ends_with_the_same_front(smoke_run, tmp_path):
    check_killed_run(tmp_path / "run", "smoke", SMOKE_MOMENTS, smoke_run[0], seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_digits_killed_ten_times_ends_with_the_same_front(tmp_path):
    process = start(tmp_path / "whole", "digits")
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    check_killed_run(tmp_path / "run", "digits", DIGITS_MOMENTS, tmp_path / "whole", seed=1)

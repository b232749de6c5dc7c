"""Times layers in ONNX Runtime, here or on the device that this file is copied to.

It needs onnxruntime and numpy alone. In a folder with prepared models and their ``plan.csv``

    python measure.py --device NAME

writes ``measured.csv``: every row of the plan with what it took there. Started again, it goes on
where it stopped. Each model holds layers side by side; what counts is the kernels' own time in the
runtime's profile.
"""

import argparse
import csv
import io
import json
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "BLOCK_PROBES",
    "hardware",
    "kernel_times",
    "main",
    "measured_rows",
    "probed_block",
    "row_times",
]

FIGURES = ("latency_ms", "p10_ms", "p90_ms", "count")
"""What is measured of a row, in the order of a summary."""

BLOCK_PROBES = (1, 2, 4, 8, 16, 32, 64)
"""Input channels of the convolutions in the model that finds the runtime's block size."""

_WARM_UP, _RUNS = 5, 20  # a round
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 9
_QUIET = 1.2  # a round is left out if its mean exceeds that of the fastest by more
_SMALL_ERROR = 0.03  # of the mean over rounds, relative; a layer is known then
_SMALLEST_MS = 1e-5  # the profile counts whole microseconds, so the fastest kernels may read 0
_MODELS_IN_TURN = 8
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
          "asimd", "asimddp", "i8mm", "sve")  # fmt: skip

Summary = tuple[float, float, float, int]
Event = Mapping[str, Any]


def profile(model: bytes) -> list[Event]:
    """Returns the runtime's profile of one round of runs: one thread, random inputs."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # faults are raised anyway
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feeds = {each.name: _values(each.type, each.shape) for each in session.get_inputs()}
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = (each for each in events if each.get("cat") == "Node")
    return [each for each in nodes if str(each.get("name", "")).endswith("_kernel_time")]


def _values(kind: str, shape: Sequence[int]) -> Any:
    rng = np.random.default_rng(0)
    if kind == "tensor(float)":
        return rng.random(shape, dtype=np.float32)
    return rng.integers(0, 256, shape).astype(np.uint8)


def kernel_times(model: bytes) -> dict[str, Any]:
    """Returns for each node of a model the times of one round of runs in ms, in order."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in profile(model):
        times[str(event["name"])].append(float(event["dur"]) / 1000.0)
    return {name: np.array(each[-_RUNS:]) for name, each in times.items()}


def row_times(times: Mapping[str, Any], row: int) -> Any:
    """Returns the times in ms of one layer of a model, or None if it left no kernel.

    A layer's nodes are named ``layerROW_...``.
    """
    found = [each for name, each in times.items() if name.startswith(f"layer{row}_")]
    return np.sum(found, axis=0) if found else None


def probed_block(model: bytes) -> int:
    """Returns the channels that stand together in the runtime's fp32 kernels; 0 if none do.

    Args:
        model: Convolutions of :data:`BLOCK_PROBES` channels, side by side: those of at least a
            block get their input reordered.
    """
    ops = [str(each.get("args", {}).get("op_name")) for each in profile(model)]
    reordered = ops.count("ReorderInput") // (_WARM_UP + _RUNS)
    return BLOCK_PROBES[-reordered] if reordered else 0


def measured_rows(
    names: Sequence[str],
    load: Callable[[str], bytes],
    rows: Mapping[str, int],
    times_of: Callable[[bytes], dict[str, Any]] | None = None,
) -> dict[tuple[str, int], Summary]:
    """Times models in turn, round after round, until every layer is known well.

    Args:
        names: The models.
        load: Returns one by name.
        rows: Layers of each.
        times_of: Runs a model for one round and returns the times of its nodes; None for ONNX
            Runtime.

    Returns:
        For (model, row) mean over the middle of the runs, 10 % and 90 % quantile in ms, and runs;
        rows that leave no kernel are left out.
    """
    rounds: dict[tuple[str, int], list[Any]] = defaultdict(list)
    waiting = list(names)
    while waiting:
        for name in list(waiting):
            times = (times_of or kernel_times)(load(name))
            found = {row: row_times(times, row) for row in range(rows[name])}
            for row, each in found.items():
                if each is not None:
                    rounds[name, row].append(each)
            if all(_is_known(rounds[name, row]) for row in found):
                waiting.remove(name)
    return {key: _summary(each) for key, each in rounds.items() if each}


def _is_known(rounds: Sequence[Any]) -> bool:
    """Whether more rounds of a layer would change little; one without a kernel is, too."""
    if not rounds or len(rounds) >= _MOST_ROUNDS:
        return True
    means = _means(_quiet(rounds))
    if len(means) < _FEWEST_ROUNDS:
        return False
    error = means.std() / np.sqrt(len(means)) / max(means.mean(), _SMALLEST_MS)
    return bool(error <= _SMALL_ERROR)


def _quiet(rounds: Sequence[Any]) -> list[Any]:
    """Returns the rounds that other work on the machine did not disturb."""
    means = _means(rounds)
    return [each for each, mean in zip(rounds, means, strict=True) if mean <= _QUIET * means.min()]


def _means(rounds: Sequence[Any]) -> Any:
    return np.array([_middle(each) for each in rounds])


def _middle(runs: Any) -> float:
    """Returns the mean without the ends; it resolves parts of the profile's tick, a median not."""
    cut = len(runs) // 5
    return max(float(np.sort(runs)[cut : len(runs) - cut].mean()), _SMALLEST_MS)


def _summary(rounds: Sequence[Any]) -> Summary:
    runs = np.concatenate(_quiet(rounds))
    low, high = np.maximum(np.quantile(runs, (0.1, 0.9)), _SMALLEST_MS)
    return _middle(runs), float(low), float(high), len(runs)


def hardware() -> dict[str, str]:
    """Returns what identifies the figures of this machine."""
    import onnxruntime

    return {
        "processor": _cpu("model name", "Hardware") or platform.processor() or "unknown",
        "cpu_flags": _cpu_flags(),
        "system": f"{platform.system()} {platform.machine()}",
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "threads": "1",
    }


def _cpu_flags() -> str:
    found = (_cpu("flags", "Features") or platform.processor() or "unknown").split()
    return " ".join(flag for flag in _FLAGS if flag in found) or "none of note"


def _cpu(*names: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = (
        info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    )
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the plan beside this file and returns the exit code."""
    parser = argparse.ArgumentParser(description="Times the layers of plan.csv on this machine.")
    parser.add_argument("--device", default=platform.node() or "device", help="name in the table")
    device = parser.parse_args(arguments).device
    folder = Path(__file__).resolve().parent
    for name in ("plan.csv", "probe.onnx"):
        if not (folder / name).exists():
            print(f"{folder / name} is missing: copy the whole folder", file=sys.stderr)
            return 2
    if find_spec("onnxruntime") is None:
        print("onnxruntime is not installed here: pip install onnxruntime", file=sys.stderr)
        return 2
    _measure_plan(folder, device)
    print(folder / "measured.csv")
    return 0


def _measure_plan(folder: Path, device: str) -> None:
    said, plan = _read(folder / "plan.csv")
    block = probed_block((folder / "probe.onnx").read_bytes())
    facts = {"device": device, **hardware(), "fp32_block": str(block)}
    out = folder / "measured.csv"
    known, done = _read(out) if out.exists() else ({}, [])
    if any(known.get(name) != value for name, value in facts.items()):
        done = []  # of another machine, runtime or name
    names = [row["file"] for row in plan]
    done = [row for row in done if row.get("file") in names]
    finished = {row["file"] for row in done}
    waiting = [name for name in dict.fromkeys(names) if name not in finished]
    for start in range(0, len(waiting), _MODELS_IN_TURN):
        chosen = waiting[start : start + _MODELS_IN_TURN]
        counts = {name: names.count(name) for name in chosen if _can_run(folder / name)}
        found = measured_rows(list(counts), lambda name: (folder / name).read_bytes(), counts)
        for row in plan:
            figures = found.get((row["file"], int(row["row"])))
            if figures is not None:
                done.append({**row, **dict(zip(FIGURES, map(str, figures), strict=True))})
        header = {**said, **facts, "date": time.strftime("%Y-%m-%d")}
        _write(out, header, done)
        known_now = min(start + _MODELS_IN_TURN, len(waiting))
        print(f"{known_now} of {len(waiting)} models", flush=True)


def _can_run(path: Path) -> bool:
    """Whether the runtime here has the kernels of a model; says so if it has not."""
    try:
        profile(path.read_bytes())
    except Exception as fault:  # noqa: BLE001 - the runtime has no common error class
        reason = str(fault).partition("\n")[0]
        print(f"{path.name} is left out: {reason}", file=sys.stderr)
        return False
    return True


def _read(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = dict(line[2:].partition(": ")[::2] for line in lines if line.startswith("# "))
    return header, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _write(path: Path, header: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO()
    for name, value in header.items():
        text.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    partial = path.with_suffix(".tmp")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())

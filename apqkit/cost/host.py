"""The look-up table of this machine: every distinct layer timed in ONNX Runtime, and cached.

Layers are put side by side into graphs of a few dozen and run with the runtime's own profiler, so
that each figure is the kernel's time inside an optimised graph: what an exported network spends.
"""

import hashlib
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apqkit.cost.keys import distinct_keys
from apqkit.cost.lut import (
    LookupTable,
    carrier_columns,
    check_same_hardware,
    missing_keys,
    named_key,
    read_lut,
    write_lut,
)
from apqkit.errors import CostError
from apqkit.run import processor_name
from apqkit.types import FloatArray, IntArray, LayerTable, Progress

__all__ = ["build_host_table", "cache_directory", "host_header", "time_layers"]

_LAYERS_A_GRAPH = 24
_SCHEMA = "2"  # raised when the same layer is timed in another form; older tables are left alone
_WARM_UP, _REPEATS = 10, 60
_SMALLEST_MS = 1e-5  # the profiler counts whole microseconds, so the fastest kernels may read 0


def cache_directory() -> Path:
    """Returns where tables of this machine are kept: ``APQKIT_CACHE``, or under ``~/.cache``."""
    configured = os.environ.get("APQKIT_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "apqkit"


def host_header(batch: int) -> dict[str, str]:
    """Returns what identifies this machine's figures; tables whose headers differ do not mix."""
    import onnxruntime

    return {
        "device": "host",
        "schema": _SCHEMA,
        "processor": processor_name(),
        "cpu_flags": _cpu_flags(),
        "system": f"{platform.system()} {platform.machine()}",
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "threads": "1",
        "batch": str(batch),
        "units": "ms",
        "date": time.strftime("%Y-%m-%d"),
    }


def build_host_table(table: LayerTable, *, batch: int, progress: Progress) -> LookupTable:
    """Returns a table with every distinct layer of some networks, timed on this machine.

    What an earlier call timed on the same hardware is read from the cache.

    Args:
        table: Networks whose layers are wanted.
        batch: Images a run.
        progress: Shows the layers that are timed.

    Raises:
        CostError: The cache is damaged or cannot be written, or no layer has a kernel here.
    """
    header = host_header(batch)
    identity = {name: value for name, value in header.items() if name != "date"}
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = cache_directory() / "lut" / f"host_{digest}.csv"
    known = _cached(path, header)
    columns, runs = carrier_columns(table)
    keys = distinct_keys(replace(table, active=table.active & runs), columns)
    wanted = missing_keys(known, keys)
    if len(wanted):
        _make_folder(path.parent)
        timed = _timed_table(wanted, header, batch, progress)
        known = timed if known is None else known.joined(timed)
        write_lut(path, known)
    if known is None:
        raise CostError("there is no layer to time")
    return known


def _make_folder(folder: Path) -> None:
    """Makes the cache's folder before the long work whose results go there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise CostError(
            f"{folder} cannot be made: {fault.strerror}; set APQKIT_CACHE to a folder for tables"
        ) from None


def _cached(path: Path, header: dict[str, str]) -> LookupTable | None:
    """Returns the cached table of this hardware, if there is one."""
    if not path.exists():
        return None
    try:
        known = read_lut(path)
        check_same_hardware(known.header, header)
    except CostError as fault:
        raise CostError(f"{fault}; delete {path} to time its layers again") from None
    return known


def time_layers(keys: IntArray, *, batch: int, repeats: int = _REPEATS) -> FloatArray:
    """(m, repeats) kernel times in ms of layers that run side by side in one graph.

    Args:
        keys: (m, c) columns of :data:`apqkit.cost.keys.KEY_COLUMNS`, formats by carrier.
        batch: Images a run.
        repeats: Runs that are counted, after a warm-up.
    """
    from apqkit.cost.bench_graph import bench_feeds, bench_graph

    model = bench_graph(keys, batch)
    events = _profiled(model.SerializeToString(), bench_feeds(model), repeats)
    times = np.zeros((len(keys), repeats))
    for row in range(len(keys)):
        durations = events.get(row)
        if durations is None:
            raise CostError(f"the runtime's profile shows no kernel for layer {_text(keys[row])}")
        times[row] = durations.reshape(-1, repeats).sum(axis=0)
    return times


def _timed_table(
    wanted: IntArray, header: dict[str, str], batch: int, progress: Progress
) -> LookupTable:
    parts = []
    with progress.task("cost, timing layers on this machine", len(wanted)) as advance:
        for start in range(0, len(wanted), _LAYERS_A_GRAPH):
            chosen = wanted[start : start + _LAYERS_A_GRAPH]
            parts.append(time_layers(chosen, batch=batch))
            advance(len(chosen))
    times = np.maximum(np.sort(np.concatenate(parts), axis=1), _SMALLEST_MS)
    middle = times[:, _REPEATS // 5 : _REPEATS - _REPEATS // 5]  # a mean resolves parts of a tick
    return LookupTable(
        header=header,
        keys=wanted,
        latency_ms=middle.mean(axis=1),
        p10_ms=times[:, _REPEATS // 10],
        p90_ms=times[:, _REPEATS - 1 - _REPEATS // 10],
        count=np.full(len(wanted), _REPEATS),
    )


def _profiled(
    model: bytes, feeds: dict[str, NDArray[np.generic]], repeats: int
) -> dict[int, FloatArray]:
    """Returns for each layer its kernels' times in ms, runs in order, one row a kernel."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(_WARM_UP + repeats):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _kernel_times(events, repeats)


def _kernel_times(events: Sequence[dict[str, object]], repeats: int) -> dict[int, FloatArray]:
    by_node: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            by_node[name].append(float(str(event["dur"])) / 1000.0)  # profiles count microseconds
    by_layer: dict[int, list[list[float]]] = defaultdict(list)
    for name, durations in by_node.items():
        if name.startswith("layer"):
            by_layer[int(name.split("_")[0].removeprefix("layer"))].append(durations[-repeats:])
    return {row: np.array(kernels) for row, kernels in by_layer.items()}


def _cpu_flags() -> str:
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or "unknown"
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            found = line.partition(":")[2].split()
            return " ".join(flag for flag in wanted if flag in found) or "none of note"
    return "unknown"


def _text(key: IntArray) -> str:
    return " ".join(map(str, named_key(key)))

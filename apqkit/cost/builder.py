"""Builds the look-up table of this machine, or prepares what another machine measures.

Rows are timed in ONNX Runtime, most uncertain first where time is short: those whose estimate
from the rows known so far is worst, weighted by how often networks need them. What was timed on
the same hardware before is read from a cache, to which every batch of rows is added at once.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apqkit.cost import measure
from apqkit.cost.interpolation import fit_interpolator
from apqkit.cost.kernels import ONNX_RUNTIME, OPENVINO
from apqkit.cost.keys import KEY_COLUMNS, TABLE_OPS, column, key_text, named_key
from apqkit.cost.lut import (
    LookupTable,
    check_same_hardware,
    make_table,
    missing_keys,
    read_lut,
    write_lut,
)
from apqkit.cost.lut_cost import BLOCK_HEADER, KIND_COLUMNS, RUNTIME_HEADER, wanted_keys
from apqkit.cost.openvino_runtime import openvino_hardware, openvino_node_times
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.run import write_atomically
from apqkit.types import FloatArray, IntArray, LayerTable, Progress

__all__ = ["MEASURED_FILE", "build_lut", "cache_directory", "host_header", "prepare_folder"]

MEASURED_FILE = "measured.csv"
"""What a device writes into a folder of :func:`prepare_folder`."""

_PLAN_FILE, _PROBE_FILE, _SCRIPT_FILE = "plan.csv", "probe.onnx", "measure.py"
_SCHEMA = "3"  # raised when the same row is timed in another form; older tables are left alone
_ROWS_A_MODEL, _MODELS_A_BATCH = 24, 4


@dataclass(frozen=True)
class _Job:
    """Rows to be timed, and on what.

    Attributes:
        header: Of the table.
        batch: Images a run.
        deadline: Seconds of :func:`time.monotonic` after which no batch begins.
    """

    header: dict[str, str]
    batch: int
    deadline: float


def cache_directory() -> Path:
    """Returns where tables of this machine are kept: ``APQKIT_CACHE``, or under ``~/.cache``."""
    configured = os.environ.get("APQKIT_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "apqkit"


def host_header(batch: int, runtime: str = ONNX_RUNTIME) -> dict[str, str]:
    """Returns what identifies this machine's figures; tables whose headers differ do not mix.

    Raises:
        CostError: The runtime is not installed.
    """
    from apqkit.cost.bench_graph import block_probe

    if runtime == OPENVINO:
        facts, block = openvino_hardware(), 0
    else:
        facts = measure.hardware()
        block = measure.probed_block(block_probe().SerializeToString())
    return {
        "device": "host",
        **_rules(batch, runtime),
        **facts,
        BLOCK_HEADER: str(block),
        "date": time.strftime("%Y-%m-%d"),
    }


def _rules(batch: int, runtime: str) -> dict[str, str]:
    """Returns the part of a header that does not depend on the device."""
    return {"schema": _SCHEMA, "units": "ms", "batch": str(batch), RUNTIME_HEADER: runtime}


def build_lut(
    networks: LayerTable,
    *,
    batch: int,
    progress: Progress,
    budget_s: float | None = None,
    runtime: str = ONNX_RUNTIME,
) -> LookupTable:
    """Returns a table with the layers and conversions of some networks, timed on this machine.

    Args:
        networks: Networks whose rows are wanted; the more often one occurs, the more it matters.
        batch: Images a run.
        progress: Shows the rows that are timed.
        budget_s: About how long it may take; None times every row. A second call goes on.
        runtime: ``onnxruntime`` or ``openvino``.

    Raises:
        CostError: The cache is damaged or cannot be written, or no layer has a kernel here.
    """
    header = host_header(batch, runtime)
    path = _cache_path(header)
    known = _cached(path, header)
    wanted = wanted_keys(networks, block=int(header[BLOCK_HEADER]), runtime=runtime)
    rows = missing_keys(known, wanted.keys)
    if len(rows):
        _make_folder(path.parent)
        uses = dict(zip(map(tuple, wanted.keys.tolist()), wanted.uses.tolist(), strict=True))
        deadline = np.inf if budget_s is None else time.monotonic() + budget_s
        job = _Job(header, batch, deadline)
        with progress.task("cost, timing layers on this machine", len(rows)) as advance:
            for timed in _timed(job, known, rows, uses):
                known = known.joined(timed)
                write_lut(path, known)
                advance(len(timed))
    return known


def _timed(
    job: _Job, known: LookupTable, rows: IntArray, uses: dict[tuple[int, ...], int]
) -> Iterator[LookupTable]:
    """Yields tables of a few dozen rows until all are timed or the time is out."""
    started, done = time.monotonic(), 0
    rows = _spread(rows)
    while len(rows) and (not done or time.monotonic() < job.deadline):
        pace = (time.monotonic() - started) / done if done else np.inf
        if pace * len(rows) > job.deadline - time.monotonic():
            # Not all can be timed, so look where it matters most.
            weights = np.array([uses[tuple(key)] for key in rows.tolist()], dtype=np.float64)
            rows = rows[np.argsort(-_expected_error(known, rows) * weights, kind="stable")]
        chosen, rows = np.split(rows, [_ROWS_A_MODEL * _MODELS_A_BATCH])
        timed = _time_rows(job, chosen)
        known = known.joined(timed)
        done += len(timed)
        yield timed


def _expected_error(known: LookupTable, rows: IntArray) -> FloatArray:
    """(m,) ms by which estimates of rows are expected to be wrong; infinite for new kinds."""
    expected = np.full(len(rows), np.inf)
    kinds, known_kinds = _kinds(rows), _kinds(known.keys)
    for kind in np.unique(kinds, axis=0):
        mine = (kinds == kind).all(axis=1)
        alike = (known_kinds == kind).all(axis=1)
        if alike.any():
            process = fit_interpolator(known.keys[alike], known.latency_ms[alike])
            estimate, error = process.predict(rows[mine])
            expected[mine] = estimate * error
    return expected


def _kinds(keys: IntArray) -> IntArray:
    return np.stack([column(keys, name) for name in KIND_COLUMNS], axis=1)


def _spread(rows: IntArray) -> IntArray:
    """Returns rows so that every part of them holds all common ops and sizes."""
    ordered = rows[np.lexsort(rows.T[::-1])]
    stride = max(round(len(rows) / _ROWS_A_MODEL), 1)
    return ordered[np.argsort(np.arange(len(rows)) % stride, kind="stable")]


def _time_rows(job: _Job, rows: IntArray) -> LookupTable:
    from apqkit.cost.bench_graph import bench_graph

    parts = _models(rows)
    models = {str(i): bench_graph(k, job.batch).SerializeToString() for i, k in enumerate(parts)}
    counts = {str(i): len(keys) for i, keys in enumerate(parts)}
    times_of = openvino_node_times if job.header[RUNTIME_HEADER] == OPENVINO else None
    found = measure.measured_rows(list(models), models.__getitem__, counts, times_of)
    figures, keys = [], []
    for index, part in enumerate(parts):
        for row, key in enumerate(part):
            if (str(index), row) not in found:
                raise CostError(f"the runtime's profile shows no kernel for layer {key_text(key)}")
            figures.append(found[str(index), row])
            keys.append(key)
    latency, p10, p90, count = (np.array(each) for each in zip(*figures, strict=True))
    return LookupTable(job.header, np.array(keys), latency, p10, p90, count)


def _models(rows: IntArray) -> list[IntArray]:
    return [rows[start : start + _ROWS_A_MODEL] for start in range(0, len(rows), _ROWS_A_MODEL)]


def prepare_folder(networks: LayerTable, folder: Path, *, batch: int) -> int:
    """Writes what another machine needs to measure the rows of some networks.

    The folder gets the ONNX models, ``plan.csv`` and ``measure.py``, which needs onnxruntime and
    numpy alone; run there it writes ``measured.csv``, which is a table. fp32 kernels that read
    blocks are planned for, since that machine's runtime may have them.

    Args:
        networks: Networks whose rows are wanted.
        folder: Where to; it must not exist, or be empty.
        batch: Images a run.

    Returns:
        The number of rows.

    Raises:
        CostError: The folder is not empty or cannot be written, or no layer has a kernel.
    """
    from apqkit.cost.bench_graph import bench_graph, block_probe

    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CostError(f"{folder} is not empty: prepare a new folder")
        block = int(host_header(batch)[BLOCK_HEADER])
        rows = wanted_keys(networks, block=block or _COMMON_BLOCK).keys
        lines = [f"# {name}: {value}" for name, value in _rules(batch, ONNX_RUNTIME).items()]
        lines.append(",".join(["file", "row", *KEY_COLUMNS]))
        for index, keys in enumerate(_planned_models(rows)):
            model = bench_graph(keys, batch).SerializeToString()
            # Named by content: what was measured under another plan is not taken for this one.
            name = f"layers{index:03}_{hashlib.sha256(model).hexdigest()[:8]}.onnx"
            (folder / name).write_bytes(model)
            named = (",".join(map(str, named_key(key))) for key in keys)
            lines += [f"{name},{row},{each}" for row, each in enumerate(named)]
        (folder / _PROBE_FILE).write_bytes(block_probe().SerializeToString())
        shutil.copyfile(str(measure.__file__), folder / _SCRIPT_FILE)
        write_atomically(folder / _PLAN_FILE, "\n".join([*lines, ""]))
    return len(rows)


_COMMON_BLOCK = 16  # planned for where the runtime here has no blocks


def _planned_models(rows: IntArray) -> list[IntArray]:
    """Returns the rows of each model; what not every runtime can load stands apart."""
    rows = rows[np.lexsort(rows.T[::-1])]
    layouts = [TABLE_OPS.index(each) for each in ("layout_in", "layout_out")]
    is_fp32 = column(rows, "activation_format") == format_code("fp32")
    apart = np.isin(column(rows, "op"), layouts) & is_fp32
    return [*_models(rows[~apart]), *_models(rows[apart])]


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise CostError(f"{folder} cannot be written: {fault.strerror}") from None


def _cache_path(header: dict[str, str]) -> Path:
    identity = {name: value for name, value in header.items() if name != "date"}
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return cache_directory() / "lut" / f"host_{digest}.csv"


def _make_folder(folder: Path) -> None:
    """Makes the cache's folder before the long work whose results go there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise CostError(
            f"{folder} cannot be made: {fault.strerror}; set APQKIT_CACHE to a folder for tables"
        ) from None


def _cached(path: Path, header: dict[str, str]) -> LookupTable:
    """Returns the cached table of this hardware, or one without rows."""
    if not path.exists():
        return make_table(header, [], [])
    try:
        known = read_lut(path)
        check_same_hardware(known.header, header)
    except CostError as fault:
        raise CostError(f"{fault}; delete {path} to time its layers again") from None
    return known

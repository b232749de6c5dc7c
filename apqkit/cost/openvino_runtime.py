"""OpenVINO as a second runtime to time layers and whole networks in; an optional dependency.

fp32 layers are computed in fp32: without being told, OpenVINO computes them in bf16 where the
processor can, and its int8 would be compared with the wrong thing.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apqkit.cost.measure import hardware
from apqkit.errors import CostError
from apqkit.types import FloatArray

__all__ = ["openvino_hardware", "openvino_node_times", "openvino_run_times"]

_WARM_UP, _RUNS = 5, 20
_MS = 1000.0
_SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}


def openvino_hardware() -> dict[str, str]:
    """Returns what identifies figures of this machine in OpenVINO."""
    version = _openvino().get_version().partition("-")[0]
    return {**hardware(), "runtime": f"openvino {version}", "precision": "f32"}


def openvino_node_times(model: bytes) -> dict[str, Any]:
    """Returns for each node that ran the times of a round of runs in ms, in order.

    Changes of layout at the ends of a graph, which OpenVINO counts as nodes, are left out.
    """
    compiled = _compiled(model, {**_SETTINGS, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    feeds = {each.any_name: _values(each) for each in compiled.inputs}
    times: dict[str, list[float]] = defaultdict(list)
    for run in range(_WARM_UP + _RUNS):
        request.infer(feeds)
        if run < _WARM_UP:
            continue
        for node in request.get_profiling_info():
            if "EXECUTED" in str(node.status) and node.node_type != "Reorder":
                times[node.node_name].append(node.real_time.total_seconds() * _MS)
    return {name: np.array(each) for name, each in times.items()}


def openvino_run_times(
    paths: Sequence[Path], image_shape: Sequence[int], *, batch: int, runs: int
) -> FloatArray:
    """(models, runs) ms of whole networks, one run of each in turn; one thread."""
    shape = [batch, *image_shape]
    requests = [_compiled(p.read_bytes(), _SETTINGS, shape).create_infer_request() for p in paths]
    feed = np.random.default_rng(0).random(shape, dtype=np.float32)
    seconds = np.zeros((len(paths), _WARM_UP + runs))
    for run in range(_WARM_UP + runs):
        for index, request in enumerate(requests):
            started = time.perf_counter()
            request.infer({0: feed})
            seconds[index, run] = time.perf_counter() - started
    return np.asarray(seconds[:, _WARM_UP:] * _MS)


def _compiled(model: bytes, settings: dict[str, Any], shape: Sequence[int] | None = None) -> Any:
    core = _openvino().Core()
    read = core.read_model(model)
    if shape is not None:
        read.reshape(list(shape))
    return core.compile_model(read, "CPU", settings)


def _values(port: Any) -> Any:
    rng = np.random.default_rng(0)
    shape = list(port.shape)
    if "f32" in str(port.element_type):
        return rng.random(shape, dtype=np.float32)
    return rng.integers(0, 256, shape).astype(np.uint8)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError:
        raise CostError(
            "OpenVINO is not installed: pip install -c constraints.txt 'apqkit[openvino]'"
        ) from None
    return openvino

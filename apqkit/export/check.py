"""Whether an exported model computes what was measured, and how fast it runs here."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from apqkit.data import ImageSet
from apqkit.errors import ExportError
from apqkit.export.onnx_model import INPUT_NAME
from apqkit.quant.layers import QuantConv, QuantLinear

__all__ = [
    "FLOAT8_NOTE",
    "Latency",
    "check_model",
    "onnx_logits",
    "output_step",
    "run_times",
    "time_models",
]

FLOAT8_NOTE = (
    "fp8 is emulated: load with graph optimisation at most basic and "
    "session.disable_quant_qdq = 1, since the extended optimisations of ONNX Runtime change the "
    "results; the time is not that of fp8 hardware"
)
"""What a user of a model with fp8 must know; it also stands in the file's metadata."""

_BATCH = 256
_WARM_UP = 10


@dataclass(frozen=True)
class Latency:
    """Measured time of one run of a model.

    Attributes:
        median_ms: Median.
        p10_ms: 10 % quantile.
        p90_ms: 90 % quantile.
        runs: Runs that were counted.
        note: What keeps the figure from being comparable, or "".
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    note: str = ""


def check_model(
    path: Path,
    model: nn.Module,
    images: ImageSet,
    *,
    reference: Path | None = None,
    batch: int = 1,
) -> dict[str, Any]:
    """Compares an ONNX file with the torch model it was made from, on real images, and times it.

    Args:
        path: The file.
        model: Frozen.
        images: What both are run on.
        reference: A file to be timed in turn with it, such as the same network in fp32.
        batch: Images a timed run.

    Returns:
        Largest difference and agreement of the classes, with the runtime's optimisation off (the
        same arithmetic) and on (fused integer kernels), accuracies, file size, opset, types,
        latency. Classes that differ are counted once more where the two best logits in torch lie
        further apart than :func:`output_step`, so that no tie explains it.

    Raises:
        ExportError: The runtime cannot load or run the file.
    """
    expected = _torch_logits(model, images)
    labels = images.labels
    proto = _read(path)
    report: dict[str, Any] = {
        "images": len(images),
        "torch_accuracy": float((expected.argmax(axis=1) == labels).mean()),
        "file_kib": round(path.stat().st_size / 1024, 2),
        "opset": proto.opset_import[0].version,
        "constant_types": _constant_types(proto),
        "note": FLOAT8_NOTE if _has_float8(path) else "",
    }
    if expected.ndim != 2 or expected.shape[1] < 2:
        raise ExportError(
            f"check_model takes models that write (images, classes), got shape {expected.shape}"
        )
    best = np.sort(expected, axis=1)[:, -2:]
    beyond = best[:, 1] - best[:, 0] > output_step(model)
    for mode, optimised in (("unoptimised", False), ("optimised", True)):
        logits = onnx_logits(path, images, optimised=optimised)
        agree = logits.argmax(axis=1) == expected.argmax(axis=1)
        report[mode] = {
            "accuracy": float((logits.argmax(axis=1) == labels).mean()),
            "largest_difference": float(np.abs(logits - expected).max()),
            "images_with_other_class": int((~agree).sum()),
            "beyond_one_step": int((~agree & beyond).sum()),
        }
    timed = [path] if reference is None else [path, reference]
    latencies = time_models(timed, images.images(slice(0, 1)).shape[1:], batch=batch)
    for name, each in zip(("latency", "reference_latency"), latencies, strict=False):
        report[name] = {**asdict(each), "batch": batch}
    return report


def output_step(model: nn.Module) -> float:
    """Returns how far one logit moves if one input of the last layer moves by one level.

    It is the step of the last quantized layer's input times its largest weight; 0 where that
    input has no levels of one step.
    """
    layers = [each for each in model.modules() if isinstance(each, QuantConv | QuantLinear)]
    if not layers or not layers[-1].quantizer().is_static_integer:
        return 0.0
    step = float(layers[-1].quantizer().scale * layers[-1].frozen_weight.abs().max())
    return step if math.isfinite(step) else 0.0


def onnx_logits(path: Path, images: ImageSet, *, optimised: bool) -> NDArray[np.float32]:
    """(n, classes) logits of an ONNX file in ONNX Runtime.

    Raises:
        ExportError: The runtime cannot load or run the file.
    """
    session = _session(path, optimised=optimised)
    parts = []
    for start in range(0, len(images), _BATCH):
        batch = images.images(slice(start, start + _BATCH)).contiguous().numpy()
        with _faults_named(f"ONNX Runtime cannot run {path}"):
            parts.append(session.run(None, {INPUT_NAME: np.ascontiguousarray(batch)})[0])
    return np.concatenate(parts)


def time_models(
    paths: Sequence[Path], image_shape: Sequence[int], *, batch: int, runs: int = 60
) -> list[Latency]:
    """Times models as :func:`run_times` does and sums up each.

    Args:
        paths: ONNX files.
        image_shape: (channels, height, width).
        batch: Images a run.
        runs: Counted runs of each.

    Raises:
        ExportError: The runtime cannot load a file.
    """
    counted = run_times(paths, image_shape, batch=batch, runs=runs)
    return [
        Latency(
            median_ms=float(np.median(row)),
            p10_ms=float(np.quantile(row, 0.1)),
            p90_ms=float(np.quantile(row, 0.9)),
            runs=runs,
            note=_timing_note(path),
        )
        for row, path in zip(counted, paths, strict=True)
    ]


def run_times(
    paths: Sequence[Path], image_shape: Sequence[int], *, batch: int, runs: int
) -> NDArray[np.float64]:
    """(models, runs) ms in ONNX Runtime: one thread, after a warm-up, one run of each in turn.

    Raises:
        ExportError: The runtime cannot load a file.
    """
    sessions = [_session(path, optimised=True) for path in paths]
    feed = np.random.default_rng(0).random((batch, *image_shape), dtype=np.float32)
    seconds = np.zeros((len(paths), _WARM_UP + runs))
    for run in range(_WARM_UP + runs):
        for index, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(None, {INPUT_NAME: feed})
            seconds[index, run] = time.perf_counter() - started
    return np.asarray(seconds[:, _WARM_UP:] * 1000.0)


def _session(path: Path, *, optimised: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif _has_float8(path):
        # ONNX Runtime 1.31 has no fused fp8 kernels: its extended optimisations fail to load such
        # graphs or, worse, change what they compute. Basic ones without QDQ rewriting are exact.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    with _faults_named(f"ONNX Runtime cannot load {path}"):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _read(path: Path) -> onnx.ModelProto:
    with _faults_named(f"{path} cannot be read as an ONNX model"):
        return onnx.load(path)


@contextmanager
def _faults_named(text: str) -> Iterator[None]:
    try:
        yield
    except Exception as fault:  # noqa: BLE001 - neither library has a common error class
        reason = " ".join(str(fault).split())
        raise ExportError(f"{text}: {reason}") from None


def _torch_logits(model: nn.Module, images: ImageSet) -> NDArray[np.float32]:
    model.eval()
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        parts = [
            model(images.images(slice(start, start + _BATCH)).to(device)).cpu().numpy()
            for start in range(0, len(images), _BATCH)
        ]
    return np.concatenate(parts)


def _constant_types(proto: onnx.ModelProto) -> Mapping[str, int]:
    names = (onnx.TensorProto.DataType.Name(each.data_type) for each in proto.graph.initializer)
    return dict(sorted(Counter(names).items()))


def _has_float8(path: Path) -> bool:
    return any("FLOAT8" in name for name in _constant_types(_read(path)))


def _timing_note(path: Path) -> str:
    """Says why a time is not that of hardware made for the formats; "" where it may be."""
    if _has_float8(path):
        return "fp8 emulated"
    rounded = any(node.op_type == "Round" for node in _read(path).graph.node)
    return "activations rounded by ordinary nodes" if rounded else ""

"""Predictors on disk without pickles: parameters, training rows and a few predictions.

Loading fits again and compares. What was saved under other library versions may differ; then the
error names both.
"""

import hashlib
import io
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator

from predictors.table import PREDICTORS
from predictors.transfer import ColumnReader, FewRowsPredictor, TransferPredictor
from predictors.validation import group_labels

__all__ = ["load_predictor", "save_predictor"]

_HEADER = "predictor.json"
_ROWS = "rows.npz"
_BASE = "base"
_TRANSFER = "transfer"
_PARTS: dict[str, type] = {"few_rows": FewRowsPredictor, "column": ColumnReader}
_CHECKED_ROWS = 16
_TOLERANCE = 1e-6
_CURE = "fit and save it again"


def save_predictor(
    folder: Path,
    predictor: Any,
    X: NDArray[np.float64],
    y: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    base_rows: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]] | None = None,
) -> None:
    """Writes a fitted predictor into a folder of its own.

    Args:
        folder: Made if missing.
        predictor: Of :data:`predictors.PREDICTORS`, or a :class:`TransferPredictor`.
        X: (n, d) the rows it was fitted on.
        y: (n,) their targets.
        groups: (n,) their groups.
        base_rows: X, y and groups that the base of a transfer was fitted on; a
            :class:`ColumnReader` needs none.

    Raises:
        ValueError: The predictor's class is not in the table, or a base comes without its rows.
    """
    base = _base_of(predictor)
    described = _described(predictor)
    if base is not None and not isinstance(base, ColumnReader):
        if base_rows is None:
            raise ValueError("a transfer predictor with a base needs base_rows to be saved")
        save_predictor(folder / _BASE, base, *base_rows)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"X": X, "y": y, "groups": group_labels(len(y), groups)}
    np.savez_compressed(buffer, **arrays, **_rows_of_base(predictor))
    (folder / _ROWS).write_bytes(buffer.getvalue())
    header = {
        **described,
        "versions": _versions(),
        "rows_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "check": [float(each) for each in predictor.predict(X[:_CHECKED_ROWS])],
    }
    text = json.dumps(header, indent=2, default=_plain) + "\n"
    (folder / _HEADER).write_text(text, encoding="utf-8")


def load_predictor(folder: Path) -> Any:
    """Reads what :func:`save_predictor` wrote, fits again and compares.

    Raises:
        ValueError: A file is missing or damaged, or the predictions differ; the text names both
            sets of library versions.
    """
    header, rows = _read(folder)
    base = load_predictor(folder / _BASE) if header.get("has_base") else None
    try:
        predictor = _made(header, base, rows)
        predictor.fit(rows["X"], rows["y"], groups=rows["groups"])
        expected = np.array(header["check"], dtype=np.float64)
        found = predictor.predict(rows["X"][:_CHECKED_ROWS])
    except Exception as fault:  # noqa: BLE001 - what an edited header breaks is not ours to know
        raise _damaged(folder / _HEADER, fault) from None
    close = found.shape == expected.shape and np.allclose(
        found, expected, rtol=_TOLERANCE, atol=_TOLERANCE
    )
    if not close:
        raise ValueError(
            f"{folder} predicts differently when fitted again: saved under "
            f"{header.get('versions')}, now {_versions()}; {_CURE}"
        )
    return predictor


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Returns the header and the rows that belong to it."""
    try:
        header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        expected = header["rows_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise _damaged(folder / _HEADER, fault) from None
    try:
        content = (folder / _ROWS).read_bytes()
    except OSError as fault:
        raise _damaged(folder / _ROWS, fault) from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{folder / _ROWS} is not what {_HEADER} was saved with: {_CURE}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            names = ["X", "y", "groups", *({"base_X", "base_y"} & set(archive.files))]
            return header, {name: archive[name] for name in names}
    except Exception as fault:  # noqa: BLE001 - an archive can be wrong in many ways
        raise _damaged(folder / _ROWS, fault) from None


def _damaged(path: Path, fault: Exception) -> ValueError:
    reason = fault.strerror if isinstance(fault, OSError) else f"{type(fault).__name__}: {fault}"
    return ValueError(f"{path} is missing or damaged ({reason}): {_CURE}")


def _base_of(predictor: Any) -> Any:
    """Returns the base of a transfer as it was before freezing, or None."""
    base = predictor.base if isinstance(predictor, TransferPredictor) else None
    return base.estimator if isinstance(base, FrozenEstimator) else base


def _rows_of_base(predictor: Any) -> dict[str, Any]:
    """Returns the rows of a base that the transfer itself reads."""
    rows = predictor.base_rows if isinstance(predictor, TransferPredictor) else None
    return {} if rows is None else {"base_X": rows[0], "base_y": rows[1]}


def _described(predictor: Any) -> dict[str, Any]:
    """Returns name and parameters, without a base that has files of its own."""
    params = predictor.get_params(deep=False)
    if not isinstance(predictor, TransferPredictor):
        for name, kind in (PREDICTORS | _PARTS).items():
            if type(predictor) is kind:
                return {"name": name, "params": params}
        raise ValueError(f"{type(predictor).__name__} is not in PREDICTORS, so it cannot be saved")
    base, learner = _base_of(predictor), params.pop("learner")
    del params["base"], params["base_rows"]
    params["learner"] = None if learner is None else _described(learner)
    if isinstance(base, ColumnReader):
        return {"name": _TRANSFER, "params": params, "reader": _described(base)}
    return {"name": _TRANSFER, "params": params, "has_base": base is not None}


def _made(described: dict[str, Any], base: Any, rows: dict[str, NDArray[Any]]) -> Any:
    """Returns the unfitted predictor that was described."""
    name = described["name"]
    params: dict[str, Any]
    params = {k: tuple(v) if isinstance(v, list) else v for k, v in described["params"].items()}
    if name == _TRANSFER:
        learner, reader = params.pop("learner"), described.get("reader")
        learner = None if learner is None else _made(learner, None, {})
        base = base if reader is None else _made(reader, None, {})
        base_rows = (rows["base_X"], rows["base_y"]) if "base_X" in rows else None
        return TransferPredictor(base, learner, base_rows=base_rows, **params)
    if name not in PREDICTORS | _PARTS:
        known = ", ".join([*PREDICTORS, _TRANSFER])
        raise ValueError(f"no predictor named {name!r}; there are: {known}")
    return (PREDICTORS | _PARTS)[name](**params)


def _plain(value: Any) -> Any:
    """Returns a NumPy scalar as JSON knows it."""
    return value.item()


def _versions() -> dict[str, str]:
    libraries = ("numpy", "scipy", "scikit-learn", "xgboost")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}

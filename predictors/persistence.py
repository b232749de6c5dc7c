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

from predictors.table import PREDICTORS
from predictors.transfer import TransferPredictor
from predictors.validation import group_labels

__all__ = ["load_predictor", "save_predictor"]

_HEADER = "predictor.json"
_ROWS = "rows.npz"
_BASE = "base"
_TRANSFER = "transfer"
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
        base_rows: X, y and groups that the base of a transfer was fitted on.

    Raises:
        ValueError: The predictor's class is not in the table, or a base comes without its rows.
    """
    base = predictor.base if isinstance(predictor, TransferPredictor) else None
    described = _described(predictor)
    if base is not None:
        if base_rows is None:
            raise ValueError("a transfer predictor with a base needs base_rows to be saved")
        save_predictor(folder / _BASE, base, *base_rows)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, X=X, y=y, groups=group_labels(len(y), groups))
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
        predictor = _made(header, base)
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
            return header, {name: archive[name] for name in ("X", "y", "groups")}
    except Exception as fault:  # noqa: BLE001 - an archive can be wrong in many ways
        raise _damaged(folder / _ROWS, fault) from None


def _damaged(path: Path, fault: Exception) -> ValueError:
    reason = fault.strerror if isinstance(fault, OSError) else f"{type(fault).__name__}: {fault}"
    return ValueError(f"{path} is missing or damaged ({reason}): {_CURE}")


def _described(predictor: Any) -> dict[str, Any]:
    """Returns name and parameters, without a base."""
    params = predictor.get_params(deep=False)
    if not isinstance(predictor, TransferPredictor):
        for name, kind in PREDICTORS.items():
            if type(predictor) is kind:
                return {"name": name, "params": params}
        raise ValueError(f"{type(predictor).__name__} is not in PREDICTORS, so it cannot be saved")
    base, residual = params.pop("base"), params.pop("residual")
    params["residual"] = None if residual is None else _described(residual)
    return {"name": _TRANSFER, "params": params, "has_base": base is not None}


def _made(described: dict[str, Any], base: Any) -> Any:
    """Returns the unfitted predictor that was described."""
    name = described["name"]
    params: dict[str, Any]
    params = {k: tuple(v) if isinstance(v, list) else v for k, v in described["params"].items()}
    if name == _TRANSFER:
        residual = params.pop("residual")
        residual = None if residual is None else _made(residual, None)
        return TransferPredictor(base, residual, **params)
    if name not in PREDICTORS:
        known = ", ".join([*PREDICTORS, _TRANSFER])
        raise ValueError(f"no predictor named {name!r}; there are: {known}")
    return PREDICTORS[name](**params)


def _plain(value: Any) -> Any:
    """Returns a NumPy scalar as JSON knows it."""
    return value.item()


def _versions() -> dict[str, str]:
    libraries = ("numpy", "scipy", "scikit-learn", "xgboost")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}

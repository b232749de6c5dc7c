"""Predictors on disk without pickles: parameters, training rows and a few predictions.

Loading fits again and compares. What was saved under other library versions may differ; then the
error names both.
"""

import json
import platform
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray

from predictors.table import PREDICTORS
from predictors.transfer import TransferPredictor

__all__ = ["load_predictor", "save_predictor"]

_HEADER = "predictor.json"
_ROWS = "rows.npz"
_BASE = "base"
_CHECKED_ROWS = 16
_TOLERANCE = 1e-6


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
    folder.mkdir(parents=True, exist_ok=True)
    params = predictor.get_params(deep=False)
    if isinstance(predictor, TransferPredictor):
        name = "transfer"
        base, residual = params.pop("base"), params.pop("residual")
        params["residual"] = None if residual is None else _name_of(residual)
        if base is not None:
            if base_rows is None:
                raise ValueError("a transfer predictor with a base needs base_rows to be saved")
            save_predictor(folder / _BASE, base, *base_rows)
    else:
        name = _name_of(predictor)
    header = {
        "name": name,
        "params": params,
        "versions": _versions(),
        "has_base": (folder / _BASE).exists(),
        "check": [float(each) for each in predictor.predict(X[:_CHECKED_ROWS])],
    }
    (folder / _HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    labels = np.arange(len(y)) if groups is None else groups
    with (folder / _ROWS).open("wb") as file:
        np.savez_compressed(file, X=X, y=y, groups=labels)


def load_predictor(folder: Path) -> Any:
    """Reads what :func:`save_predictor` wrote, fits again and compares.

    Raises:
        ValueError: A file is missing or damaged, or the predictions differ; the text names both
            sets of library versions.
    """
    header, rows = _read(folder)
    params = header["params"]
    if header["name"] == "transfer":
        base = load_predictor(folder / _BASE) if header["has_base"] else None
        residual = params.pop("residual")
        residual = None if residual is None else PREDICTORS[residual]()
        predictor: Any = TransferPredictor(base, residual, **params)
    elif header["name"] in PREDICTORS:
        params = {k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}
        predictor = PREDICTORS[header["name"]](**params)
    else:
        raise ValueError(f"{folder} holds a predictor of unknown name {header['name']!r}")
    predictor.fit(rows["X"], rows["y"], groups=rows["groups"])
    found = predictor.predict(rows["X"][:_CHECKED_ROWS])
    if not np.allclose(found, header["check"], rtol=0.0, atol=_TOLERANCE):
        raise ValueError(
            f"{folder} predicts differently when fitted again: saved under {header['versions']}, "
            f"now {_versions()}"
        )
    return predictor


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        with np.load(folder / _ROWS, allow_pickle=False) as archive:
            rows = {name: archive[name] for name in ("X", "y", "groups")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as fault:
        raise ValueError(f"{folder} holds no predictor: {fault}") from None
    return header, rows


def _name_of(predictor: Any) -> str:
    for name, kind in PREDICTORS.items():
        if type(predictor) is kind:
            return name
    raise ValueError(f"{type(predictor).__name__} is not in PREDICTORS, so it cannot be saved")


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }

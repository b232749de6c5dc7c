"""Tables of bit settings whose accuracy was measured, with statistics of the network's layers.

A table is a folder of three files: ``settings.csv``, one row a setting; ``statistics.npz``, what
formulas read about the layers; ``recipe.json``, names, how the table was made, and the digests of
the other two.  Letters: n settings, L layers, F formats.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.zerocost.arrays import BoolArray, FloatArray, IntArray, fixed
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.layer_inputs import STATISTICS, LayerInputs

__all__ = ["SettingTable", "read_setting_table", "write_setting_table"]

_RECIPE, _SETTINGS, _STATISTICS = "recipe.json", "settings.csv", "statistics.npz"
_SCHEMA = "setting table 1"
_COLUMNS = ["setting", "accuracy", "split"]
_SPLITS = ("train", "held-out")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SETTING = re.compile("f[0-9a-z]+")
_CURE = "make the table anew"


@dataclass(frozen=True, eq=False)
class SettingTable:
    """Measured settings of one network: which format each layer has, and what accuracy it gave.

    Attributes:
        name: Of the network and the data, for reports.
        inputs: What formulas read about the layers; names of layers and formats.
        settings: (n, L) index into ``inputs.formats`` of each layer.
        accuracy: (n,) fractions, 0..1.
        held_out: (n,) which settings evolution must not see.
        recipe: How the table was made, as JSON: seeds, data, versions.

    Raises:
        ProxyError: Shapes that do not fit, values out of range, more than 36 formats.
    """

    name: str
    inputs: LayerInputs
    settings: IntArray
    accuracy: FloatArray
    held_out: BoolArray
    recipe: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Copies, freezes and checks."""
        settings = np.array(self.settings)
        _check_settings(settings, len(self.inputs.layers), len(self.inputs.formats))
        settings = settings.astype(np.int64)
        settings.setflags(write=False)
        held_out = np.array(self.held_out)
        held_out.setflags(write=False)
        accuracy = fixed(np.asarray(self.accuracy, dtype=np.float64))
        _check_rows(accuracy, held_out, len(settings))
        for name, value in (
            ("settings", settings),
            ("accuracy", accuracy),
            ("held_out", held_out),
            ("recipe", dict(self.recipe)),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Returns the number of settings, n."""
        return len(self.settings)


def write_setting_table(folder: Path, table: SettingTable) -> None:
    """Writes a table; the recipe last, so that what was cut short is noticed.

    Args:
        folder: Made if missing; files of these names in it are replaced.
        table: To write. What is read back is equal to the bit.

    Raises:
        ProxyError: The recipe is no JSON.
    """
    settings, statistics = _settings_text(table).encode(), _statistics_bytes(table.inputs)
    header = {
        "schema": _SCHEMA,
        "name": table.name,
        "layers": list(table.inputs.layers),
        "formats": list(table.inputs.formats),
        "sha256": {_SETTINGS: _digest(settings), _STATISTICS: _digest(statistics)},
        "recipe": dict(table.recipe),
    }
    try:
        text = json.dumps(header, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as fault:
        raise ProxyError(f"the recipe of {table.name!r} must be JSON: {fault}") from None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SETTINGS).write_bytes(settings)
    (folder / _STATISTICS).write_bytes(statistics)
    (folder / _RECIPE).write_text(text, encoding="utf-8")


def read_setting_table(folder: Path) -> SettingTable:
    """Reads what :func:`write_setting_table` wrote.

    Raises:
        ProxyError: A file is missing, foreign, truncated or edited; the text names it and the
            cure.
    """
    header = _header(folder)
    settings_bytes = _content(folder / _SETTINGS, header)
    statistics_bytes = _content(folder / _STATISTICS, header)
    try:
        inputs = _inputs(statistics_bytes, header["layers"], header["formats"])
    except Exception as fault:  # noqa: BLE001 - an archive can be wrong in many ways
        raise _damaged(folder / _STATISTICS, fault) from None
    try:
        settings, accuracy, held_out = _rows(settings_bytes.decode("utf-8"))
        return SettingTable(header["name"], inputs, settings, accuracy, held_out, header["recipe"])
    except (ValueError, KeyError, IndexError, csv.Error) as fault:
        raise _damaged(folder / _SETTINGS, fault) from None


def _settings_text(table: SettingTable) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row, accuracy, held_out in zip(
        table.settings.tolist(), table.accuracy.tolist(), table.held_out.tolist(), strict=True
    ):
        setting = "".join(_DIGITS[each] for each in row)
        writer.writerow([f"f{setting}", repr(accuracy), _SPLITS[held_out]])
    return buffer.getvalue()


def _rows(text: str) -> tuple[IntArray, FloatArray, BoolArray]:
    header, *rows = csv.reader(io.StringIO(text))
    if header != _COLUMNS:
        raise ValueError(f"columns must be {', '.join(_COLUMNS)}, got {', '.join(header)}")
    for row in rows:
        if len(row) != len(_COLUMNS) or not _SETTING.fullmatch(row[0]) or row[2] not in _SPLITS:
            raise ValueError(f"no setting: {','.join(row)[:80]}")
    settings = [[_DIGITS.index(each) for each in setting[1:]] for setting, _, _ in rows]
    held_out = [split == "held-out" for _, _, split in rows]
    accuracy = fixed(float(each) for _, each, _ in rows)
    return np.array(settings, dtype=np.int64), accuracy, np.array(held_out, dtype=np.bool_)


def _statistics_bytes(inputs: LayerInputs) -> bytes:
    """Returns an archive: of each kind all layers in a row, and how long each of them is."""
    arrays: dict[str, NDArray[Any]] = {
        "bits": inputs.bits,
        "parameters": inputs.parameters,
        "errors": inputs.errors,
    }
    for kind, layers in inputs.statistics.items():
        arrays[kind] = np.concatenate(layers)
        arrays[f"{kind}_lengths"] = np.array([len(each) for each in layers])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _inputs(content: bytes, layers: list[str], formats: list[str]) -> LayerInputs:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        statistics = {
            kind: tuple(np.split(archive[kind], np.cumsum(archive[f"{kind}_lengths"])[:-1]))
            for kind in STATISTICS
            if kind in archive
        }
        return LayerInputs(
            tuple(layers),
            tuple(formats),
            archive["bits"],
            archive["parameters"],
            archive["errors"],
            statistics,
        )


def _header(folder: Path) -> dict[str, Any]:
    path = folder / _RECIPE
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise _damaged(path, fault) from None
    kinds = {"name": str, "layers": list, "formats": list, "sha256": dict, "recipe": dict}
    if not isinstance(header, dict) or header.get("schema") != _SCHEMA:
        raise ProxyError(f"{path} is no recipe of a setting table ({_SCHEMA!r}): {_CURE}")
    for key, kind in kinds.items():
        if not isinstance(header.get(key), kind):
            raise ProxyError(f"{path} lacks {key!r}: {_CURE}")
    return header


def _content(path: Path, header: Mapping[str, Any]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise _damaged(path, fault) from None
    if _digest(content) != header["sha256"].get(path.name):
        raise ProxyError(f"{path} is not what {_RECIPE} was written with: {_CURE}")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _damaged(path: Path, fault: Exception) -> ProxyError:
    reason = fault.strerror if isinstance(fault, OSError) else f"{type(fault).__name__}: {fault}"
    return ProxyError(f"{path} is missing or damaged ({reason}): {_CURE}")


def _check_settings(settings: NDArray[Any], layers: int, formats: int) -> None:
    if formats > len(_DIGITS):
        raise ProxyError(f"formats must be at most {len(_DIGITS)}, got {formats}")
    if settings.ndim != 2 or settings.shape[1] != layers or not len(settings):
        raise ProxyError(f"settings must have shape (settings, {layers}), got {settings.shape}")
    if not np.issubdtype(settings.dtype, np.integer):
        raise ProxyError(f"settings must hold integers, got {settings.dtype}")
    if settings.min() < 0 or settings.max() >= formats:
        row, layer = np.argwhere((settings < 0) | (settings >= formats))[0]
        raise ProxyError(
            f"settings[{row}, {layer}] must be in 0..{formats - 1}, got {settings[row, layer]}"
        )


def _check_rows(accuracy: FloatArray, held_out: NDArray[Any], n: int) -> None:
    if accuracy.shape != (n,):
        raise ProxyError(f"accuracy must have shape ({n},), got {accuracy.shape}")
    if not ((accuracy >= 0.0) & (accuracy <= 1.0)).all():
        wrong = accuracy[~((accuracy >= 0.0) & (accuracy <= 1.0))][0]
        raise ProxyError(f"accuracy must be in 0..1, got {wrong}")
    if held_out.shape != (n,) or held_out.dtype != np.bool_:
        raise ProxyError(
            f"held_out must be bool of shape ({n},), got {held_out.dtype} of shape "
            f"{held_out.shape}"
        )

"""Look-up tables of measured layers and conversions: one schema, one file format.

A file is CSV under a header of ``# name: value`` lines. Nodes and edges (see
:data:`apqkit.cost.keys.CONVERSIONS`) are rows of the same columns.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apqkit.cost.keys import KEY_COLUMNS, coded, key_text, named_key
from apqkit.errors import CostError
from apqkit.run import write_atomically
from apqkit.types import FloatArray, IntArray

__all__ = [
    "LookupTable",
    "check_same_hardware",
    "make_table",
    "missing_keys",
    "read_lut",
    "write_lut",
]

_MS_COLUMNS = ("latency_ms", "p10_ms", "p90_ms")
_COUNT, _ENERGY = "count", "energy_mj"
_FIGURES = (*_MS_COLUMNS, _COUNT)
_HEADER_MARK = "# "
_LARGEST = 2.0**31  # of any figure in a file
_UNKNOWN = -2  # below every code
_DIFFERS = ("date", "source")  # what may differ between tables of one hardware


@dataclass(frozen=True)
class LookupTable:
    """Measured layers and conversions.

    Attributes:
        header: Device, runtime, version, threads, batch, CPU flags, units, date, licence, source.
        keys: (m, c) columns of :data:`apqkit.cost.keys.KEY_COLUMNS`.
        latency_ms: (m,) mean or median of the repeats.
        p10_ms: (m,) 10 % quantile.
        p90_ms: (m,) 90 % quantile.
        count: (m,) repeats.
        energy_mj: (m,) energy, NaN where it is not known.
    """

    header: Mapping[str, str]
    keys: IntArray
    latency_ms: FloatArray
    p10_ms: FloatArray
    p90_ms: FloatArray
    count: IntArray
    energy_mj: FloatArray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        """Fills in energies where none is known."""
        if not len(self.energy_mj):
            object.__setattr__(self, "energy_mj", np.full(len(self.keys), np.nan))

    def __len__(self) -> int:
        """Returns the number of rows, m."""
        return len(self.keys)

    @property
    def spread_ms(self) -> FloatArray:
        """(m,) standard deviation of a run, from the quantiles of a normal distribution."""
        return np.asarray((self.p90_ms - self.p10_ms) / _DECILES_IN_SD)

    def to_csv(self) -> str:
        """Returns the table as a file holds it; energies that are not known are left out."""
        buffer = io.StringIO()
        for name, value in self.header.items():
            buffer.write(f"{_HEADER_MARK}{name}: {value}\n")
        with_energy = bool(np.isfinite(self.energy_mj).any())
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*KEY_COLUMNS, *_FIGURES, *([_ENERGY] if with_energy else [])])
        columns = [self.latency_ms, self.p10_ms, self.p90_ms]
        for row, key in enumerate(self.keys):
            figures = [f"{column[row]:.12g}" for column in columns]
            energy = [_energy_text(self.energy_mj[row])] if with_energy else []
            writer.writerow([*named_key(key), *figures, int(self.count[row]), *energy])
        return buffer.getvalue()

    def joined(self, other: "LookupTable") -> "LookupTable":
        """Returns this table with the rows of another of the same device.

        Raises:
            CostError: The headers differ in anything but the date and the source.
        """
        check_same_hardware(self.header, other.header)
        joined = {
            each.name: np.concatenate([getattr(self, each.name), getattr(other, each.name)])
            for each in fields(self)
            if each.name != "header"
        }
        return LookupTable(other.header, **joined)

    def take(self, rows: IntArray) -> "LookupTable":
        """Returns the table of the rows chosen by index or mask."""
        chosen = {
            each.name: getattr(self, each.name)[rows]
            for each in fields(self)
            if each.name != "header"
        }
        return LookupTable(self.header, **chosen)


_DECILES_IN_SD = 2.5631031310892007  # between the 10 % and the 90 % quantile


def _energy_text(energy_mj: float) -> str:
    return f"{energy_mj:.12g}" if np.isfinite(energy_mj) else ""


def make_table(
    header: Mapping[str, str],
    keys: Sequence[IntArray],
    latency_ms: Sequence[float],
    *,
    sd_ms: Sequence[float] | None = None,
    count: Sequence[int] | None = None,
    energy_mj: Sequence[float] | None = None,
) -> LookupTable:
    """Returns a table of figures that others measured, such as one that is imported.

    Args:
        header: What identifies the device; ``units`` and ``batch`` at least.
        keys: m keys.
        latency_ms: m means.
        sd_ms: m standard deviations; None where they are not known: the quantiles are the mean.
        count: m repeats; None for 1.
        energy_mj: m energies, or None.
    """
    latency = np.asarray(latency_ms, dtype=np.float64)
    sd = np.zeros_like(latency) if sd_ms is None else np.asarray(sd_ms, dtype=np.float64)
    half = sd * (_DECILES_IN_SD / 2)
    return LookupTable(
        header=dict(header),
        keys=np.array(keys, dtype=np.int64).reshape(-1, len(KEY_COLUMNS)),
        latency_ms=latency,
        p10_ms=np.maximum(latency - half, np.minimum(latency, np.finfo(np.float64).tiny)),
        p90_ms=latency + half,
        count=np.ones(len(latency), np.int64) if count is None else np.asarray(count, np.int64),
        energy_mj=np.zeros(0) if energy_mj is None else np.asarray(energy_mj, np.float64),
    )


def check_same_hardware(first: Mapping[str, str], second: Mapping[str, str]) -> None:
    """Checks that two headers differ in the date and the source alone.

    Raises:
        CostError: They do not; it names the first difference.
    """
    for name in {**first, **second}:
        if name not in _DIFFERS and first.get(name) != second.get(name):
            raise CostError(
                f"tables of different hardware do not mix: {name} is {first.get(name)!r} and "
                f"{second.get(name)!r}"
            )


def read_lut(path: Path) -> LookupTable:
    """Reads what :meth:`LookupTable.to_csv` wrote.

    Raises:
        CostError: The file is missing, broken, in other units, or holds impossible figures.
    """
    header, frame = _read(path)
    missing = [name for name in (*KEY_COLUMNS, *_FIGURES) if name not in frame]
    if missing:
        raise CostError(f"{path} is no look-up table: it lacks the column {missing[0]!r}")
    if header.get("units") != "ms":
        raise CostError(f"{path} must be in units 'ms', got {header.get('units')!r}")
    if frame.empty:
        raise CostError(f"{path} holds no rows")
    figures = {name: _positive(frame[name], path) for name in _FIGURES}
    if _ENERGY in frame:
        known = (frame[_ENERGY].astype(str) != "").to_numpy()
        figures[_ENERGY] = np.full(len(frame), np.nan)
        figures[_ENERGY][known] = _positive(frame[_ENERGY][known], path)
    figures[_COUNT] = figures[_COUNT].astype(np.int64)
    return LookupTable(header=header, keys=_coded(frame, path), **figures)  # type: ignore[arg-type]


def _read(path: Path) -> tuple[dict[str, str], pd.DataFrame]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = "\n".join(each for each in lines if each[:1] != "#")
        frame = pd.read_csv(io.StringIO(rows), keep_default_na=False).reset_index(drop=True)
    except OSError as fault:
        raise CostError(f"{path} cannot be read: {fault.strerror}") from None
    except ValueError as fault:
        reason = " ".join(str(fault).split())
        raise CostError(f"{path} is no look-up table: {reason}") from None
    header = {}
    for line in lines:
        if line.startswith(_HEADER_MARK):
            name, _, value = line.removeprefix(_HEADER_MARK).partition(": ")
            header[name] = value
    return header, frame


def _positive(column: "pd.Series[Any]", path: Path) -> FloatArray:
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    wrong = column[~((values > 0) & (values <= _LARGEST))]
    if len(wrong):
        raise CostError(
            f"{path} holds a {column.name} that is no positive number: {wrong.iloc[0]!s} "
            f"in row {wrong.index[0] + 1}"
        )
    return values


def _coded(frame: pd.DataFrame, path: Path) -> IntArray:
    columns = [_coded_column(frame[name], name, path) for name in KEY_COLUMNS]
    keys = np.stack(columns, axis=1)
    _, first, times = np.unique(keys, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        raise CostError(f"{path} holds a layer twice: {key_text(keys[first[times > 1].min()])}")
    return keys


def _coded_column(values: "pd.Series[str]", name: str, path: Path) -> IntArray:
    """(m,) the integers that stand for a column; most values occur many times."""
    codes = {}
    for value in pd.unique(values):
        try:
            codes[value] = coded(name, str(value))
        except ValueError:
            codes[value] = _UNKNOWN
        least = -1 if name.endswith("_format") else 0
        if not least <= codes[value] <= _LARGEST:
            raise CostError(f"{path} holds an unknown value in column {name!r}: {value!s}")
    return values.map(codes).to_numpy(np.int64)


def write_lut(path: Path, table: LookupTable) -> None:
    """Writes a table in one atomic step."""
    write_atomically(path, table.to_csv())


def missing_keys(table: LookupTable | None, keys: IntArray) -> IntArray:
    """(k, c) those of some distinct keys (m, c) that a table lacks."""
    known = set() if table is None else set(map(tuple, table.keys.tolist()))
    rows = [key for key in keys.tolist() if tuple(key) not in known]
    return np.array(rows, dtype=np.int64).reshape(-1, len(KEY_COLUMNS))

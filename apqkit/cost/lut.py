"""A look-up table of measured layers: one schema, misses estimated and named, never a KeyError."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from apqkit.cost.keys import KEY_COLUMNS, LayerKeys, distinct_keys, key_columns
from apqkit.errors import CostError
from apqkit.formats import FORMATS, format_code
from apqkit.run import write_atomically
from apqkit.types import OPS, BoolArray, FloatArray, IntArray, LayerTable

__all__ = [
    "Coverage",
    "LookupTable",
    "LutCost",
    "carrier_columns",
    "check_same_hardware",
    "missing_keys",
    "named_key",
    "read_lut",
    "write_lut",
]

_MS_COLUMNS = ("latency_ms", "p10_ms", "p90_ms")
_HEADER_MARK = "# "
_NO_FORMAT = "none"
_LARGEST = 2.0**31  # of any figure in a file


@dataclass(frozen=True)
class LookupTable:
    """Measured layers.

    Attributes:
        header: Device, runtime, version, threads, batch, CPU flags, units, date.
        keys: (m, c) columns of :data:`apqkit.cost.keys.KEY_COLUMNS`.
        latency_ms: (m,) mean over the middle of the repeats.
        p10_ms: (m,) 10 % quantile.
        p90_ms: (m,) 90 % quantile.
        count: (m,) repeats.
    """

    header: Mapping[str, str]
    keys: IntArray
    latency_ms: FloatArray
    p10_ms: FloatArray
    p90_ms: FloatArray
    count: IntArray

    def to_csv(self) -> str:
        """Returns the table as CSV under a header of ``# name: value`` lines."""
        buffer = io.StringIO()
        for name, value in self.header.items():
            buffer.write(f"{_HEADER_MARK}{name}: {value}\n")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*KEY_COLUMNS, *_MS_COLUMNS, "count"])
        values = zip(self.keys, self.latency_ms, self.p10_ms, self.p90_ms, self.count, strict=True)
        for key, *figures, count in values:
            writer.writerow([*named_key(key), *(f"{each:.6g}" for each in figures), int(count)])
        return buffer.getvalue()

    def joined(self, other: "LookupTable") -> "LookupTable":
        """Returns this table with the rows of another of the same device.

        Raises:
            CostError: The headers differ in anything but the date.
        """
        check_same_hardware(self.header, other.header)
        joined = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("keys", *_MS_COLUMNS, "count")
        }
        return LookupTable(other.header, **joined)


def check_same_hardware(first: Mapping[str, str], second: Mapping[str, str]) -> None:
    """Checks that two headers differ in the date alone.

    Raises:
        CostError: They do not; it names the first difference.
    """
    for name in {**first, **second}:
        if name != "date" and first.get(name) != second.get(name):
            raise CostError(
                f"tables of different hardware do not mix: {name} is {first.get(name)!r} and "
                f"{second.get(name)!r}"
            )


def read_lut(path: Path) -> LookupTable:
    """Reads what :meth:`LookupTable.to_csv` wrote.

    Raises:
        CostError: The file is missing, broken, in other units, or holds impossible figures.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        frame = pd.read_csv(io.StringIO("\n".join(each for each in lines if each[:1] != "#")))
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
    missing = [name for name in (*KEY_COLUMNS, *_MS_COLUMNS, "count") if name not in frame]
    if missing:
        raise CostError(f"{path} is no look-up table: it lacks the column {missing[0]!r}")
    if header.get("units") != "ms":
        raise CostError(f"{path} must be in units 'ms', got {header.get('units')!r}")
    if frame.empty:
        raise CostError(f"{path} holds no rows")
    figures = {}
    for name in (*_MS_COLUMNS, "count"):
        figures[name] = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
        if not ((figures[name] > 0) & (figures[name] <= _LARGEST)).all():
            raise CostError(f"{path} holds a {name} that is no positive number")
    return LookupTable(
        header=header,
        keys=_coded(frame, path),
        **{name: figures[name] for name in _MS_COLUMNS},
        count=figures["count"].astype(np.int64),
    )


@dataclass
class Coverage:
    """What a table could not look up.

    Attributes:
        estimated: Layers that it lacked, by text, with the estimate in ms.
    """

    estimated: dict[str, float] = field(default_factory=dict)


class LutCost:
    """Latency as a sum of looked-up layers; satisfies :class:`apqkit.types.CostModel`.

    A layer that the table lacks is estimated from the nearest one of the same op and carrier,
    scaled by the arithmetic and the memory that it moves, and noted in ``coverage``.
    """

    metrics = ("latency_ms",)

    def __init__(self, table: LookupTable) -> None:
        self.table = table
        self.coverage = Coverage()
        prices = zip(table.keys.tolist(), table.latency_ms.tolist(), strict=True)
        self._known: dict[tuple[int, ...], float] = {tuple(key): price for key, price in prices}

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{"latency_ms": (n,)}``; NaN where a format has no kernel on the device."""
        return {"latency_ms": self.layer_latency_ms(table).sum(axis=1)}

    def layer_latency_ms(self, table: LayerTable) -> FloatArray:
        """(n, L) latency of each row; 0 where inactive, NaN without a kernel."""
        columns, runs = carrier_columns(table)
        found = distinct_keys(replace(table, active=table.active & runs), columns)
        prices = np.array([self._price(tuple(key)) for key in found.keys.tolist()])
        latency = np.where(runs, 0.0, np.nan)
        latency[found.active] = prices[found.index[found.active]]
        return latency

    def _price(self, key: tuple[int, ...]) -> float:
        if key not in self._known:
            self._known[key] = self._estimate(np.array(key))
            text = " ".join(map(str, named_key(np.array(key))))
            self.coverage.estimated[text] = self._known[key]
        return self._known[key]

    def _estimate(self, key: IntArray) -> float:
        keys = self.table.keys
        kind = [KEY_COLUMNS.index(name) for name in ("op", "weight_format", "activation_format")]
        alike = np.flatnonzero((keys[:, kind] == key[kind]).all(axis=1))
        if not len(alike):
            alike = np.flatnonzero(keys[:, kind[0]] == key[kind[0]])
        if not len(alike):
            raise CostError(
                f"the table of {self.table.header.get('device')} has no row of op "
                f"{OPS[key[kind[0]]]!r} to estimate from"
            )
        work, wanted = _work(keys[alike]), _work(key[None])
        nearest = int(np.abs(np.log(work) - np.log(wanted)).sum(axis=1).argmin())
        ratio = float(np.sqrt((wanted[0] / work[nearest]).prod()))
        return float(self.table.latency_ms[alike[nearest]]) * ratio


def carrier_columns(table: LayerTable) -> tuple[IntArray, BoolArray]:
    """Returns key columns with formats replaced by their carriers, and what has a kernel.

    A row runs in int8 if its input and its weights are integers of at most 8 bits, in fp32 if
    either is fp32. fp8 and fp4 have no CPU kernel.

    Returns:
        (n, L, c) columns and (n, L) True where the row can run.
    """
    columns = key_columns(table)
    weight, source = KEY_COLUMNS.index("weight_format"), KEY_COLUMNS.index("activation_format")
    is_int = np.array([*(f.family == "int" and f.bits <= 8 for f in FORMATS.values()), True])
    is_fp32 = np.array([*(f.is_fp32 for f in FORMATS.values()), True])  # -1: none, fits either
    has_kernel = is_int | is_fp32
    integer = is_int[table.weight_format] & is_int[table.activation_format]
    runs = has_kernel[table.weight_format] & has_kernel[table.activation_format]
    carrier = np.where(integer, format_code("int8"), format_code("fp32"))
    columns[..., source] = np.where(table.active, carrier, 0)
    columns[..., weight] = np.where(table.weight_format >= 0, carrier, -1)
    columns[..., KEY_COLUMNS.index("signed_input")] &= integer
    return columns, runs | ~table.active


def _work(keys: IntArray) -> FloatArray:
    """(m, 2) multiply-accumulates and elements moved, at least 1 each, of key rows."""
    column = {name: keys[:, i].astype(np.float64) for i, name in enumerate(KEY_COLUMNS)}
    pixels = column["in_height"] * column["in_width"]
    outputs = pixels / np.maximum(column["stride"], 1) ** 2
    taps = column["kernel"] ** 2 * column["in_channels"] / np.maximum(column["groups"], 1)
    moved = pixels * column["in_channels"] + outputs * column["out_channels"]
    work = np.stack([outputs * column["out_channels"] * taps, moved], axis=1)
    return np.asarray(np.maximum(work, 1.0))


def named_key(key: IntArray) -> list[str | int]:
    """Returns a key (c,) by value, as the CSV shows it."""
    names = list(FORMATS)
    named: list[str | int] = []
    for column, value in zip(KEY_COLUMNS, key.tolist(), strict=True):
        if column == "op":
            named.append(OPS[value])
        elif column.endswith("_format"):
            named.append(names[value] if value >= 0 else _NO_FORMAT)
        else:
            named.append(int(value))
    return named


def _coded(frame: pd.DataFrame, path: Path) -> IntArray:
    codes = {name: code for code, name in enumerate(FORMATS)} | {_NO_FORMAT: -1}
    columns = []
    for name in KEY_COLUMNS:
        values = frame[name]
        if name == "op":
            values = values.map({op: code for code, op in enumerate(OPS)})
        elif name.endswith("_format"):
            values = values.map(codes)
        else:
            values = pd.to_numeric(values, errors="coerce")
            values = values.where((values >= 0) & (values <= _LARGEST) & (values % 1 == 0))
        if values.isna().any():
            raise CostError(f"{path} holds an unknown value in column {name!r}")
        columns.append(values.to_numpy(np.int64))
    keys = np.stack(columns, axis=1)
    _, first, times = np.unique(keys, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        text = " ".join(map(str, named_key(keys[first[times > 1].min()])))
        raise CostError(f"{path} holds a layer twice: {text}")
    return keys


def write_lut(path: Path, table: LookupTable) -> None:
    """Writes a table in one atomic step."""
    write_atomically(path, table.to_csv())


def missing_keys(table: LookupTable | None, keys: LayerKeys) -> IntArray:
    """(m, c) the distinct keys that a table lacks."""
    known = set() if table is None else set(map(tuple, table.keys.tolist()))
    rows = [key for key in keys.keys.tolist() if tuple(key) not in known]
    return np.array(rows, dtype=np.int64).reshape(-1, len(KEY_COLUMNS))

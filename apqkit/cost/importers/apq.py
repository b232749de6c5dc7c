"""APQ's table of the BitFusion accelerator: latency and energy of quantized convolutions.

``lut/BitFusion_new.b1.dict`` of github.com/mit-han-lab/apq is JSON: ``"(channels in, channels
out, input side, kernel, stride, padding, groups)-WwAa": {"latency": ms, "energy": mJ}``, and
``head`` and ``tail``, what comes before and after the searchable convolutions of every network.
The same as CSV has columns, and ``head_tail.json`` beside it. Units as in APQ's README.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apqkit.cost.importers.rows import (
    Figures,
    ImportedRows,
    Line,
    TableOptions,
    conv_key,
    header_of,
)
from apqkit.cost.importers.sources import WHOLE, positive, read_csv, read_json
from apqkit.cost.keys import key_of
from apqkit.cost.lut import LookupTable
from apqkit.cost.lut_cost import FREE_HEADER
from apqkit.errors import CostError
from apqkit.formats import FORMATS
from apqkit.types import IntArray

__all__ = ["ApqTableOptions", "read_apq"]

_SHAPE = ("in_ch", "out_ch", "in_size", "kernel", "stride", "padding", "groups")
_BITS = ("w_bits", "a_bits")
_FIGURES = ("latency", "energy")
_NAMED = ", ".join(
    rf"(?P<{name}>{WHOLE})" if name != "padding" else rf"(?P<{name}>0|{WHOLE})" for name in _SHAPE
)
_KEY = re.compile(rf"\({_NAMED}\)-W(?P<w_bits>\d)A(?P<a_bits>\d)", re.ASCII)
_WHOLE = re.compile(WHOLE, re.ASCII)
_ENDS = ("head", "tail")
_ENDS_FILE = "head_tail.json"


class ApqTableOptions(TableOptions):
    """What the header says of APQ's table; the defaults are those of the published file."""

    device: Line = "BitFusion"
    runtime: Line = "simulator"
    licence: Line = "BSD-2-Clause"
    source: Line = "github.com/mit-han-lab/apq, lut/BitFusion_new.b1.dict"


def read_apq(path: Path, options: ApqTableOptions) -> LookupTable:
    """Reads APQ's table.

    Args:
        path: The JSON, or the same as CSV (also ``.gz``) with ``head_tail.json`` beside it.
        options: For the header.

    Raises:
        CostError: The file is missing or broken, or a row is none.
    """
    is_csv = path.name.endswith((".csv", ".csv.gz"))
    ends_path = path.parent / _ENDS_FILE if is_csv else path
    entries = read_json(ends_path)
    rows = ImportedRows(path)
    for end in _ENDS:
        if end not in entries:
            raise CostError(f"{ends_path} lacks {end!r}, what every network costs beside its rows")
        rows.add(end, key_of(end, {}), _figures(entries[end], f"{ends_path}, {end!r}"))
    written = _csv_rows(path) if is_csv else _json_rows(path, entries)
    for name, shape, figures in written:
        where = f"{path}, {name if is_csv else repr(name)}"
        rows.add(name, _conv_key(shape, where), _figures(figures, where))
    free = {FREE_HEADER: "input add pool global_pool linear"}  # pool and linear are of the tail
    return rows.table(header_of(options, path) | free)


_Row = tuple[str, dict[str, int], Mapping[str, Any]]


def _json_rows(path: Path, entries: Mapping[str, Any]) -> Iterator[_Row]:
    for name, figures in entries.items():
        if name not in _ENDS:
            match = _KEY.fullmatch(name)
            if match is None:
                raise CostError(
                    f"{path}: a key must be '({', '.join(_SHAPE)})-WwAa', 'head' or 'tail', "
                    f"got {name!r}"
                )
            yield name, {part: int(text) for part, text in match.groupdict().items()}, figures


def _csv_rows(path: Path) -> Iterator[_Row]:
    frame = read_csv(path, (*_SHAPE, *_BITS, *_FIGURES))
    for number, row in enumerate(frame.to_dict("records"), 1):
        for name in (*_SHAPE, *_BITS):
            if not _WHOLE.fullmatch(row[name]) and (name, row[name]) != ("padding", "0"):
                raise CostError(
                    f"{path}, row {number}: {name} must be a whole number above 0, "
                    f"got {row[name]!r}"
                )
        shape = {name: int(row[name]) for name in (*_SHAPE, *_BITS)}
        yield f"row {number}", shape, {name: row[name] for name in _FIGURES}


def _figures(entry: object, where: str) -> Figures:
    if not isinstance(entry, Mapping) or set(entry) != set(_FIGURES):
        raise CostError(f"{where}: expected latency and energy, got {entry!r}")
    latency, energy = (positive(entry[name], name, where) for name in _FIGURES)
    return Figures(latency, energy_mj=energy)


def _conv_key(shape: Mapping[str, int], where: str) -> IntArray:
    formats = [f"int{shape[name]}" for name in _BITS]
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise CostError(f"{where}: there is no format {unknown[0]!r}")
    kernel, groups = shape["kernel"], shape["groups"]
    channels = (shape["in_ch"], shape["out_ch"])
    if kernel % 2 == 0 or shape["padding"] != kernel // 2:
        raise CostError(
            f"{where}: an odd kernel padded by half of it is expected, "
            f"got kernel {kernel} and padding {shape['padding']}"
        )
    if any(each % groups for each in channels):
        raise CostError(
            f"{where}: {groups} groups do not divide {channels[0]} and {channels[1]} channels"
        )
    return conv_key(
        channels,
        (shape["in_size"], shape["in_size"]),
        kernel=kernel,
        stride=shape["stride"],
        groups=groups,
        formats=(formats[0], formats[1]),
    )

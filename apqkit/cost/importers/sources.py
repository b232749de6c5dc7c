"""Strict readers of files that others wrote: JSON, CSV, and the YAML of flat tables.

Nothing that is read can run code. Every fault is one line that names the file and the place.
"""

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from apqkit.errors import CostError

__all__ = [
    "LARGEST_FIGURE",
    "WHOLE",
    "figure",
    "positive",
    "read_csv",
    "read_flat_yaml",
    "read_json",
    "read_text",
]

LARGEST_FIGURE = 2.0**31
"""What figures of a table may reach."""

WHOLE = r"[1-9]\d{0,8}"
"""Pattern of a whole number from 1 to below 1e9."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBER_PATTERN = re.compile(_NUMBER, re.ASCII)
_SHOWN = 60  # characters of a line that a message repeats

# YAML as PyYAML writes a mapping of mappings of numbers; keys hold colons, but no space after one.
_ENTRY = re.compile(r"(?P<key>[A-Za-z][\w.:-]*):(?: \{(?P<figures>[^{}]*)\})?", re.ASCII)
_FIGURE = re.compile(rf"(?P<name>[a-z]+): +(?P<value>{_NUMBER})", re.ASCII)


def read_text(path: Path) -> str:
    """Returns the text of a file, unpacked if its name ends in ``.gz``.

    Raises:
        CostError: The file is missing or damaged, or holds no text in UTF-8.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise CostError(f"{path} is no gzip file, or a damaged one") from None
    except OSError as fault:
        raise CostError(f"{path} cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise CostError(f"{path} is no text in UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        CostError: It is no JSON, no object, or names a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = {}
        for name, value in pairs:
            if name in found:
                raise CostError(f"{path} names {name!r} twice")
            found[name] = value
        return found

    def refuse(text: str) -> float:
        raise CostError(f"{path} holds {text}, which is no number")

    try:
        found = json.loads(read_text(path), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as fault:
        raise CostError(f"{path} is no JSON: {fault}") from None
    if not isinstance(found, dict):
        raise CostError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Returns columns of a CSV file as texts.

    Raises:
        CostError: It is no CSV, lacks a column, or has no rows.
    """
    try:
        frame = pd.read_csv(io.StringIO(read_text(path)), dtype=str, keep_default_na=False)
    except ValueError as fault:
        raise CostError(f"{path} is no CSV: {' '.join(str(fault).split())}") from None
    missing = [name for name in columns if name not in frame]
    if missing:
        raise CostError(f"{path} lacks the column {missing[0]!r}")
    if frame.empty:
        raise CostError(f"{path} holds no rows")
    return frame[list(columns)].fillna("")


def read_flat_yaml(path: Path) -> dict[str, dict[str, float]]:
    """Returns ``{key: {name: number}}`` of a YAML file that holds just that.

    Anchors, tags, lists, quotes, further levels and all else that YAML has are refused.

    Raises:
        CostError: A line is none of that form, or a key or a name is there twice.
    """
    found: dict[str, dict[str, float]] = {}
    entry: dict[str, float] | None = None
    for number, line in _unwrapped(read_text(path).split("\n")):
        where = f"{path}, line {number}"
        if line.startswith(" "):
            if entry is None:
                raise CostError(f"{where}: a number stands before any key: {_shown(line)}")
            _add_figure(entry, line, where)
            continue
        named = _ENTRY.fullmatch(line)
        if named is None:
            raise CostError(f"{where}: expected 'KEY:' or '  name: number', got {_shown(line)}")
        if named["key"] in found:
            raise CostError(f"{where}: {named['key']!r} is there twice")
        entry = found[named["key"]] = {}
        if named["figures"] is not None:
            for each in named["figures"].split(","):
                _add_figure(entry, each, where)
            entry = None  # nothing may follow what was closed
    return found


def _unwrapped(lines: Sequence[str]) -> list[tuple[int, str]]:
    """Returns numbered lines without blanks and comments; braces that span lines become one."""
    joined: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        text = line.rstrip()
        if joined and "{" in joined[-1][1] and "}" not in joined[-1][1]:
            first, begun = joined[-1]
            joined[-1] = (first, f"{begun} {text.strip()}".rstrip())
        elif text and not text.lstrip().startswith("#"):
            joined.append((number, text))
    return joined


def _add_figure(entry: dict[str, float], text: str, where: str) -> None:
    named = _FIGURE.fullmatch(text.strip())
    if named is None:
        raise CostError(f"{where}: expected 'name: number', got {_shown(text.strip())}")
    if named["name"] in entry:
        raise CostError(f"{where}: {named['name']!r} is there twice")
    entry[named["name"]] = float(named["value"])


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def positive(value: object, name: str, where: str) -> float:
    """Returns a number above 0, given as such or as text.

    Args:
        value: What was read.
        name: What it is, for the message.
        where: File and place, for the message.

    Raises:
        CostError: It is no number, or not above 0 and at most :data:`LARGEST_FIGURE`.
    """
    number = figure(value, name, where)
    if number == 0:
        raise CostError(f"{where}: {name} must be a positive number, got {value!r}")
    return number


def figure(value: object, name: str, where: str) -> float:
    """Returns a number of 0 or above, given as such or as text.

    Raises:
        CostError: It is no number, or not from 0 to :data:`LARGEST_FIGURE`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_text = isinstance(value, str) and _NUMBER_PATTERN.fullmatch(value)
    number = float(value) if is_number or is_text else math.nan  # type: ignore[arg-type]
    if not 0 <= number <= LARGEST_FIGURE:
        raise CostError(f"{where}: {name} must be a positive number, got {value!r}")
    return number

"""What importers share: the header's options, keys of layers, and a table from collected rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from apqkit.config import Positive, Section
from apqkit.cost.importers.sources import figure, positive
from apqkit.cost.keys import key_of
from apqkit.cost.lut import LookupTable, make_table
from apqkit.errors import CostError
from apqkit.types import IntArray

__all__ = [
    "Figures",
    "ImportedRows",
    "TableOptions",
    "conv_key",
    "global_pool_key",
    "header_of",
    "linear_key",
    "measured",
]

NOT_STATED = "not stated"


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise PydanticCustomError("line", "one line of text")
    return text


Line = Annotated[str, AfterValidator(_one_line)]


class TableOptions(Section):
    """What a file leaves open and the table's header says."""

    device: Line
    runtime: Line = NOT_STATED
    batch: Positive = 1  # images that were computed together
    licence: Line = NOT_STATED
    source: Line | None = None  # repository and file; None for the file's name


@dataclass(frozen=True)
class Figures:
    """What was measured of a row.

    Attributes:
        latency_ms: Mean.
        sd_ms: Standard deviation of a run.
        count: Runs.
        energy_mj: NaN where it is not known.
    """

    latency_ms: float
    sd_ms: float = 0.0
    count: int = 1
    energy_mj: float = math.nan


class ImportedRows:
    """Collects rows; the same layer twice is refused.

    Args:
        path: The file that is imported, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: dict[tuple[int, ...], str] = {}
        self._keys: list[IntArray] = []
        self._figures: list[Figures] = []

    def __len__(self) -> int:
        """Returns how many rows there are."""
        return len(self._keys)

    def add(self, written: str, key: IntArray, figures: Figures) -> None:
        """Adds a row.

        Args:
            written: How the file calls it.
            key: (c,) its key.
            figures: What was measured.

        Raises:
            CostError: A row with this key is there.
        """
        same = self._written.setdefault(tuple(key.tolist()), written)
        if len(self._written) == len(self._keys):
            raise CostError(f"{self._path} holds a layer twice: {same!r} and {written!r}")
        self._keys.append(key)
        self._figures.append(figures)

    def table(self, header: Mapping[str, str]) -> LookupTable:
        """Returns the table.

        Raises:
            CostError: There is no row.
        """
        if not self._keys:
            raise CostError(f"{self._path} holds no layer that can be imported")
        return make_table(
            header,
            self._keys,
            [each.latency_ms for each in self._figures],
            sd_ms=[each.sd_ms for each in self._figures],
            count=[each.count for each in self._figures],
            energy_mj=[each.energy_mj for each in self._figures],
        )


def header_of(options: TableOptions, path: Path) -> dict[str, str]:
    """Returns the part of a header that every import has."""
    return {
        "device": options.device,
        "runtime": options.runtime,
        "batch": str(options.batch),
        "units": "ms",
        "licence": options.licence,
        "source": options.source or path.name,
    }


def measured(entry: Mapping[str, object], where: str) -> Figures:
    """Returns the figures of ``{mean, std or var, count}``; ``mean`` alone is required.

    Raises:
        CostError: Another name is there, or a figure is none.
    """
    unknown = [name for name in entry if name not in ("mean", "std", "var", "count")]
    if unknown or {"std", "var"} <= set(entry):
        names = ", ".join(entry)
        raise CostError(f"{where}: expected mean, count, and std or var, got {names}")
    if "mean" not in entry:
        raise CostError(f"{where}: it has no mean")
    count = positive(entry.get("count", 1), "count", where)
    if count % 1:
        raise CostError(f"{where}: count must be a whole number, got {entry['count']!r}")
    std = figure(entry.get("std", 0.0), "std", where)
    var = figure(entry.get("var", 0.0), "var", where)
    return Figures(positive(entry["mean"], "mean", where), std + math.sqrt(var), int(count))


def conv_key(
    channels: tuple[int, int],
    size: tuple[int, int],
    *,
    kernel: int,
    stride: int,
    groups: int = 1,
    formats: tuple[str, str] = ("fp32", "fp32"),
) -> IntArray:
    """(c,) the key of a convolution as plain tables have it.

    Args:
        channels: Read and written.
        size: Height and width of the input.
        kernel: Side length.
        stride: In both axes.
        groups: Of channels.
        formats: Of weights and input.
    """
    return key_of("conv", _columns(channels, size, kernel, stride, groups, formats))


def linear_key(channels: tuple[int, int], size: tuple[int, int] = (1, 1)) -> IntArray:
    """(c,) the key of a linear layer in fp32; on a larger map it averages that first."""
    return key_of("linear", _columns(channels, size, 1, 1, 1, ("fp32", "fp32")))


def global_pool_key(channels: int, size: tuple[int, int]) -> IntArray:
    """(c,) the key of the average of whole maps in fp32."""
    return key_of("global_pool", _columns((channels, channels), size, 0, 1, 1, ("none", "fp32")))


def _columns(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int,
    stride: int,
    groups: int,
    formats: tuple[str, str],
) -> dict[str, int | str]:
    return {
        "in_channels": channels[0],
        "out_channels": channels[1],
        "kernel": kernel,
        "stride": stride,
        "groups": groups,
        "in_height": size[0],
        "in_width": size[1],
        "weight_format": formats[0],
        "activation_format": formats[1],
    }

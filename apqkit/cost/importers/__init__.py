"""Look-up tables that others published, read into the one schema of tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from apqkit.config import validate_model
from apqkit.cost.importers.apq import ApqTableOptions, read_apq
from apqkit.cost.importers.haq import HaqTableOptions, read_haq
from apqkit.cost.importers.hw_nas_bench import HwNasBenchTableOptions, read_hw_nas_bench
from apqkit.cost.importers.nsganetv2 import NsganetTableOptions, read_nsganetv2
from apqkit.cost.importers.ofa import OfaTableOptions, read_ofa
from apqkit.cost.importers.rows import TableOptions
from apqkit.cost.lut import LookupTable
from apqkit.registry import lookup

__all__ = ["IMPORTERS", "Importer", "TableOptions", "import_table"]


@dataclass(frozen=True)
class Importer:
    """How tables of one dialect are read.

    Attributes:
        says: What the dialect is, in a few words.
        options: Model of what its files leave open.
        read: (file, options) -> table.
    """

    says: str
    options: type[TableOptions]
    read: Callable[[Path, Any], LookupTable]


IMPORTERS: dict[str, Importer] = {
    "apq": Importer(
        "APQ: convolutions on BitFusion at 4, 6 and 8 bits, ms and mJ (JSON, CSV)",
        ApqTableOptions,
        read_apq,
    ),
    "haq": Importer(
        "HAQ: MobileNetV2 at 1 to 8 bits, unit not stated (npy, npz)",
        HaqTableOptions,
        read_haq,
    ),
    "hw-nas-bench": Importer(
        "HW-NAS-Bench: operations of FBNet on one device, ms (JSON)",
        HwNasBenchTableOptions,
        read_hw_nas_bench,
    ),
    "nsganetv2": Importer(
        "NSGANetV2: MobileNetV3 blocks on a CPU, ms (YAML, CSV)",
        NsganetTableOptions,
        read_nsganetv2,
    ),
    "ofa": Importer(
        "ProxylessNAS and Once-for-All: blocks on phones, ms (YAML)",
        OfaTableOptions,
        read_ofa,
    ),
}
"""Dialects by name. A plug-in adds to this dict."""


def import_table(
    dialect: str, path: Path, options: Mapping[str, Any] = MappingProxyType({})
) -> LookupTable:
    """Reads a table that others published.

    Args:
        dialect: Of :data:`IMPORTERS`.
        path: The file.
        options: What the file leaves open, by the names in the dialect's options.

    Raises:
        UnknownNameError: No dialect of that name.
        ConfigError: An option is missing, unknown or out of range.
        CostError: The file is missing, broken or of another dialect.
    """
    importer = lookup(IMPORTERS, dialect, "table dialect")
    return importer.read(Path(path), validate_model(importer.options, options))

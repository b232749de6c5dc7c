"""Look-up tables outside a run: built, prepared for another machine, checked on whole networks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apqkit.config import Config
from apqkit.cost import find_device, prepare_folder, read_lut
from apqkit.cost.builder import host_header
from apqkit.cost.kernels import ONNX_RUNTIME
from apqkit.cost.keys import CONVERSIONS, TABLE_OPS
from apqkit.cost.lut import LookupTable, check_same_hardware
from apqkit.cost.lut_cost import RUNTIME_HEADER, LutCost
from apqkit.data import load_splits
from apqkit.errors import CostError
from apqkit.pipeline.context import check_device_formats
from apqkit.pipeline.cost_stage import estimates_of, typical_networks
from apqkit.report import LutCheck, check_lut, write_lut_check
from apqkit.spaces import build_space
from apqkit.spaces.draws import draw_hierarchical, draw_uniform
from apqkit.types import LayerTable, Progress, SilentProgress, Space

__all__ = ["BuiltTable", "build_space_table", "check_space_table", "prepare_space_table"]


@dataclass(frozen=True)
class BuiltTable:
    """A table for a space.

    Attributes:
        table: Its rows.
        device: What its figures are.
        nodes: Rows that are layers.
        edges: Rows that are conversions between layers.
        estimated: What networks of the space need beside these, with estimate and error.
        share_estimated: Share of the space's latency that is estimated, mean over networks.
    """

    table: LookupTable
    device: str
    nodes: int
    edges: int
    estimated: dict[str, dict[str, float]]
    share_estimated: float


def build_space_table(
    config: Config, out: Path, *, progress: Progress | None = None
) -> BuiltTable:
    """Builds the table of ``cost.device`` for a configuration's space, or reads a measured one.

    Args:
        config: Space, images, device, batch and time budget.
        out: Where the table goes, a CSV.
        progress: Shows the rows that are timed.

    Raises:
        CostError: The device has no table, cannot run the space's formats, or the table is broken.
    """
    progress = progress or SilentProgress()
    device = find_device(config.cost.device)
    if not device.has_table:
        raise CostError(f"device {config.cost.device!r} is computed by formulas: it has no table")
    space = _space(config)
    networks = typical_networks(space, config.seed)
    device.prepare(networks, config.cost, out, progress)
    model = LutCost(read_lut(out))
    check_device_formats(config, space, LutCost(model.table))
    share = _share_estimated(model, networks)
    return BuiltTable(
        table=model.table,
        device=device.says,
        nodes=len(model.table) - _edges(model.table),
        edges=_edges(model.table),
        estimated=estimates_of(model),
        share_estimated=share,
    )


def prepare_space_table(config: Config, folder: Path) -> int:
    """Writes what another machine needs to measure a space's layers; returns how many there are.

    Raises:
        CostError: The folder is not empty or cannot be written.
    """
    networks = typical_networks(_space(config), config.seed)
    return prepare_folder(networks, folder, batch=config.cost.batch)


def check_space_table(
    config: Config,
    table: Path,
    out: Path,
    *,
    networks: int = 40,
    progress: Progress | None = None,
) -> LutCheck:
    """Times networks of a space whole and compares them with a table of this machine.

    Args:
        config: Space and images.
        table: A table's path.
        out: Folder for the figures, the picture and one row a network.
        networks: How many, half of them drawn uniformly, half with one format in most layers.
        progress: Shows how far it is.

    Raises:
        CostError: The table is of other hardware, or cannot price the space.
    """
    found = read_lut(table)
    runtime = found.header.get(RUNTIME_HEADER, ONNX_RUNTIME)
    mine = host_header(int(found.header.get("batch", "1")), runtime)
    check_same_hardware(found.header, {**mine, "device": found.header.get("device", "")})
    splits = load_splits(config.data, config.seed)
    space = build_space(config.space, splits.image_shape, splits.classes)
    drawn = _drawn(space, networks, config.seed)
    supernet = space.supernet(config.seed)
    progress = progress or SilentProgress()
    check = check_lut(found, drawn, supernet.train(), splits.image_shape, progress=progress)  # type: ignore[arg-type]
    write_lut_check(check, out)
    return check


def _space(config: Config) -> Space:
    splits = load_splits(config.data, config.seed)
    return build_space(config.space, splits.image_shape, splits.classes)


def _drawn(space: Space, count: int, seed: int) -> LayerTable:
    rng = np.random.default_rng([seed, 2])
    half = count // 2
    picks = [draw_uniform(space, count - half, rng), draw_hierarchical(space, half, rng)]
    return space.network(np.concatenate(picks))


def _edges(table: LookupTable) -> int:
    edges = [TABLE_OPS.index(each) for each in CONVERSIONS]
    return int(np.isin(table.keys[:, 0], edges).sum())


def _share_estimated(model: LutCost, networks: LayerTable) -> float:
    """Mean over networks of the share of latency that rows with estimates make up."""
    terms = model.layer_terms(networks)
    latency = np.nan_to_num(terms["latency_ms"])
    estimated = np.where(terms["error_ms"] > 0, latency, 0.0)
    return float((estimated.sum(axis=1) / latency.sum(axis=1)).mean())

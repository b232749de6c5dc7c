"""Stage cost: the device's table of layers, and what formats change on it."""

from pathlib import Path

import numpy as np
import pandas as pd

from apqkit.cost import LutCost, find_device
from apqkit.errors import ConfigError
from apqkit.pipeline.context import RunContext, check_device_formats
from apqkit.run import write_atomically, write_json
from apqkit.search.limits import check_limits, check_metrics
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_hierarchical, draw_uniform
from apqkit.types import LayerTable, Space

__all__ = [
    "TABLE_FILE",
    "TOTALS_FILE",
    "check_goals",
    "estimated_layers",
    "estimates_of",
    "run_cost_stage",
    "typical_networks",
]

TABLE_FILE = "lut.csv"
TOTALS_FILE = "totals.csv"
_COVERAGE_FILE = "coverage.json"
_DRAWN = 8000  # candidates whose layers are priced beforehand; any other is priced when met
_UNIFORM_FORMATS = ("int8", "int4", "int2")
_SMALL_CHANGE = 0.02


def run_cost_stage(context: RunContext, folder: Path) -> None:
    """Prices the layers of the space."""
    settings = context.config.cost
    device = find_device(settings.device)
    networks = typical_networks(context.space, context.config.seed)
    device.prepare(networks, settings, folder / TABLE_FILE, context.progress)
    write_json(folder / _COVERAGE_FILE, _coverage(context, networks, device.says))
    totals = uniform_totals(context)
    write_atomically(folder / TOTALS_FILE, totals.to_csv(index=False, lineterminator="\n"))
    _say_totals(context, totals)


def typical_networks(space: Space, seed: int) -> LayerTable:
    """Returns the networks whose layers a device's table is made for."""
    rng = np.random.default_rng([seed, 1])
    drawn = [draw_uniform(space, _DRAWN, rng), draw_hierarchical(space, _DRAWN, rng)]
    ends = [largest_picks(space.dims), smallest_picks(space.dims)]
    return space.network(np.concatenate([*drawn, *ends]))


def check_goals(context: RunContext) -> None:
    """Checks that what is searched for can be found, before anything is trained.

    Raises:
        ConfigError: An objective or limit is no cost of this run, or the device cannot run a
            format that is offered.
        LimitError: No network keeps a limit.
    """
    search = context.config.search
    check_metrics(search.objectives, search.limits, context.metrics)
    try:
        if {*search.objectives, *search.limits} & set(context.device.metrics):
            check_device_formats(context.config, context.space, context.device)
    except ConfigError:
        context.run.redo(["cost"])  # so that the corrected space or device is no changed one
        raise
    check_limits(context.space, context.costs, search.limits)


def uniform_totals(context: RunContext) -> pd.DataFrame:
    """Returns every cost of the largest and smallest network with one format throughout."""
    rows = []
    dims = context.space.dims
    for name, picks in (("largest", largest_picks(dims)), ("smallest", smallest_picks(dims))):
        for number_format in _UNIFORM_FORMATS:
            table = context.space.network(picks).with_formats(number_format, number_format)
            costs = {metric: float(v[0]) for metric, v in context.cost_of(table).items()}
            rows.append({"network": name, "formats": number_format, **costs})
    return pd.DataFrame(rows)


def _say_totals(context: RunContext, totals: pd.DataFrame) -> None:
    """Shows what formats change on this device; where it is nothing, they are no objective."""
    largest = totals[totals["network"] == "largest"].set_index("formats")
    device = context.config.cost.device
    listed = ", ".join(f"{name} {largest['latency_ms'][name]:.4g}" for name in _UNIFORM_FORMATS)
    context.say(f"latency_ms of the largest network on {device}: {listed}")
    change = 1.0 - float(largest["latency_ms"]["int4"] / largest["latency_ms"]["int8"])
    if abs(change) < _SMALL_CHANGE:
        context.say(
            f"on device {device} int4 changes latency_ms by {change:.1%} "
            f"against int8: narrow formats buy size here, not time"
        )


def estimated_layers(context: RunContext) -> dict[str, dict[str, float]]:
    """Returns the layers that the device's table lacked so far: estimate and relative error."""
    model = context.device
    return estimates_of(model) if isinstance(model, LutCost) else {}


def estimates_of(model: LutCost) -> dict[str, dict[str, float]]:
    """Returns what a table lacked so far, by text: the estimate and its relative error."""
    coverage = model.coverage
    return {
        layer: {"latency_ms": price, "relative_error": coverage.error[layer]}
        for layer, price in coverage.estimated.items()
    }


def _coverage(context: RunContext, networks: LayerTable, says: str) -> dict[str, object]:
    costs = context.device.cost(networks)
    found = {
        "device": context.config.cost.device,
        "says": says,
        "batch": context.config.cost.batch,
        "networks_tried": len(networks),
        "networks_without_price": int(np.isnan(costs["latency_ms"]).sum()),
        "layers_estimated": estimated_layers(context),
    }
    if isinstance(context.device, LutCost):
        found["left_out_error"] = context.device.coverage.left_out_error
    return found

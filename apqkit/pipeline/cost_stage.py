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
from apqkit.types import LayerTable

__all__ = ["TABLE_FILE", "TOTALS_FILE", "check_goals", "estimated_layers", "run_cost_stage"]

TABLE_FILE = "lut.csv"
TOTALS_FILE = "totals.csv"
_COVERAGE_FILE = "coverage.json"
_DRAWN = 8000  # candidates whose layers are priced beforehand; any other is priced when met
_UNIFORM_FORMATS = ("int8", "int4", "int2")
_SMALL_CHANGE = 0.02


def run_cost_stage(context: RunContext, folder: Path) -> None:
    """Prices the layers of the space."""
    config, space = context.config, context.space
    device = find_device(config.cost.device)
    rng = np.random.default_rng([config.seed, 1])
    drawn = [draw_uniform(space, _DRAWN, rng), draw_hierarchical(space, _DRAWN, rng)]
    picks = np.concatenate([*drawn, largest_picks(space.dims), smallest_picks(space.dims)])
    networks = space.network(picks)
    device.prepare(networks, config.cost.batch, folder / TABLE_FILE, context.progress)
    write_json(folder / _COVERAGE_FILE, _coverage(context, networks, device.says))
    totals = uniform_totals(context)
    write_atomically(folder / TOTALS_FILE, totals.to_csv(index=False, lineterminator="\n"))
    _say_totals(context, totals)


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
        check_device_formats(context)
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


def estimated_layers(context: RunContext) -> dict[str, float]:
    """Returns the layers that the device's table lacked so far, with what they were priced at."""
    model = context.device
    return dict(model.coverage.estimated) if isinstance(model, LutCost) else {}


def _coverage(context: RunContext, networks: LayerTable, says: str) -> dict[str, object]:
    latency = context.device.cost(networks)["latency_ms"]
    return {
        "device": context.config.cost.device,
        "says": says,
        "batch": context.config.cost.batch,
        "networks_tried": len(networks),
        "networks_without_price": int(np.isnan(latency).sum()),
        "layers_estimated": estimated_layers(context),
    }

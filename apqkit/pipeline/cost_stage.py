"""Stage cost: the device's table of layers, what formats change on it, and whether limits hold."""

from pathlib import Path

import numpy as np
import pandas as pd

from apqkit.cost import LutCost, find_device
from apqkit.errors import ApqkitError
from apqkit.pipeline.context import RunContext, check_device_formats
from apqkit.run import write_atomically, write_json
from apqkit.search.limits import check_limits, check_metrics
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_hierarchical, draw_uniform
from apqkit.types import LayerTable

__all__ = ["TABLE_FILE", "TOTALS_FILE", "run_cost_stage"]

TABLE_FILE = "lut.csv"
TOTALS_FILE = "totals.csv"
_COVERAGE_FILE = "coverage.json"
_DRAWN = 8000  # candidates whose layers are priced beforehand; any other is priced when met
_UNIFORM_FORMATS = ("int8", "int4", "int2")
_SMALL_CHANGE = 0.02


def run_cost_stage(context: RunContext, folder: Path) -> None:
    """Prices the layers of the space and checks objectives, limits and formats against them.

    A mistake that it finds leaves nothing behind: the corrected configuration is no changed one.
    """
    try:
        _price_and_check(context, folder)
    except ApqkitError:
        context.run.redo(["cost"])
        raise


def _price_and_check(context: RunContext, folder: Path) -> None:
    config, space = context.config, context.space
    device = find_device(config.cost.device)
    rng = np.random.default_rng([config.seed, 1])
    drawn = [draw_uniform(space, _DRAWN, rng), draw_hierarchical(space, _DRAWN, rng)]
    picks = np.concatenate([*drawn, largest_picks(space.dims), smallest_picks(space.dims)])
    networks = space.network(picks)
    device.prepare(networks, config.cost.batch, folder / TABLE_FILE, context.progress)
    check_metrics(config.search.objectives, config.search.limits, context.metrics)
    check_device_formats(context)
    check_limits(space, context.costs, config.search.limits)
    write_json(folder / _COVERAGE_FILE, _coverage(context, networks, device.says))
    totals = uniform_totals(context)
    write_atomically(folder / TOTALS_FILE, totals.to_csv(index=False, lineterminator="\n"))
    _warn_if_formats_are_free(context, totals)


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


def _warn_if_formats_are_free(context: RunContext, totals: pd.DataFrame) -> None:
    largest = totals[totals["network"] == "largest"].set_index("formats")
    if "latency_ms" not in context.config.search.objectives:
        return
    change = 1.0 - float(largest["latency_ms"]["int4"] / largest["latency_ms"]["int8"])
    if abs(change) < _SMALL_CHANGE:
        context.say(
            f"on device {context.config.cost.device} int4 changes latency_ms by {change:.1%} "
            f"against int8: narrow formats buy size here, not time"
        )


def _coverage(context: RunContext, networks: LayerTable, says: str) -> dict[str, object]:
    model = context.device
    latency = model.cost(networks)["latency_ms"]
    estimated = dict(model.coverage.estimated) if isinstance(model, LutCost) else {}
    return {
        "device": context.config.cost.device,
        "says": says,
        "batch": context.config.cost.batch,
        "networks_tried": len(networks),
        "networks_without_price": int(np.isnan(latency).sum()),
        "layers_estimated": estimated,
    }

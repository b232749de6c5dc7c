"""Ranking without a single measured sample: from proxies alone.

Letters: n candidates, L rows of a network table, F formats.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from apqkit.cost.network import NetworkCost
from apqkit.formats import format_code
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.proxies import pointed_up
from apqkit.run import write_json
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_hierarchical
from apqkit.training.evaluate import calibrated_subnet
from apqkit.types import FloatArray, IntArray, LayerTable
from predictors import mean_rank
from predictors.zerocost import assemble, output_divergence

__all__ = ["SENSITIVITIES_FILE", "ProxyRanking", "write_sensitivities"]

SENSITIVITIES_FILE = "sensitivities.json"
"""What each format costs each layer, in the predictor stage's directory."""

_IMAGES = 128
_POPULATION = 1024  # random candidates that ranks refer to
_STREAM = 41
_COLUMNS = {"weights": "weight_format", "inputs": "activation_format"}


def write_sensitivities(context: RunContext) -> None:
    """Measures, on training images, what each offered format alone does to the largest network.

    The figure of a layer and a format is the mean Kullback-Leibler divergence, in nats, of the
    class probabilities from those of the network in fp32, everything else staying in fp32.
    """
    table = context.space.network(largest_picks(context.space.dims)).in_fp32()
    rows = np.flatnonzero(table.active[0] & (table.weight_format[0] >= 0)).tolist()
    formats = {kind: _offered(context, kind) for kind in _COLUMNS}
    found: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in _COLUMNS}
    total = len(rows) * sum(len(each) for each in formats.values())
    with context.progress.task("sensitivities", total) as advance:
        reference = _outputs(context, table)
        for kind, column in _COLUMNS.items():
            for row in rows:  # every other row takes its format from one of these
                changes = {}
                for name in formats[kind]:
                    changed = _outputs(context, _with_one(table, column, row, name))
                    changes[name] = output_divergence(reference, changed)
                    advance(1)
                found[kind][table.names[row]] = changes
    write_json(context.run.path / "predictor" / SENSITIVITIES_FILE, found)


@dataclass(frozen=True)
class ProxyRanking:
    """Ranks candidates by the mean of their ranks among random ones.

    Two rankings always take part: multiplications (more are better), which most published proxies
    do not beat, and the sum of the divergences that formats cause layer by layer (less is better).
    Proxies that are named add one ranking each; they need the subnets themselves.

    Attributes:
        context: The run.
        proxies: Names of further proxies.
    """

    context: RunContext
    proxies: tuple[str, ...]

    half_width = float("nan")
    """A rank is no accuracy, so that there is no interval."""

    @property
    def reads_proxies(self) -> bool:
        """Whether :meth:`score` needs the subnets."""
        return bool(self.proxies)

    def quick_score(self, picks: IntArray) -> FloatArray:
        """(n,) mean rank in 0..1 by what follows from the picks."""
        return mean_rank(self._columns(picks), self._population_columns)

    def score(self, picks: IntArray) -> FloatArray:
        """(n,) mean rank in 0..1, with the proxies that were named among these candidates."""
        columns = self._columns(picks)
        if not self.proxies:
            return mean_rank(columns, self._population_columns)
        scores = pointed_up(self.proxies, self.context.proxies.columns(picks, self.proxies))
        return mean_rank(np.hstack([columns, scores]))

    def fp32_score(self, picks: IntArray) -> FloatArray:
        """(n,) mean rank of the architectures in fp32: by their multiplications."""
        return mean_rank(self._columns(picks)[:, :1], self._population_columns[:, :1])

    def predicted(self, picks: IntArray) -> FloatArray:
        """(n,) NaN: ranks are no accuracies."""
        return np.full(len(picks), np.nan)

    def _columns(self, picks: IntArray) -> FloatArray:
        table = self.context.space.network(picks)
        macs = np.log(NetworkCost().cost(table)["macs"])
        return np.stack([macs, -self._divergences(table)], axis=1)

    def _divergences(self, table: LayerTable) -> FloatArray:
        total = np.zeros(len(table))
        for kind, column in _COLUMNS.items():
            names, formats, scores = self._sensitivities[kind]
            rows = [table.names.index(name) for name in names]
            codes = getattr(table, column)[:, rows]
            places = np.full(codes.max(initial=0) + 2, len(formats))  # the last column is fp32
            for place, name in enumerate(formats):
                if format_code(name) < len(places):
                    places[format_code(name)] = place
            total += assemble(scores, places[codes], table.active[:, rows] & (codes >= 0))
        return total

    @cached_property
    def _sensitivities(self) -> Mapping[str, tuple[list[str], list[str], FloatArray]]:
        path = self.context.run.path / "predictor" / SENSITIVITIES_FILE
        return {kind: _as_table(each) for kind, each in json.loads(path.read_text()).items()}

    @cached_property
    def _population_columns(self) -> FloatArray:
        space = self.context.space
        rng = np.random.default_rng([self.context.config.seed, _STREAM])
        ends = [smallest_picks(space.dims), largest_picks(space.dims)]
        return self._columns(np.concatenate([*ends, draw_hierarchical(space, _POPULATION, rng)]))


def _as_table(found: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[str], FloatArray]:
    """Returns layers, formats and (L, F + 1) scores, the last column for fp32."""
    formats = list(next(iter(found.values()), {}))
    scores = np.array([[*each.values(), 0.0] for each in found.values()])
    return list(found), formats, scores.reshape(len(found), len(formats) + 1)


def _offered(context: RunContext, kind: str) -> list[str]:
    space = context.config.space
    searched: Sequence[str]
    searched = space.weight_formats if kind == "weights" else space.activation_formats
    return list(dict.fromkeys([*searched, *space.first_last_formats]))


def _with_one(table: LayerTable, column: str, row: int, name: str) -> LayerTable:
    codes = getattr(table, column).copy()
    codes[:, row] = format_code(name)
    changed: dict[str, Any] = {column: codes}
    return replace(table, **changed)


def _outputs(context: RunContext, table: LayerTable) -> torch.Tensor:
    """(images, classes) float64 outputs of a calibrated network on training images."""
    images = context.splits.calibration_images(_IMAGES).images()
    model = calibrated_subnet(context.supernet, table.layers(), images)  # type: ignore[arg-type]
    with torch.inference_mode():
        outputs: torch.Tensor = model(images)
    return outputs.double()

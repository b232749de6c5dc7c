"""The weight-sharing network: every candidate of a space is a selection of its weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apqkit.elastic.layers import ELASTIC_UNITS, ElasticUnit
from apqkit.elastic.network import LayerNetwork, Plan, make_plan, run_plan, unit_name
from apqkit.types import Layer

__all__ = ["ElasticSupernet"]


class ElasticSupernet(nn.Module):
    """A supernet for any space whose networks are rows of one table.

    Args:
        largest: Rows of the largest network; every row that the space can use is among them.
        seed: Seed of the initial weights; the global generator is left as it was.
    """

    units: nn.ModuleDict

    def __init__(self, largest: Sequence[Layer], *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.units = nn.ModuleDict(
                {
                    unit_name(layer.name): ELASTIC_UNITS[layer.op](layer)
                    for layer in largest
                    if layer.op != "input"
                }
            )
        self._plan: Plan = make_plan(largest)

    def select(self, layers: Sequence[Layer]) -> None:
        """Makes ``forward`` compute the network of these rows."""
        for layer in layers:
            if layer.op != "input":
                self._unit(layer).select(layer)
        self._plan = make_plan(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits of the selected network; statistics and ranges are those of the batch."""
        return run_plan(self._plan, self.units, images)  # type: ignore[arg-type]

    def extract(self, layers: Sequence[Layer]) -> LayerNetwork:
        """Returns the network of these rows with copied weights, not yet calibrated."""
        units = {
            unit_name(layer.name): self._unit(layer).extract(layer)
            for layer in layers
            if layer.op != "input"
        }
        return LayerNetwork(layers, units)

    def _unit(self, layer: Layer) -> ElasticUnit:
        unit = self.units[unit_name(layer.name)]
        assert isinstance(unit, ElasticUnit)
        return unit

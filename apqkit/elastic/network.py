"""Runs the rows of a network table: one executor for supernets and extracted networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from apqkit.quant.layers import QuantLayer
from apqkit.types import Layer

__all__ = ["LayerNetwork", "Plan", "Step", "make_plan", "run_plan", "unit_name"]


@dataclass(frozen=True)
class Step:
    """One layer in order of execution.

    Attributes:
        unit: Name of the module that computes it.
        row: Row of the table whose output it writes.
        producers: Rows that it reads.
        quantizes: For each input, whether it is quantized here (or arrives in the right format).
        stores: For each input, whether the quantized form replaces the producer's output.
        frees: Rows that nobody reads afterwards.
    """

    unit: str
    row: int
    producers: tuple[int, ...]
    quantizes: tuple[bool, ...]
    stores: tuple[bool, ...]
    frees: tuple[int, ...]


Plan = tuple[Step, ...]


def unit_name(layer_name: str) -> str:
    """Returns the module name for a row name: ``s0.b1.expand`` becomes ``s0_b1_expand``."""
    return layer_name.replace(".", "_")


def make_plan(layers: Sequence[Layer]) -> Plan:
    """Returns the steps that run a network.

    A tensor is stored once, in the format of its first reader. A later reader with weights, or of
    another format, quantizes what is stored; an add or a pool of the same format takes it as is.
    """
    last_reader = {row: layer.row for layer in layers for row in layer.producers}
    stored: dict[int, str] = {}
    steps = []
    for layer in layers:
        if layer.op == "input":
            continue
        quantizes, stores = [], []
        for row in layer.producers:
            same = stored.get(row) == layer.activation_format and layer.weight_format is None
            quantizes.append(not same)
            stores.append(row not in stored)
            stored.setdefault(row, layer.activation_format)
        steps.append(
            Step(
                unit=unit_name(layer.name),
                row=layer.row,
                producers=layer.producers,
                quantizes=tuple(quantizes),
                stores=tuple(stores),
                frees=tuple(r for r in set(layer.producers) if last_reader[r] == layer.row),
            )
        )
    return tuple(steps)


def run_plan(plan: Plan, units: Mapping[str, QuantLayer], images: Tensor) -> Tensor:
    """Returns the output of the last step for a batch of images (row 0 is the input)."""
    values = {0: images}
    output = images
    for step in plan:
        unit = units[step.unit]
        inputs = []
        for index, row in enumerate(step.producers):
            value = values[row]
            if step.quantizes[index]:
                value = unit.quantize_input(value, index)
            if step.stores[index]:
                values[row] = value
            inputs.append(value)
        for row in step.frees:
            del values[row]
        output = unit.compute(*inputs)
        values[step.row] = output
    return output


class LayerNetwork(nn.Module):
    """A plain network: the active rows of one candidate, each with a module of its own.

    Attributes:
        layers: The rows it runs.
        units: One quantized layer a row, by :func:`unit_name`.
    """

    def __init__(self, layers: Sequence[Layer], units: Mapping[str, QuantLayer]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.units = nn.ModuleDict(dict(units))
        self._plan = make_plan(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns (batch, classes) logits for images of shape (batch, channels, height, width)."""
        return run_plan(self._plan, self.units, images)  # type: ignore[arg-type]

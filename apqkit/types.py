"""The types that carry everything. Letters: n candidates, k dims, L rows of a network table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apqkit.formats import format_code, format_of_code

if TYPE_CHECKING:
    import torch

__all__ = [
    "ACTIVATIONS",
    "OPS",
    "AdditiveCost",
    "BoolArray",
    "Choice",
    "CostModel",
    "Dim",
    "FloatArray",
    "IntArray",
    "Layer",
    "LayerTable",
    "Progress",
    "Role",
    "Sample",
    "SilentProgress",
    "Space",
    "Supernet",
]

Choice: TypeAlias = int | str
IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
Role: TypeAlias = Literal["arch", "prune", "quant"]

OPS = ("input", "conv", "linear", "add", "pool", "global_pool")
"""What a row of a network table can be; a table holds the index."""

ACTIVATIONS = ("none", "relu")
"""What follows a row's arithmetic; a table holds the index."""

_INPUT, _CONV, _LINEAR, _ADD, _POOL, _GLOBAL_POOL = range(len(OPS))


@dataclass(frozen=True)
class Dim:
    """One searchable decision, such as ``w_format.s2.b1.expand``.

    Attributes:
        name: What is decided and where.
        choices: The values it can take, smallest network first.
        role: ``arch``, ``prune`` or ``quant``.
    """

    name: str
    choices: tuple[Choice, ...]
    role: Role


@dataclass(frozen=True)
class Layer:
    """One active row of a network table, by value."""

    row: int
    name: str
    op: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    in_height: int
    in_width: int
    activation: str
    weight_format: str | None
    activation_format: str
    signed_input: bool
    producers: tuple[int, ...]


@dataclass(frozen=True)
class LayerTable:
    """Networks as columns of shape (n, L): what costs, sizes and supernets read.

    A layer's activation format is that of its input. The inputs and the output of an add, and of
    a pool, carry the format of the next convolution or linear layer. Inactive rows read 0 (formats
    and producers -1). Kernels of convolutions are odd.

    Attributes:
        names: (L,) the rows' names.
        op: Index into ``OPS``.
        in_channels: Channels read.
        out_channels: Channels written.
        kernel: Side length of a square kernel; 1 for a linear layer, 0 where there is none.
        stride: Same in both axes; 0 where there is none.
        groups: Convolution groups (equal to the channels for a depthwise convolution).
        in_height: Height of the input in pixels.
        in_width: Width of the input in pixels.
        activation: Index into ``ACTIVATIONS``.
        weight_format: Format code of the weights, -1 for none.
        activation_format: Format code of the input, -1 for none.
        active: False for rows that the candidate does not use.
        producers: (n, L, 2) rows whose outputs this row reads, -1 for none.
    """

    names: tuple[str, ...]
    op: IntArray
    in_channels: IntArray
    out_channels: IntArray
    kernel: IntArray
    stride: IntArray
    groups: IntArray
    in_height: IntArray
    in_width: IntArray
    activation: IntArray
    weight_format: IntArray
    activation_format: IntArray
    active: BoolArray
    producers: IntArray

    def __len__(self) -> int:
        """Returns the number of candidates, n."""
        return len(self.op)

    @cached_property
    def out_height(self) -> IntArray:
        """(n, L) height of the output in pixels; convolutions pad by half their kernel."""
        return self._out_size(self.in_height)

    @cached_property
    def out_width(self) -> IntArray:
        """(n, L) width of the output in pixels."""
        return self._out_size(self.in_width)

    def _out_size(self, size: IntArray) -> IntArray:
        stride = np.maximum(self.stride, 1)
        convolved = (size - 1) // stride + 1
        pooled = (size - self.kernel) // stride + 1
        return np.where(
            self.active,
            np.select(
                [self.op == _CONV, self.op == _POOL, np.isin(self.op, (_GLOBAL_POOL, _LINEAR))],
                [convolved, pooled, np.ones_like(size)],
                default=size,
            ),
            0,
        )

    @cached_property
    def weights(self) -> IntArray:
        """(n, L) number of weights, biases not counted."""
        return np.where(
            self.weight_format >= 0,
            self.in_channels // np.maximum(self.groups, 1) * self.out_channels * self.kernel**2,
            0,
        )

    @cached_property
    def macs(self) -> IntArray:
        """(n, L) multiply-accumulates of convolutions and linear layers, one image."""
        return self.weights * self.out_height * self.out_width

    @cached_property
    def signed_input(self) -> BoolArray:
        """(n, L) False where the input cannot be negative: images, ReLU, pools of those."""
        negative = np.zeros(self.op.shape, dtype=bool)  # of each row's output
        signed = np.zeros_like(negative)
        candidates = np.arange(len(self))
        for row in range(self.op.shape[1]):
            for producer in self.producers[:, row].T:
                signed[:, row] |= negative[candidates, producer] & (producer >= 0)
            passes = np.isin(self.op[:, row], (_POOL, _GLOBAL_POOL))
            computes = np.isin(self.op[:, row], (_CONV, _LINEAR, _ADD))
            negative[:, row] = np.where(
                passes, signed[:, row], computes & (self.activation[:, row] == 0)
            )
        return signed & self.active

    def with_formats(self, weights: str | None, activations: str | None) -> "LayerTable":
        """Returns the same networks with one format throughout; None leaves formats alone."""
        changed: dict[str, Any] = {}
        for column, name in (("weight_format", weights), ("activation_format", activations)):
            if name is not None:
                codes = getattr(self, column)
                replaced = (codes >= 0) & (self.op != _INPUT)
                changed[column] = np.where(replaced, format_code(name), codes)
        return replace(self, **changed)

    def in_fp32(self) -> "LayerTable":
        """Returns the same networks with every format fp32."""
        return self.with_formats("fp32", "fp32")

    def take(self, candidates: IntArray | slice) -> "LayerTable":
        """Returns the table of the candidates chosen by index."""
        columns: dict[str, Any] = {
            field.name: getattr(self, field.name)[candidates]
            for field in fields(self)
            if field.name != "names"
        }
        return replace(self, **columns)

    def layers(self, candidate: int = 0) -> list[Layer]:
        """Returns one candidate's active rows, in order of execution."""
        rows = np.flatnonzero(self.active[candidate])
        return [self._layer(candidate, int(row)) for row in rows]

    def _layer(self, candidate: int, row: int) -> Layer:
        at = (candidate, row)
        weight = int(self.weight_format[at])
        return Layer(
            row=row,
            name=self.names[row],
            op=OPS[self.op[at]],
            in_channels=int(self.in_channels[at]),
            out_channels=int(self.out_channels[at]),
            kernel=int(self.kernel[at]),
            stride=int(self.stride[at]),
            groups=int(self.groups[at]),
            in_height=int(self.in_height[at]),
            in_width=int(self.in_width[at]),
            activation=ACTIVATIONS[self.activation[at]],
            weight_format=None if weight < 0 else format_of_code(weight).name,
            activation_format=format_of_code(int(self.activation_format[at])).name,
            signed_input=bool(self.signed_input[at]),
            producers=tuple(int(p) for p in self.producers[at] if p >= 0),
        )


class Supernet(Protocol):
    """A weight-sharing network whose subnets are named by the active rows of a network table."""

    def select(self, layers: Sequence[Layer]) -> None:
        """Makes ``forward`` compute the network of these rows."""

    def extract(self, layers: Sequence[Layer]) -> "torch.nn.Module":
        """Returns the network of these rows as a plain module with copied weights."""

    def __call__(self, images: "torch.Tensor") -> "torch.Tensor":
        """Returns the logits of the selected subnet, with statistics of this batch."""


class Space(Protocol):
    """A search space: dims, canonical form, network table and supernet."""

    @property
    def name(self) -> str:
        """The name in the table of spaces."""

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The k dims, in the order of the columns of picks."""

    def active(self, picks: IntArray) -> BoolArray:
        """(n, k) True where a dim matters to its candidate."""

    def repair(self, picks: IntArray) -> IntArray:
        """(n, k) the canonical form: what is inactive reads 0, so equal networks are equal."""

    def network(self, picks: IntArray) -> LayerTable:
        """Returns the n networks as columns of shape (n, L)."""

    def describe(self, picks: IntArray) -> list[dict[str, Choice]]:
        """Returns each candidate's active dims by value."""

    def supernet(self, seed: int) -> "torch.nn.Module":
        """Returns a freshly initialised supernet (see :class:`Supernet`)."""


class CostModel(Protocol):
    """Prices network tables."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what it computes, units included."""

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{metric: (n,)}``; NaN where the device cannot run a candidate."""


class AdditiveCost(CostModel, Protocol):
    """A cost model whose metrics follow from what each row of a network table adds."""

    @property
    def peaks(self) -> tuple[str, ...]:
        """Terms of which a candidate's largest row counts, and not the sum."""

    def layer_terms(self, table: LayerTable) -> dict[str, FloatArray]:
        """{term: (n, L)} what each row adds, 0 where inactive, NaN without a kernel."""

    def totals(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns ``{metric: (n,)}`` from the terms (n,), summed over rows or at their peak."""


@dataclass(frozen=True)
class Sample:
    """One measured candidate.

    Attributes:
        kind: ``fp32`` (formats ignored) or ``mixed``.
        picks: Active dims by value; architecture and pruning only for fp32.
        accuracy: Fraction of validation images classified rightly.
        parts: The same over parts of the images, such as plain and corrupted.
        formats: For each layer its weight format and that of its input.
        correct: Hexadecimal bit mask over the validation images, most significant bit first.
        origin: Which rule proposed it.
        seed: Seed of the draw.
        seconds: Time of the measurement.
    """

    kind: Literal["fp32", "mixed"]
    picks: Mapping[str, Choice]
    accuracy: float
    parts: Mapping[str, float]
    formats: Mapping[str, str]
    correct: str
    origin: str
    seed: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Returns plain values for one JSON line."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Progress(Protocol):
    """Shows how far a long function is."""

    def task(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a bar of ``total`` steps; the function that is yielded advances it."""

    def note(self, text: str) -> None:
        """Says one line that stays."""


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Opens a bar that nobody sees."""
        del label, total
        yield lambda steps: None

    def note(self, text: str) -> None:
        """Drops the line."""
        del text

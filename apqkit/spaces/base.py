"""What search spaces share: canonical form, description by value, blocks, rows of networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apqkit.errors import ConfigError
from apqkit.formats import format_code
from apqkit.types import ACTIVATIONS, OPS, BoolArray, Choice, Dim, IntArray, LayerTable

if TYPE_CHECKING:
    from apqkit.elastic.supernet import ElasticSupernet

__all__ = [
    "Block",
    "BlockSpace",
    "TableRows",
    "TableSpace",
    "largest_picks",
    "picks_of_values",
    "smallest_picks",
]


class TableSpace(ABC):
    """A space that is defined by its dims and its network table.

    A subclass says which dims are active and how picks become layers; the rest follows.

    Attributes:
        name: The name in the table of spaces.
        dims: The k dims, in the order of the columns of picks.
    """

    name: str

    def __init__(self, dims: Sequence[Dim]) -> None:
        self.dims = tuple(dims)

    @abstractmethod
    def active(self, picks: IntArray) -> BoolArray:
        """(n, k) True where a dim matters to its candidate."""

    @abstractmethod
    def network(self, picks: IntArray) -> LayerTable:
        """Returns the n networks as columns of shape (n, L)."""

    def repair(self, picks: IntArray) -> IntArray:
        """(n, k) the canonical form: what is inactive reads 0, so equal networks are equal."""
        return np.where(self.active(picks), picks, 0)

    def describe(self, picks: IntArray) -> list[dict[str, Choice]]:
        """Returns each candidate's active dims by value."""
        active = self.active(picks)
        return [
            {
                dim.name: dim.choices[index]
                for dim, index, used in zip(self.dims, row, mask, strict=True)
                if used
            }
            for row, mask in zip(picks.tolist(), active.tolist(), strict=True)
        ]

    def supernet(self, seed: int) -> "ElasticSupernet":
        """Returns a freshly initialised supernet."""
        from apqkit.elastic.supernet import ElasticSupernet  # torch is not needed before

        return ElasticSupernet(self.network(largest_picks(self.dims)).layers(), seed=seed)


@dataclass(frozen=True)
class Block:
    """A block by its place: the stage, and where in it."""

    stage: int
    index: int

    @property
    def name(self) -> str:
        """What the block's dims and rows are named after."""
        return f"s{self.stage}.b{self.index}"


class BlockSpace(TableSpace):
    """A space of stages of blocks, each stage with an elastic depth.

    Dims called after a block, such as ``kernel.s1.b0``, matter if the depth, ``depth.s1``, reaches
    it.

    Args:
        offered: Decisions; one with a single choice holds for all candidates and is no dim.
        blocks: Of all stages, in order.

    Raises:
        ConfigError: Every decision has a single choice.
    """

    def __init__(self, offered: Sequence[Dim], blocks: Sequence[Block]) -> None:
        super().__init__([dim for dim in offered if len(dim.choices) > 1])
        if not self.dims:
            raise ConfigError("space offers a single network: give some dim a second choice")
        self._fixed = {dim.name: dim.choices[0] for dim in offered if len(dim.choices) == 1}
        self._column = {dim.name: column for column, dim in enumerate(self.dims)}
        self._blocks = list(blocks)
        self._block_columns = {
            block: [c for name, c in self._column.items() if f".{block.name}." in f"{name}."]
            for block in self._blocks
        }

    def active(self, picks: IntArray) -> BoolArray:
        """(n, k) True where a dim matters: those of blocks beyond the depth do not."""
        active = np.ones(picks.shape, dtype=bool)
        for block, columns in self._block_columns.items():
            active[:, columns] = self._block_active(picks, block)[:, None]
        return active

    def _block_active(self, picks: IntArray, block: Block) -> BoolArray:
        return self._value(picks, f"depth.s{block.stage}") > block.index

    def _value(self, picks: IntArray, name: str) -> IntArray:
        """(n,) a numeric dim by value."""
        return self._lookup(picks, name, int)

    def _format(self, picks: IntArray, name: str) -> IntArray:
        """(n,) a format dim by code."""
        return self._lookup(picks, name, lambda choice: format_code(str(choice)))

    def _lookup(self, picks: IntArray, name: str, read: Callable[[Choice], int]) -> IntArray:
        if name in self._fixed:
            return np.full(len(picks), read(self._fixed[name]))
        column = self._column[name]
        return np.array([read(c) for c in self.dims[column].choices])[picks[:, column]]


class TableRows:
    """Collects the rows of a network table, column by column.

    Args:
        candidates: How many networks, n.
    """

    def __init__(self, candidates: int) -> None:
        self._candidates = candidates
        self._names: list[str] = []
        self._columns: dict[str, list[IntArray]] = {}
        self._active: list[BoolArray] = []
        self._producers: list[IntArray] = []

    def add(
        self,
        name: str,
        op: str,
        in_channels: IntArray | int,
        out_channels: IntArray | int,
        size: tuple[int, int],
        *,
        kernel: IntArray | int = 0,
        stride: int = 1,
        groups: IntArray | int = 1,
        relu: bool = False,
        weight_format: IntArray | int = -1,
        activation_format: IntArray | int = -1,
        active: BoolArray | bool = True,
        producers: Sequence[IntArray] = (),
    ) -> IntArray:
        """Appends a row and returns its index as an array (n,)."""
        used = np.broadcast_to(np.asarray(active), self._candidates)
        values = {
            "op": OPS.index(op),
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel": kernel,
            "stride": stride,
            "groups": groups,
            "in_height": size[0],
            "in_width": size[1],
            "activation": ACTIVATIONS.index("relu" if relu else "none"),
        }
        for key, value in values.items():
            self._columns.setdefault(key, []).append(np.where(used, value, 0))
        for key, value in (
            ("weight_format", weight_format),
            ("activation_format", activation_format),
        ):
            self._columns.setdefault(key, []).append(np.where(used, value, -1))
        padded = [*producers, *[np.full(self._candidates, -1)] * (2 - len(producers))]
        self._producers.append(np.where(used[:, None], np.stack(padded, axis=1), -1))
        self._active.append(used)
        self._names.append(name)
        return np.full(self._candidates, len(self._names) - 1)

    def table(self) -> LayerTable:
        """Returns the rows as columns of shape (n, L)."""
        columns = {key: np.stack(value, axis=1) for key, value in self._columns.items()}
        return LayerTable(
            names=tuple(self._names),
            active=np.stack(self._active, axis=1),
            producers=np.stack(self._producers, axis=1),
            **columns,
        )


def largest_picks(dims: Sequence[Dim]) -> IntArray:
    """(1, k) the last choice of every dim: the largest network in the widest formats."""
    return np.array([[len(dim.choices) - 1 for dim in dims]], dtype=np.int64)


def smallest_picks(dims: Sequence[Dim]) -> IntArray:
    """(1, k) the first choice of every dim: the smallest network in the narrowest formats."""
    return np.zeros((1, len(dims)), dtype=np.int64)


def picks_of_values(dims: Sequence[Dim], values: Mapping[str, Choice]) -> IntArray:
    """(1, k) the picks of one candidate given by value; dims that are missing read 0.

    Raises:
        ConfigError: A name is no dim, or a value is none of its choices.
    """
    by_name = {dim.name: (column, dim) for column, dim in enumerate(dims)}
    picks = smallest_picks(dims)
    for name, value in values.items():
        if name not in by_name:
            raise ConfigError(f"no dim named {name!r} in this space of {len(dims)} dims")
        column, dim = by_name[name]
        if value not in dim.choices:
            raise ConfigError(f"{name} must be one of {list(dim.choices)}, got {value!r}")
        picks[0, column] = dim.choices.index(value)
    return picks

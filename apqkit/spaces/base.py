"""What every search space shares: canonical form, description by value, supernet."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from apqkit.errors import ConfigError
from apqkit.types import BoolArray, Choice, Dim, IntArray, LayerTable

if TYPE_CHECKING:
    from apqkit.elastic.supernet import ElasticSupernet

__all__ = ["TableSpace", "largest_picks", "picks_of_values", "smallest_picks"]


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

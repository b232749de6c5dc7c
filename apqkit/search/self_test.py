"""Whether scores depend on every dim. Letters: n candidates, k dims, d columns of features.

A search on scores that do not see a dim picks it blindly: the released search of APQ scored every
network as if all its formats were the widest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apqkit.errors import ConfigError
from apqkit.spaces.draws import draw_uniform
from apqkit.types import BoolArray, FloatArray, IntArray, Space

__all__ = ["DimEffects", "check_dims_matter", "dim_effects"]

_NAMED = 3  # dims that a message lists


@dataclass(frozen=True)
class DimEffects:
    """What flips of single dims change.

    Attributes:
        unseen: For each function by name, dims with two choices that it never tells apart.
        leaking: For each function by name, dims that change it although they are inactive.
        free: Dims that change no cost at all.
        untried: Dims that were active in no candidate.
        flips: How many candidates were looked at.
    """

    unseen: Mapping[str, tuple[str, ...]]
    leaking: Mapping[str, tuple[str, ...]]
    free: tuple[str, ...]
    untried: tuple[str, ...]
    flips: int

    @property
    def faults(self) -> list[str]:
        """One sentence for each thing that should not be so."""
        found = [
            f"{name} does not tell choices of {_listed(dims)} apart"
            for name, dims in self.unseen.items()
            if dims
        ]
        found += [
            f"{name} changes with {_listed(dims)} where the dim is inactive"
            for name, dims in self.leaking.items()
            if dims
        ]
        found += [f"no cost depends on {_listed(self.free)}"] if self.free else []
        found += [f"no candidate uses {_listed(self.untried)}"] if self.untried else []
        return found


def dim_effects(
    space: Space,
    costs: Callable[[IntArray], Mapping[str, FloatArray]],
    inputs: Mapping[str, Callable[[IntArray], FloatArray]] | None = None,
    *,
    candidates: int = 4,
    seed: int = 0,
) -> DimEffects:
    """Flips every dim of random candidates over its choices and notes what changes.

    An active dim must show in the network table and in every one of ``inputs``, each choice in
    another way, and must change some cost; an inactive one must change nothing.

    Args:
        space: Whose dims are flipped.
        costs: (n, k) picks -> {metric: (n,)}; NaN is a value like others.
        inputs: What predictors read, by a name for the report: (n, k) picks -> (n, d).
        candidates: How many are flipped; dims that are active in few get more.
        seed: Of the candidates.
    """
    base = _candidates(space, candidates, seed)
    used = space.active(base)
    flips = _flips(space, base)
    marks = {name: _marks(read(flips.picks)) for name, read in (inputs or {}).items()}
    marks["the network table"] = _marks(_table_columns(space, flips.picks))
    price = _marks(np.stack(list(costs(flips.picks).values()), axis=1))
    names = [dim.name for dim in space.dims]

    def named(chosen: BoolArray) -> tuple[str, ...]:
        return tuple(name for name, each in zip(names, chosen, strict=True) if each)

    unused: BoolArray = ~np.asarray(used.any(axis=0))
    marked = {**marks, "a cost": price, "the canonical form": _marks(space.repair(flips.picks))}
    return DimEffects(
        unseen={name: named(flips.alike(each, used) & ~unused) for name, each in marks.items()},
        leaking={name: named(flips.changed(each, ~used)) for name, each in marked.items()},
        free=named(~flips.changed(price, used) & ~unused),
        untried=named(unused),
        flips=len(flips.picks),
    )


def check_dims_matter(
    space: Space,
    costs: Callable[[IntArray], Mapping[str, FloatArray]],
    inputs: Mapping[str, Callable[[IntArray], FloatArray]] | None = None,
    *,
    seed: int = 0,
) -> None:
    """Checks that scores depend on every dim, as :func:`dim_effects` finds it.

    Raises:
        ConfigError: One does not, or something depends on a dim that is inactive.
    """
    faults = dim_effects(space, costs, inputs, seed=seed).faults
    if faults:
        raise ConfigError(
            f"the search cannot see all of space {space.name!r}: {'; '.join(faults)}"
        )


def _listed(dims: Sequence[str]) -> str:
    more = len(dims) - _NAMED
    return ", ".join(dims[:_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class _Flips:
    """Every candidate with every choice of every dim.

    Attributes:
        picks: (f, k) dim after dim, candidate after candidate, choice after choice.
        choices: (k,) numbers of choices.
        candidates: How many were flipped.
    """

    picks: IntArray
    choices: list[int]
    candidates: int

    def by_dim(self, marks: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
        """Returns the marks (candidates, choices) of each dim."""
        ends = np.cumsum([count * self.candidates for count in self.choices])[:-1]
        parts = np.split(marks, ends)
        return [
            part.reshape(self.candidates, count)
            for part, count in zip(parts, self.choices, strict=True)
        ]

    def alike(self, marks: NDArray[np.uint64], used: BoolArray) -> BoolArray:
        """(k,) True for dims of which two choices are alike in every candidate that uses them."""
        found = []
        for part, rows in zip(self.by_dim(marks), used.T, strict=True):
            mine = part[rows].T
            found.append(len(np.unique(mine, axis=0)) < len(mine) if rows.any() else True)
        return np.array(found)

    def changed(self, marks: NDArray[np.uint64], where: BoolArray) -> BoolArray:
        """(k,) True for dims that change a mark in one of the candidates (n, k) chosen."""
        parts = zip(self.by_dim(marks), where.T, strict=True)
        return np.array([bool((part[rows] != part[rows][:, :1]).any()) for part, rows in parts])


def _flips(space: Space, base: IntArray) -> _Flips:
    counts = [len(dim.choices) for dim in space.dims]
    blocks = []
    for column, count in enumerate(counts):
        block = np.repeat(base, count, axis=0)
        block[:, column] = np.tile(np.arange(count), len(base))
        blocks.append(block)
    return _Flips(np.concatenate(blocks), counts, len(base))


def _candidates(space: Space, count: int, seed: int) -> IntArray:
    """(c, k) random candidates, and more in which dims are active that are in none of these."""
    drawn = draw_uniform(space, 64 * count, np.random.default_rng(seed))
    used = space.active(drawn)
    chosen = list(range(count))
    for column in range(used.shape[1]):
        if not used[chosen, column].any() and used[:, column].any():
            chosen.append(int(used[:, column].argmax()))
    return drawn[chosen]


def _table_columns(space: Space, picks: IntArray) -> FloatArray:
    """(n, d) what a network table says of shapes and formats."""
    table = space.network(picks)
    columns = (
        table.active, table.in_channels, table.out_channels, table.kernel, table.stride,
        table.groups, table.in_height, table.in_width, table.weight_format,
        table.activation_format,
    )  # fmt: skip
    return np.concatenate(columns, axis=1).astype(np.float64)


def _marks(columns: FloatArray | IntArray) -> NDArray[np.uint64]:
    """(n,) a number for each row; equal rows have equal ones."""
    if columns.ndim != 2:
        raise ConfigError(f"what predictors read must have shape (n, d), got {columns.shape}")
    exact = np.ascontiguousarray(columns, dtype=np.float64) + 0.0  # -0 is 0
    words = np.random.default_rng(0).integers(0, 2**64, exact.shape[1], dtype=np.uint64)
    bits = exact.view(np.uint64)
    mixed = (bits ^ (bits >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((mixed @ (words | np.uint64(1))).astype(np.uint64))

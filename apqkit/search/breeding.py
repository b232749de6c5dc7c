"""Children of candidates: crossover by dims, blocks, stages or roles; mutation by role.

Letters: n children, k dims, g groups of dims.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apqkit.search.problem import MutationRates
from apqkit.types import BoolArray, Dim, FloatArray, IntArray, Space

__all__ = ["Breeder"]

_CROSSOVER_CHANCE = 0.8
_STRENGTHS = (0.5, 1.0, 2.0)  # times the rates; each child draws one
_STEP_CHANCE = 0.6  # a mutation goes to a neighbouring choice rather than to any
_SIBLING_CHANCE = 0.5  # what appears is like the block before it rather than anything
_WHOLE_NETWORK_CHANCE = 0.25  # a move of the base format is not of one stage alone

_BLOCK = re.compile(r"b(\d+)")

_Small = NDArray[np.int16]
"""Picks while children are made: a quarter of the memory is twice the speed."""


class Breeder:
    """Makes children of candidates of one space.

    Args:
        space: Whose candidates they are.
        rates: How much children change.
    """

    def __init__(self, space: Space, rates: MutationRates) -> None:
        self._space = space
        self._rates = rates
        self._counts = np.array([len(dim.choices) for dim in space.dims], dtype=np.int16)
        self._chances = _chances(space.dims, rates)
        self._groups = _groupings(space.dims)
        self._siblings = _siblings(space.dims)
        self._moves = _FormatMoves(space.dims)

    def children(
        self, parents: IntArray, mothers: IntArray, fathers: IntArray, rng: np.random.Generator
    ) -> IntArray:
        """(n, k) a child of each couple, not in canonical form.

        What only one parent uses comes from that parent. What neither uses is drawn, or is as in
        the block before it: a layer that appears does not start at its first choices.

        Args:
            parents: (p, k) canonical.
            mothers: (n,) indices.
            fathers: (n,) indices.
            rng: Source of all draws.
        """
        used = self._space.active(parents)
        small = parents.astype(np.int16)
        takes = self._crossed(len(mothers), rng)
        by_mother, by_father = used[mothers], used[fathers]
        takes = np.where(by_mother == by_father, takes, by_father)
        found = np.where(takes, small[fathers], small[mothers])
        self._fill(found, ~(by_mother | by_father), rng)
        self._mutate(found, rng)
        self._moves.apply(found, self._rates.base_format, rng)
        return found.astype(np.int64)

    def _crossed(self, count: int, rng: np.random.Generator) -> BoolArray:
        """(n, k) True where a child takes after its father."""
        takes = np.zeros((count, len(self._counts)), dtype=bool)
        share = _CROSSOVER_CHANCE / len(self._groups)
        kinds = np.floor(rng.random(count) / share).astype(np.int64)  # the last kind is none
        for kind, groups in enumerate(self._groups):
            rows = np.flatnonzero(kinds == kind)
            coins = rng.integers(0, 2, (len(rows), groups.max() + 1), dtype=np.bool_)
            takes[rows] = coins[:, groups]
        return takes

    def _fill(self, picks: _Small, missing: BoolArray, rng: np.random.Generator) -> None:
        """Sets what is missing (n, k), in place."""
        at = np.flatnonzero(missing)
        columns = at % picks.shape[1]
        flat = picks.reshape(-1)
        alike = (rng.random(len(picks)) < _SIBLING_CHANCE)[at // picks.shape[1]]
        alike &= self._siblings[columns] >= 0
        flat[at] = self._anything(columns, rng)
        at, columns = at[alike], columns[alike]
        flat[at] = flat[at - columns + self._siblings[columns]]

    def _mutate(self, picks: _Small, rng: np.random.Generator) -> None:
        strengths = rng.choice(np.array(_STRENGTHS, dtype=np.float32), (len(picks), 1))
        draws = rng.random(picks.shape, dtype=np.float32)
        at = np.flatnonzero(draws < self._chances * strengths)
        columns = at % picks.shape[1]
        flat = picks.reshape(-1)
        steps = np.where(rng.integers(0, 2, len(at), dtype=np.bool_), 1, -1)
        neighbours = np.clip(flat[at] + steps, 0, self._counts[columns] - 1)
        near = rng.random(len(at)) < _STEP_CHANCE
        flat[at] = np.where(near, neighbours, self._anything(columns, rng))

    def _anything(self, columns: IntArray, rng: np.random.Generator) -> _Small:
        """(i,) a choice of each of these dims."""
        shares = rng.random(len(columns), dtype=np.float32)
        # A share just below 1 times a count may round up to the count.
        drawn = (shares * self._counts[columns]).astype(np.int16)
        return np.asarray(np.minimum(drawn, self._counts[columns] - 1))


class _FormatMoves:
    """Moves of the base format: all of a stage, or of the network, takes one format.

    Weights, activations, or both; a dim that does not offer the format keeps its own.
    """

    def __init__(self, dims: Sequence[Dim]) -> None:
        names = [dim.name.split(".") for dim in dims]
        is_quant = np.array([dim.role == "quant" for dim in dims])
        sides = np.array([parts[0] for parts in names])
        stages = np.array([".".join(parts[1:2]) for parts in names])
        formats = sorted(
            {str(choice) for dim in dims if dim.role == "quant" for choice in dim.choices}
        )
        scopes = [is_quant & (stages == stage) for stage in np.unique(stages[is_quant])]
        self._stage = self._moves(dims, scopes, sides, formats)
        self._whole = self._moves(dims, [is_quant], sides, formats)

    @staticmethod
    def _moves(
        dims: Sequence[Dim],
        scopes: Sequence[BoolArray],
        sides: NDArray[np.str_],
        formats: Sequence[str],
    ) -> _Small:
        """(m, k) what each move sets a dim to, -1 where it leaves it."""
        picks_of = {
            name: [_place(dim, name) if dim.role == "quant" else -1 for dim in dims]
            for name in formats
        }
        found = []
        for scope in scopes:
            parts = [scope, *(scope & (sides == side) for side in np.unique(sides[scope]))]
            found += [np.where(part, picks_of[name], -1) for part in parts for name in formats]
        moves = np.array(found, dtype=np.int16).reshape(-1, len(dims))
        return np.unique(moves[(moves >= 0).any(axis=1)], axis=0)

    def apply(self, picks: _Small, chance: float, rng: np.random.Generator) -> None:
        """Moves a share of children (n, k) in place."""
        draws = rng.random((2, len(picks)))
        moved, whole = draws[0] < chance, draws[1] < _WHOLE_NETWORK_CHANCE
        for moves, chosen in ((self._whole, moved & whole), (self._stage, moved & ~whole)):
            rows = np.flatnonzero(chosen)
            if len(rows) and len(moves):
                drawn = moves[rng.integers(0, len(moves), len(rows))]
                picks[rows] = np.where(drawn >= 0, drawn, picks[rows])


def _place(dim: Dim, name: str) -> int:
    return next((at for at, choice in enumerate(dim.choices) if str(choice) == name), -1)


def _chances(dims: Sequence[Dim], rates: MutationRates) -> FloatArray:
    """(k,) chance that a dim mutates, so that each role changes as often as it should."""
    roles = np.array([dim.role for dim in dims])
    chances = np.zeros(len(roles), dtype=np.float32)
    for role, expected in (("arch", rates.arch), ("prune", rates.prune), ("quant", rates.quant)):
        members = roles == role
        if members.any():
            chances[members] = min(1.0, expected / members.sum())
    return np.asarray(chances)


def _groupings(dims: Sequence[Dim]) -> list[IntArray]:
    """Returns labels (k,) of dims that move together: each alone, by block, stage and role."""
    names = [dim.name.split(".") for dim in dims]
    labels = (
        [dim.name for dim in dims],
        [".".join(parts[1:3]) for parts in names],
        [".".join(parts[1:2]) for parts in names],
        [dim.role for dim in dims],
    )
    return [np.unique(each, return_inverse=True)[1].astype(np.int64) for each in labels]


def _siblings(dims: Sequence[Dim]) -> IntArray:
    """(k,) the same dim of the block before, -1 where there is none with the same choices."""
    columns = {(dim.name, len(dim.choices)): column for column, dim in enumerate(dims)}
    found = []
    for dim in dims:
        parts = dim.name.split(".")
        block = _BLOCK.fullmatch(parts[2]) if len(parts) > 2 else None
        if block:
            parts[2] = f"b{int(block[1]) - 1}"
        name = ".".join(parts)
        found.append(columns.get((name, len(dim.choices)), -1) if block else -1)
    return np.array(found)

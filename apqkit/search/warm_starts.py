"""Candidates from which a search starts well. Letters: n candidates, k dims, a architectures.

Formats: one throughout, or allocated exactly for a given architecture. An earlier front, such as
that of another device, is a warm start as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from apqkit.cost.allocation import AllocationProblem, allocate
from apqkit.errors import LimitError
from apqkit.search.problem import Problem
from apqkit.spaces.base import smallest_picks
from apqkit.spaces.draws import draw_hierarchical, with_format
from apqkit.types import Dim, FloatArray, IntArray

__all__ = ["allocated_starts", "uniform_starts"]

_MOST_CHOICES = 64  # combinations of formats of one layer


def uniform_starts(
    problem: Problem, formats: Sequence[tuple[str, str]], count: int, rng: np.random.Generator
) -> IntArray:
    """(n, k) architectures in one (weight, activation) format throughout.

    For each pair of formats the smallest architecture, and random ones up to ``count`` in all.
    """
    each = max(1, count // max(len(formats), 1))
    found = [np.zeros((0, len(problem.space.dims)), dtype=np.int64)]
    for weights, activations in formats:
        drawn = draw_hierarchical(problem.space, each - 1, rng)
        start = np.concatenate([smallest_picks(problem.space.dims), drawn])
        found.append(with_format(problem.space, start, weights, activations))
    return np.unique(np.concatenate(found), axis=0)


def allocated_starts(problem: Problem, architectures: IntArray, *, points: int = 4) -> IntArray:
    """(n, k) architectures with formats allocated exactly, as far as scores and costs add up.

    A layer's formats are priced and scored one by one: what they add to the costs of the network
    in its first formats, and what they take from the accuracy of the network in its last. These
    sums go to :func:`apqkit.cost.allocation.allocate`, under the problem's limits and, for each
    cost that is an objective, under limits between its least and its largest sum.

    Args:
        problem: What is searched; its score is asked once an architecture.
        architectures: (a, k) picks whose formats do not count.
        points: Limits that are tried for each objective, fewer where they exclude each other.
    """
    space = problem.space
    slots = _slots(space.dims)
    found = [np.zeros((0, len(space.dims)), dtype=np.int64)]
    for architecture in space.repair(architectures) if slots else ():
        tables = _tables(problem, architecture, slots)
        for limits in _limit_sets(problem, tables, points):
            picks = _allocated(tables, slots, limits, architecture)
            if picks is not None:
                found.append(picks[None])
    return np.unique(space.repair(np.concatenate(found)), axis=0)


@dataclass(frozen=True)
class _Slot:
    """The format dims of one layer.

    Attributes:
        name: Where.
        columns: Of picks.
        choices: (c, columns) combinations.
    """

    name: str
    columns: IntArray
    choices: IntArray


@dataclass(frozen=True)
class _Tables:
    """What each combination of each slot does.

    Attributes:
        losses: (slots, c) of accuracy; infinite beyond a slot's own combinations.
        costs: By metric (slots, c) what it adds to ``base``.
        base: By metric the cost in the first formats.
    """

    losses: FloatArray
    costs: Mapping[str, FloatArray]
    base: Mapping[str, float]


def _slots(dims: Sequence[Dim]) -> list[_Slot]:
    members: dict[str, list[int]] = {}
    for index, dim in enumerate(dims):
        if dim.role == "quant":
            members.setdefault(dim.name.partition(".")[2], []).append(index)
    slots = []
    for name, columns in members.items():
        counts = [len(dims[column].choices) for column in columns]
        if np.prod(counts) <= _MOST_CHOICES:
            slots.append(_slot(name, columns, counts))
        else:
            slots += [
                _slot(dims[column].name, [column], [count])
                for column, count in zip(columns, counts, strict=True)
            ]
    return slots


def _slot(name: str, columns: Sequence[int], counts: Sequence[int]) -> _Slot:
    choices = np.array(list(product(*(range(count) for count in counts))))
    return _Slot(name, np.array(columns), choices)


def _tables(problem: Problem, architecture: IntArray, slots: Sequence[_Slot]) -> _Tables:
    first, last = architecture.copy(), architecture.copy()
    for slot in slots:
        first[slot.columns], last[slot.columns] = slot.choices[0], slot.choices[-1]
    size = max(len(slot.choices) for slot in slots)
    rows = np.stack([_moved(first, slots), _moved(last, slots)])
    values = problem.score(problem.space.repair(rows.reshape(-1, len(architecture))))
    by_row = {name: np.split(each, 2) for name, each in values.items()}
    owner = np.repeat(np.arange(len(slots)), [len(slot.choices) for slot in slots])
    place = np.concatenate([np.arange(len(slot.choices)) for slot in slots])

    def table(differences: FloatArray) -> FloatArray:
        found = np.full((len(slots), size), np.inf)
        found[owner, place] = differences
        return found

    accuracy = by_row["accuracy"][1]
    names = [name for name in values if name != "accuracy"]
    return _Tables(
        losses=table(accuracy[0] - accuracy[1:]),
        costs={name: table(by_row[name][0][1:] - by_row[name][0][0]) for name in names},
        base={name: float(by_row[name][0][0]) for name in names},
    )


def _moved(picks: IntArray, slots: Sequence[_Slot]) -> IntArray:
    """(1 + c, k) picks (k,), then with every combination of each slot."""
    rows = [picks[None]]
    for slot in slots:
        block = np.repeat(picks[None], len(slot.choices), axis=0)
        block[:, slot.columns] = slot.choices
        rows.append(block)
    return np.concatenate(rows)


def _limit_sets(problem: Problem, tables: _Tables, points: int) -> list[dict[str, float]]:
    limits = {name: limit for name, limit in problem.limits.items() if name in tables.costs}
    found = [limits]
    for name in problem.objectives:
        if name in tables.costs:
            sums = np.where(np.isfinite(tables.costs[name]), tables.costs[name], np.nan)
            least, most = (float(each(sums, axis=1).sum()) for each in (np.nanmin, np.nanmax))
            highest = min(tables.base[name] + most, limits.get(name, np.inf))
            values = np.linspace(tables.base[name] + least, highest, points + 2)[1:-1]
            found += [{**limits, name: float(value)} for value in values]
    return found


def _allocated(
    tables: _Tables, slots: Sequence[_Slot], limits: Mapping[str, float], architecture: IntArray
) -> IntArray | None:
    """Returns the picks (k,) that lose least under limits, None if none meets them."""
    problem = AllocationProblem(
        layers=[slot.name for slot in slots],
        formats=[str(index) for index in range(tables.losses.shape[1])],
        sensitivity=tables.losses,
        costs={name: tables.costs[name] for name in limits},
        limits={name: limit - tables.base[name] for name, limit in limits.items()},
    )
    try:
        choice = allocate(problem).choice
    except LimitError:
        return None
    picks = architecture.copy()
    for slot, index in zip(slots, choice, strict=True):
        picks[slot.columns] = slot.choices[index]
    return picks

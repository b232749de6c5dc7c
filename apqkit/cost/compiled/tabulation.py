"""Finds what each row of a network table depends on, by trying, and tabulates what it adds.

What a row adds is a function of a few dims. Which, and which of their choices do the same, shows
when one dim after the other is changed in random networks. A table over what was found is filled
from networks that are random in everything else: two networks of one entry that differ in what
the row adds betray a dim, or a choice, that was missed, and a walk from one to the other, dim by
dim, shows which. Where many dims act through few states, as formats along a chain of residuals
do, combinations of two factors that do the same are given one class, again and again, until the
table is small: a functional decomposition (Ashenhurst 1957) that is learnt from examples.
Letters: k dims, L rows, t terms, s samples, e entries of a row's table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from apqkit.cost.compiled.factors import (
    Factor,
    Leaf,
    assign,
    dims_of,
    entries,
    entry_of,
    leaves_of,
    refined,
)
from apqkit.cost.compiled.joining import Joiner
from apqkit.cost.compiled.trials import Marks, Prices, Trials, changed
from apqkit.errors import CostError
from apqkit.types import Dim, FloatArray, IntArray, Progress

__all__ = ["RowTable", "Tabulated", "tabulate"]

_BASES = 32  # networks in which every dim is changed
_FRESH = 4096  # random networks in which no fault may show
_DESIGNED = 8192  # networks a round, at the most, that fill tables
_SEEN = 2  # networks in which an entry must be met
_WALKS = 3  # a row and round
_ROUNDS = 300
_MOST_ENTRIES = 2**16  # filled in some ten seconds
_JOIN_ABOVE = 2**12  # entries from which joining factors is worth its trials
_MOST_JOINED = 2**32  # above, joining is hopeless
_JOIN_CONTEXTS = 24
_MOST_JOINS = 8  # a row
_MOST_HARD = 200  # contexts beside


@dataclass(frozen=True)
class RowTable:
    """What one row adds.

    Attributes:
        factors: What it depends on; none for a constant.
        values: (e, t) the terms of each combination of classes, the last factor running fastest.
    """

    factors: tuple[Factor, ...]
    values: FloatArray


@dataclass(frozen=True)
class Tabulated:
    """What all rows add.

    Attributes:
        rows: One table a row.
        networks: How many were priced to fill and to check them.
    """

    rows: tuple[RowTable, ...]
    networks: int


def tabulate(
    prices: Prices,
    dims: Sequence[Dim],
    names: Sequence[str],
    *,
    rng: np.random.Generator,
    progress: Progress,
) -> Tabulated:
    """Returns what each row of a network table adds, as tables over what it depends on.

    Every entry was met in at least two networks that are random in all else, and some four
    thousand more random networks found no fault. What shows in fewer networks than that can be
    missed: no number of examples proves a function.

    Args:
        prices: What is tabulated.
        dims: The k dims.
        names: The L rows.
        rng: Draws the networks.
        progress: Shows the rows that are done.

    Raises:
        CostError: A row depends on more than a table holds, or on something else than dims.
    """
    learner = _Learner(Trials(prices, dims, len(names), rng), dims, names, rng)
    with progress.task("cost, tabulating rows", len(names)) as advance:
        most = 0
        for done in learner.rounds():
            advance(max(done - most, 0))
            most = max(most, done)
    return learner.result()


@dataclass
class _Row:
    """What is known of a row.

    Attributes:
        factors: Found so far.
        first: (e,) the first sample that has each entry, -1 for none; empty if too many.
        seen: (e,) how many samples have it.
        samples: How many were entered.
        joins: How often its factors were joined.
        settled: Whether its factors are as the last joining left them.
        hard: Networks that showed that joined factors must be kept apart.
    """

    factors: tuple[Factor, ...] = ()
    first: IntArray = field(default_factory=lambda: np.full(1, -1))
    seen: IntArray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    samples: int = 0
    joins: int = 0
    settled: bool = False
    hard: list[IntArray] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Entries of its table."""
        return entries(self.factors)

    @property
    def wants_joining(self) -> bool:
        """Whether its factors may act through fewer states."""
        return self.size > _JOIN_ABOVE and self.joins < _MOST_JOINS and not self.settled

    @property
    def dims(self) -> list[int]:
        """What its factors read."""
        return [dim for factor in self.factors for dim in dims_of(factor)]

    def put(self, factors: Sequence[Factor]) -> None:
        """Takes other factors, for which all samples have to be entered again."""
        self.factors = tuple(factors)
        held = self.size if self.size <= _MOST_ENTRIES else 0
        self.first, self.seen = np.full(held, -1), np.zeros(held, dtype=np.int64)
        self.samples, self.settled = 0, False

    def split(self, dim: int, marks: Marks) -> None:
        """Keeps choices of a dim apart whose marks (choices,) differ."""
        own = Leaf(dim, np.zeros(len(marks), dtype=np.int64), 1)
        others: list[Factor] = []
        for factor in self.factors:
            if isinstance(factor, Leaf) and factor.dim == dim:
                own = factor
            else:
                others.append(factor)
        leaf = refined(own, marks)
        if leaf.count > own.count:
            self.put([*others, leaf])

    def take_apart(self, picks: IntArray) -> None:
        """Undoes what was joined, which was wrong for a network."""
        self.hard.append(picks)
        self.put([leaf for factor in self.factors for leaf in leaves_of(factor)])

    def enter(self, columns: IntArray, marks: Marks) -> tuple[IntArray, IntArray]:
        """Enters those of the samples (k, s), with marks (s,), that were not entered before.

        Returns:
            Pairs of samples that have one entry and different marks.
        """
        new = np.arange(self.samples, columns.shape[1])
        entry = entry_of(self.factors, columns[:, self.samples :])
        self.samples = columns.shape[1]
        unmet = self.first[entry] < 0
        self.first[entry[unmet][::-1]] = new[unmet][::-1]
        self.seen += np.bincount(entry, minlength=len(self.seen))
        clash = marks[self.first[entry]] != marks[new]
        return self.first[entry[clash]], new[clash]

    def lacking(self) -> IntArray:
        """Returns the entries that were not met often enough, as often as they lack samples."""
        return np.repeat(np.arange(len(self.seen)), np.maximum(_SEEN - self.seen, 0))


@dataclass(frozen=True)
class _Turn:
    """A step of a walk that changes what a row adds: the network before it, and its dims."""

    row: int
    picks: IntArray
    dims: tuple[int, ...]


class _Learner:
    """Tries networks until tables explain them all; one use."""

    def __init__(
        self, trials: Trials, dims: Sequence[Dim], names: Sequence[str], rng: np.random.Generator
    ) -> None:
        self._trials = trials
        self._dims = dims
        self._names = names
        self._rng = rng
        self._rows = [_Row() for _ in names]

    def rounds(self) -> Iterator[int]:
        """Learns; yields after each round how many rows are done."""
        self._find_by_changes()
        self._trials.sample(self._trials.drawn(_FRESH))
        fresh = False  # whether the last samples were drawn to find faults
        for _ in range(_ROUNDS):
            if self._mend():
                fresh = False
                continue
            lacking = [(row, row.lacking()) for row in self._rows]
            short = [each for each in lacking if len(each[1])]
            yield len(self._rows) - len(short)
            if fresh and not short:
                return
            self._trials.sample(self._designed(short) if short else self._trials.drawn(_FRESH))
            fresh = not short
        raise CostError(f"what rows of networks add shows no pattern in {_ROUNDS} rounds")

    def result(self) -> Tabulated:
        """Returns the tables."""
        tables = []
        for row, marks in zip(self._rows, self._trials.marks.T, strict=True):
            tables.append(RowTable(row.factors, self._trials.terms(marks[row.first])))
        return Tabulated(tuple(tables), self._trials.networks)

    def _find_by_changes(self) -> None:
        """Gives every row the dims whose change shows in random networks."""
        bases = self._trials.drawn(_BASES)
        choices = self._trials.choices
        parts = [changed(bases, dim, count) for dim, count in enumerate(choices)]
        for dim, marks in enumerate(self._trials.marks_of_parts(parts)):
            by_choice = marks.reshape(_BASES, choices[dim], -1).transpose(2, 1, 0)
            for row, own in zip(self._rows, self._trials.mixed(by_choice), strict=True):
                row.split(dim, own)

    def _mend(self) -> bool:
        """Changes the factors of rows that are at fault or too large; returns whether any is."""
        clashes = {}
        for index, row in enumerate(self._rows):
            if len(row.first):
                pairs = row.enter(self._trials.columns, self._trials.marks[:, index])
                if len(pairs[0]):
                    clashes[index] = pairs
        if clashes:
            self._part(clashes)
            return True
        self._check_sizes()
        large = [index for index, row in enumerate(self._rows) if row.wants_joining]
        for index in large:
            self._join(index)
        return bool(large)

    def _check_sizes(self) -> None:
        for name, row in zip(self._names, self._rows, strict=True):
            if row.size > (_MOST_JOINED if row.wants_joining else _MOST_ENTRIES):
                named = ", ".join(self._dims[dim].name for dim in sorted(row.dims))
                raise CostError(
                    f"row {name!r} cannot be tabulated: it depends on {len(row.dims)} dims in "
                    f"{row.size} combinations, at most {_MOST_ENTRIES} are held: {named}"
                )

    def _part(self, clashes: dict[int, tuple[IntArray, IntArray]]) -> None:
        """Walks between samples that should be alike in a row, and keeps apart what is not."""
        walks = [
            (index, int(one[at]), int(other[at]))
            for index, (one, other) in clashes.items()
            for at in self._rng.permutation(len(one))[:_WALKS]
        ]
        paths = [self._path(*walk) for walk in walks]
        marks = self._trials.marks_of_parts([picks for picks, _ in paths])
        turns = []
        for (index, *_), (picks, units), path_marks in zip(walks, paths, marks, strict=True):
            own = path_marks[:, index]
            steps = np.flatnonzero(own[1:] != own[:-1])
            turns += [_Turn(index, picks[step], units[step]) for step in steps]
            if not len(steps):
                raise CostError(
                    f"row {self._names[index]!r} cannot be tabulated: "
                    f"one network was given different prices"
                )
        self._keep_apart(turns)

    def _path(self, index: int, one: int, other: int) -> tuple[IntArray, list[tuple[int, ...]]]:
        """Returns the networks on the way from one sample to another, and what each step changes.

        A step changes one dim, or all dims of one factor.
        """
        start, end = self._trials.columns[:, one], self._trials.columns[:, other]
        factors = self._rows[index].factors
        known = set(self._rows[index].dims)
        units: list[tuple[int, ...]] = [(dim,) for dim in range(len(start)) if dim not in known]
        units += [dims_of(factor) for factor in factors]
        units = [unit for unit in units if (start[list(unit)] != end[list(unit)]).any()]
        picks = np.tile(start, (len(units) + 1, 1))
        for step, unit in enumerate(units, start=1):
            picks[step:, list(unit)] = end[list(unit)]
        return picks, units

    def _keep_apart(self, turns: Sequence[_Turn]) -> None:
        for turn in turns:
            if len(turn.dims) > 1:
                self._rows[turn.row].take_apart(turn.picks)
        single = [turn for turn in turns if len(turn.dims) == 1]
        if not single:
            return
        dims = [turn.dims[0] for turn in single]
        parts = [
            changed(turn.picks[None], dim, self._trials.choices[dim])
            for turn, dim in zip(single, dims, strict=True)
        ]
        marks = self._trials.marks_of_parts(parts)
        for turn, dim, own in zip(single, dims, marks, strict=True):
            self._rows[turn.row].split(dim, own[:, turn.row])

    def _join(self, index: int) -> None:
        row = self._rows[index]
        fresh = self._trials.drawn(_JOIN_CONTEXTS * (row.joins + 1))
        contexts = np.concatenate([fresh, *(each[None] for each in row.hard[-_MOST_HARD:])])
        joiner = Joiner(self._trials, index, contexts, self._rng)
        row.put(joiner.joined(row.factors, _JOIN_ABOVE))
        row.joins, row.settled = row.joins + 1, True

    def _designed(self, lacking: Sequence[tuple[_Row, IntArray]]) -> IntArray:
        """(s, k) networks with entries that rows lack, random in the rest.

        Rows that share no dim are served by the same networks.
        """
        columns = self._trials.drawn(_DESIGNED).T.copy()
        taken = np.zeros(columns.shape, dtype=bool)
        for row, entry in sorted(lacking, key=lambda each: -len(each[1])):
            free = np.flatnonzero(~taken[row.dims].any(axis=0))[: len(entry)]
            chosen = columns[:, free]
            assign(row.factors, entry[: len(free)], chosen, self._rng)
            columns[:, free] = chosen
            taken[np.array(row.dims)[:, None], free] = True
        return np.asarray(columns[:, taken.any(axis=0)].T)

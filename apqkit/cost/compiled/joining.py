"""Joins factors that act on a row through fewer states than they have combinations."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from apqkit.cost.compiled.factors import Factor, Pair, assign, dims_of, entries, joined
from apqkit.cost.compiled.trials import Trials
from apqkit.types import IntArray

__all__ = ["Joiner"]

_MOST_COMBINED = 24  # classes of two factors together: more seldom act through few
_TRIED_AT_ONCE = 4  # pairs
_GOOD = 0.75  # share of combinations left from which a pair is joined before all were tried


class Joiner:
    """Tries combinations of the factors of one row in some networks.

    Args:
        trials: Prices networks.
        row: Index of the row.
        contexts: (c, k) networks in which every combination is tried.
        rng: Draws choices within classes.
    """

    def __init__(
        self, trials: Trials, row: int, contexts: IntArray, rng: np.random.Generator
    ) -> None:
        self._trials = trials
        self._row = row
        self._contexts = contexts
        self._rng = rng

    def joined(self, factors: Sequence[Factor], most_entries: int) -> list[Factor]:
        """Returns factors in which pairs were joined until their combinations are few.

        Neighbours are tried first: dims that act together mostly stand together.
        """
        found, pairs = list(factors), list[Pair]()
        untried = list(combinations(found, 2))
        while entries(found) > most_entries and (untried or pairs):
            untried.sort(key=_distance)
            pairs += self._pairs(untried[:_TRIED_AT_ONCE])
            untried = untried[_TRIED_AT_ONCE:]
            best = min(pairs, key=_share_left, default=None)
            if best is None or (untried and _share_left(best) > _GOOD):
                continue
            gone = {id(best.left), id(best.right)}
            found = [each for each in found if id(each) not in gone]
            pairs = [each for each in pairs if not gone & {id(each.left), id(each.right)}]
            untried = [each for each in untried if not gone & {id(each[0]), id(each[1])}]
            untried += [(each, best) for each in found]
            found.append(best)
        return found

    def _pairs(self, candidates: Sequence[tuple[Factor, Factor]]) -> list[Pair]:
        """Returns those pairs that act through fewer classes than combinations."""
        small = [each for each in candidates if entries(each) <= _MOST_COMBINED]
        if not small:
            return []
        designs = [self._design(each) for each in small]
        found = []
        for each, marks in zip(small, self._trials.marks_of_parts(designs), strict=True):
            own = marks[:, self._row].reshape(len(self._contexts), -1)
            pair = joined(*each, self._trials.mixed(own.T))
            if _share_left(pair) < 1.0 and _shows_both(pair):
                found.append(pair)
        return found

    def _design(self, pair: tuple[Factor, Factor]) -> IntArray:
        """(c * e, k) every context with every combination of two factors."""
        columns = np.repeat(self._contexts, entries(pair), axis=0).T
        combined = np.tile(np.arange(entries(pair)), len(self._contexts))
        assign(pair, combined, columns, self._rng)
        return np.asarray(columns.T)


def _distance(pair: tuple[Factor, Factor]) -> int:
    one, other = (dims_of(factor) for factor in pair)
    return min(abs(a - b) for a in one for b in other)


def _share_left(pair: Pair) -> float:
    return pair.count / (pair.left.count * pair.right.count)


def _shows_both(pair: Pair) -> bool:
    """Whether every class of either part shows; if not, the contexts were too few."""
    classes = pair.classes.reshape(pair.left.count, -1)
    return all(len(np.unique(side, axis=0)) == len(side) for side in (classes, classes.T))

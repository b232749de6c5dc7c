"""Random networks whose rows are priced to find out what their costs depend on.

Letters: n and s candidates, k dims, L rows, t terms.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from apqkit.types import Dim, FloatArray, IntArray

__all__ = ["Marks", "Prices", "Trials", "changed"]

Prices: TypeAlias = Callable[[IntArray], FloatArray]
"""(n, k) picks to (n, L, t) what each row adds."""

Marks: TypeAlias = NDArray[np.uint64]
"""Numbers that are equal where terms are, to 12 digits."""

_PRICED_AT_ONCE = 2048  # bounds memory and keeps network tables in the cache
_TOGETHER = (0.0, 0.0, 0.0, 0.5, 0.8, 1.0)
_MOST_MIXED = 1024
_NO_NUMBER = -1e300  # stands for NaN, which a mark cannot be made of


class Trials:
    """Prices networks and keeps those that are drawn at random.

    Args:
        prices: What rows cost.
        dims: The k dims.
        rows: L.
        rng: Draws the networks.

    Attributes:
        columns: (k, s) the networks that are kept.
        marks: (s, L) of what their rows add.
        networks: How many were priced.
        choices: (k,) how many each dim has.
    """

    def __init__(
        self, prices: Prices, dims: Sequence[Dim], rows: int, rng: np.random.Generator
    ) -> None:
        self._prices = prices
        self._rng = rng
        words = [dim.name.split(".")[0] for dim in dims]
        self._kinds = np.unique(words, return_inverse=True)[1]
        self._mix = rng.integers(0, 2**63, _MOST_MIXED, dtype=np.uint64) * 2 + 1
        self._found: list[tuple[Marks, FloatArray]] = []  # terms by mark
        self.choices = [len(dim.choices) for dim in dims]
        self.columns = np.zeros((len(dims), 0), dtype=np.int64)
        self.marks: Marks = np.zeros((0, rows), dtype=np.uint64)
        self.networks = 0

    def drawn(self, count: int) -> IntArray:
        """(count, k) random picks; in half of them dims of one kind go together.

        Dims of which each is drawn by itself nearly always make a mixture of everything, and
        what a chain of equal formats does would not be met.
        """
        shares = self._rng.random((count, len(self.choices)))
        together = self._rng.random((count, self._kinds.max() + 1))[:, self._kinds]
        chance = self._rng.choice(_TOGETHER, (count, 1))
        alike = self._rng.random(shares.shape) < chance
        return (np.where(alike, together, shares) * self.choices).astype(np.int64)

    def sample(self, picks: IntArray) -> None:
        """Prices random networks (s, k) and keeps them."""
        values, marks = self._priced(picks)
        self.columns = np.concatenate([self.columns, picks.T], axis=1)
        self.marks = np.concatenate([self.marks, marks])
        found, first = np.unique(marks, return_index=True)
        self._found.append((found, values.reshape(-1, values.shape[-1])[first]))

    def marks_of(self, picks: IntArray) -> Marks:
        """(n, L) the marks of networks (n, k), which are not kept."""
        return self._priced(picks)[1]

    def marks_of_parts(self, parts: Sequence[IntArray]) -> list[Marks]:
        """Returns the marks of several sets of networks, which are priced together."""
        ends = np.cumsum([len(part) for part in parts])
        return np.split(self.marks_of(np.concatenate(parts)), ends[:-1])

    def mixed(self, marks: Marks) -> Marks:
        """(...) one mark for the last axis of marks (..., m)."""
        return np.asarray((marks * self._mix[: marks.shape[-1]]).sum(axis=-1, dtype=np.uint64))

    def terms(self, marks: Marks) -> FloatArray:
        """(e, t) the terms that marks (e,) of kept networks stand for."""
        known = np.concatenate([found for found, _ in self._found])
        values = np.concatenate([values for _, values in self._found])
        known, first = np.unique(known, return_index=True)
        return np.asarray(values[first[np.searchsorted(known, marks)]])

    def _priced(self, picks: IntArray) -> tuple[FloatArray, Marks]:
        self.networks += len(picks)
        starts = range(0, len(picks), _PRICED_AT_ONCE)
        values = np.concatenate([self._prices(picks[s : s + _PRICED_AT_ONCE]) for s in starts])
        mantissa, exponent = np.frexp(np.nan_to_num(values, nan=_NO_NUMBER))
        digits = np.rint(mantissa * 2.0**40).astype(np.int64)
        bits = digits + (exponent.astype(np.int64) << 42)
        return values, self.mixed(bits.view(np.uint64))


def changed(picks: IntArray, column: int, choices: int) -> IntArray:
    """(n * choices, k) each network with every choice of one dim."""
    found = np.repeat(picks, choices, axis=0)
    found[:, column] = np.tile(np.arange(choices), len(picks))
    return found

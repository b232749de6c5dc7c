"""Costs straight from picks: what every row adds to a metric is looked up in a small table.

Letters: n candidates, k dims, L rows of a network table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apqkit.cost.compiled.factors import Factor, Leaf, scaled
from apqkit.cost.compiled.tabulation import RowTable, Tabulated, tabulate
from apqkit.errors import CostError
from apqkit.types import (
    AdditiveCost,
    BoolArray,
    Dim,
    FloatArray,
    IntArray,
    Progress,
    SilentProgress,
    Space,
)

__all__ = ["CompiledCost", "compile_cost"]

_CHUNK = 4096  # candidates; their columns stay in the cache


@dataclass(frozen=True)
class _Lookup:
    """How candidates find in the table of a row what differs between its entries.

    Attributes:
        factors: Their classes, already multiplied, add up to the entry.
        values: The place of each term that differs, and its values by entry.
    """

    factors: tuple[Factor, ...]
    values: tuple[tuple[int, FloatArray], ...]


class CompiledCost:
    """Prices picks without building networks; made by :func:`compile_cost`.

    Args:
        model: Turns sums of terms into metrics.
        dims: The k dims.
        terms: Names of the terms.
        tables: What each row adds.

    Attributes:
        metrics: Names of what it computes, units included.
        entries: How many combinations its tables hold.
        networks: How many networks were priced to fill and to check them.
    """

    def __init__(
        self, model: AdditiveCost, dims: Sequence[Dim], terms: Sequence[str], tables: Tabulated
    ) -> None:
        self.metrics = model.metrics
        self.entries = sum(len(row.values) for row in tables.rows)
        self.networks = tables.networks
        self._model = model
        self._dims = tuple(dims)
        self._choices = np.array([len(dim.choices) for dim in dims])
        self._terms = tuple(terms)
        self._peaks = np.array([term in model.peaks for term in terms])
        constant = [np.where(_varies(row), 0.0, row.values[0]) for row in tables.rows]
        sums, peaks = np.sum(constant, axis=0), np.max(constant, axis=0)
        self._constant = np.where(self._peaks, peaks, sums)
        self._lookups = [_lookup_of(row) for row in tables.rows if _varies(row).any()]

    def __call__(self, picks: IntArray) -> dict[str, FloatArray]:
        """Returns ``{metric: (n,)}`` of picks (n, k); NaN where the device cannot run a candidate.

        Raises:
            CostError: The picks are not those of the space.
        """
        if picks.ndim != 2 or picks.shape[1] != len(self._choices):
            raise CostError(f"picks must be of shape (n, {len(self._choices)}), got {picks.shape}")
        sums = np.repeat(self._constant[:, None], len(picks), axis=1)
        for start in range(0, len(picks), _CHUNK):
            columns = np.ascontiguousarray(picks[start : start + _CHUNK].T, dtype=np.intp)
            self._check(columns)
            self._add(columns, sums[:, start : start + _CHUNK])
        return self._model.totals(dict(zip(self._terms, sums, strict=True)))

    def _check(self, columns: IntArray) -> None:
        low, high = columns.min(axis=1), columns.max(axis=1)
        wrong = np.flatnonzero((low < 0) | (high >= self._choices))
        for at in wrong[:1]:
            got = low[at] if low[at] < 0 else high[at]
            raise CostError(
                f"picks of {self._dims[at].name} must be 0 to {self._choices[at] - 1}, got {got}"
            )

    def _add(self, columns: IntArray, sums: FloatArray) -> None:
        """Adds what the rows cost for candidates (k, n) to sums (t, n), or raises peaks."""
        for each in self._lookups:
            entry = _index(each.factors[0], columns)
            for factor in each.factors[1:]:
                entry += _index(factor, columns)
            for term, values in each.values:
                add = np.maximum if self._peaks[term] else np.add
                add(sums[term], values.take(entry, mode="clip"), out=sums[term])


def _index(factor: Factor, columns: IntArray) -> IntArray:
    """(n,) the class of candidates (k, n), of factors that :func:`scaled` returned."""
    if isinstance(factor, Leaf):
        return np.asarray(factor.classes.take(columns[factor.dim], mode="clip"))
    at = _index(factor.left, columns)
    at += _index(factor.right, columns)
    return np.asarray(factor.classes.take(at, mode="clip"))


def _varies(row: RowTable) -> BoolArray:
    """(t,) whether a term differs between the entries of a row."""
    first = row.values[0]
    same = (row.values == first) | (np.isnan(row.values) & np.isnan(first))
    return np.asarray(~same.all(axis=0))


def _lookup_of(row: RowTable) -> _Lookup:
    step, factors = 1, []
    for factor in reversed(row.factors):
        factors.append(scaled(factor, step))
        step *= factor.count
    terms = np.flatnonzero(_varies(row)).tolist()
    values = ((term, np.ascontiguousarray(row.values[:, term])) for term in terms)
    return _Lookup(tuple(factors), tuple(values))


def compile_cost(
    model: AdditiveCost, space: Space, *, seed: int = 0, progress: Progress | None = None
) -> CompiledCost:
    """Returns a function of picks that equals ``model.cost(space.network(picks))``.

    It is for searches: no network table is built, and a candidate costs a few dozen look-ups.
    What a row adds is found by pricing ten thousand networks or more, as
    :func:`apqkit.cost.compiled.tabulation.tabulate` says; a model that notes the layers it meets
    notes those of all of them.

    Args:
        model: Prices rows.
        space: Of the picks; they need not be in canonical form.
        seed: Of the networks that are tried.
        progress: Shows the rows that are done.

    Raises:
        CostError: A row depends on more than a table holds; the model itself prices networks.
    """
    rng = np.random.default_rng(seed)
    first = space.network(np.zeros((1, len(space.dims)), dtype=np.int64))
    terms = tuple(model.layer_terms(first))

    def prices(picks: IntArray) -> FloatArray:
        found = model.layer_terms(space.network(picks))
        return np.stack([found[term] for term in terms], axis=-1)

    tables = tabulate(
        prices, space.dims, first.names, rng=rng, progress=progress or SilentProgress()
    )
    return CompiledCost(model, space.dims, terms, tables)

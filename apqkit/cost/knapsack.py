"""Exact multiple-choice knapsack: one choice a group, sums limited, costs of pairs included.

The linear relaxation (:func:`scipy.optimize.linprog`) prices the limits. At any prices, what each
choice costs above the cheapest of its group bounds from below what a solution with that choice
loses (Sinha and Zoltners 1979; Pisinger 1995). A search that decides one group after another and
keeps the most promising beginnings finds a solution and, as a rule, proves by these bounds that
none is better. Where it cannot, :func:`scipy.optimize.milp` solves the program of the choices that
the bounds leave in question.

Exact means: no solution loses less by more than 1e-9 of what this one loses above the least of
each group, or, where the integer program decides, by 1e-10 of the largest loss in it. Limits hold
to 1e-9.

Letters: G groups, F choices, E edges, K limits, P lower bounds, R rows that are summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csc_array

from apqkit.types import BoolArray, FloatArray, IntArray

__all__ = ["SLACK", "Knapsack", "solve"]

SLACK = 1e-9
"""Relative; a limit that equals a sum of costs must not fail by rounding."""

_STEP = 0.2  # relative; prices beside the best bound solutions that spend otherwise
_UNIT = 1e4  # largest coefficient in a program; solvers have absolute tolerances


@dataclass(frozen=True)
class Knapsack:
    """What is summed over a solution: row 0 is minimised, rows 1 to K are limited.

    Attributes:
        own: (1 + K, G, F) by the choice of each group.
        pairs: (1 + K, E, F, F) by the choices of the two groups of an edge.
        ends: (E, 2) groups of an edge.
        allowed: (G, F) what can be chosen; one a group at least.
        limits: (K,) largest sums.
    """

    own: FloatArray
    pairs: FloatArray
    ends: IntArray
    allowed: BoolArray
    limits: FloatArray

    def sums(self, chosen: IntArray) -> FloatArray:
        """(1 + K,) sums over a solution, (G,) choices."""
        own = self.own[:, np.arange(len(chosen)), chosen].sum(axis=1)
        first, second = chosen[self.ends.T]
        return np.asarray(own + self.pairs[:, np.arange(len(first)), first, second].sum(axis=1))


def solve(knapsack: Knapsack, *, widths: Sequence[int] = (30, 300, 3000)) -> IntArray | None:
    """Returns the (G,) choices that lose least within the limits, or None if none are within.

    Args:
        knapsack: What is to be solved.
        widths: How many beginnings each search in turn keeps. A matter of speed: where none of
            them proves its solution the best, the integer program decides.
    """
    knapsack = _reduced(knapsack)
    if not knapsack.allowed.any(axis=1).all():
        return None
    program = _Program.of(knapsack, _alike(knapsack.pairs))
    bounds = program.bounds()
    best, ceiling = None, np.inf  # only what loses less than the ceiling is of interest
    for width in widths:
        found, left_out = _Search.of(program, bounds, ceiling).best(width)
        if found is not None:
            lost = knapsack.sums(found)[0]
            best, ceiling = found, lost - SLACK * abs(lost)
        if left_out >= ceiling:
            return best
    found = program.minimised(bounds, ceiling)
    return found if found is not None and knapsack.sums(found)[0] < ceiling else best


def _reduced(knapsack: Knapsack) -> Knapsack:
    """Returns it with fewer choices and edges, losses above the least, and slack in the limits."""
    own, ends = knapsack.own.copy(), knapsack.ends
    inner = ends[:, 0] == ends[:, 1]  # within a group, it costs what staying costs
    same = np.einsum("reff->ref", knapsack.pairs[:, inner])
    _add(own, ends[inner, 0], same)
    # What cannot be avoided must not drown what can.
    own[0] -= np.where(knapsack.allowed, own[0], np.inf).min(axis=1, keepdims=True)
    costly = ~inner & knapsack.pairs.any(axis=(0, 2, 3))
    pairs, limits = knapsack.pairs[:, costly], knapsack.limits + SLACK * np.abs(knapsack.limits)
    allowed = _fitting(own, pairs, knapsack.allowed, limits)
    if not costly.any():
        allowed = _undominated(own, allowed)
    return Knapsack(own, pairs, ends[costly], allowed, limits)


def _fitting(
    own: FloatArray, pairs: FloatArray, allowed: BoolArray, limits: FloatArray
) -> BoolArray:
    """(G, F) choices that are within each limit where all others are as cheap as can be."""
    least = np.where(allowed, own[1:], np.inf).min(axis=2)
    others = least.sum(axis=1) + pairs[1:].min(axis=(2, 3)).sum(axis=1)
    excess = own[1:] - least[:, :, None]
    return np.asarray(allowed & (excess <= (limits - others)[:, None, None]).all(axis=0))


def _add(values: FloatArray, groups: IntArray, more: FloatArray) -> None:
    """Adds (R, n, ...) to (R, G, ...) values, at the n groups, which may repeat."""
    np.add.at(values.swapaxes(0, 1), groups, more.swapaxes(0, 1))


def _undominated(values: FloatArray, allowed: BoolArray) -> BoolArray:
    """(G, F) choices that no other of the group beats or equals in all of (R, G, F) values."""
    worse_or_equal = (values[..., :, None] >= values[..., None, :]).all(axis=0)
    worse = worse_or_equal & (values[..., :, None] > values[..., None, :]).any(axis=0)
    number = np.arange(values.shape[-1])
    same = worse_or_equal & ~worse & (number[:, None] > number)  # of equal ones the first stays
    beaten = ((worse | same) & allowed[:, None, :]).any(axis=2)
    return allowed & ~beaten


def _alike(pairs: FloatArray) -> IntArray:
    """(E, 2, F) the first choice that costs the same at that end in all of (R, E, F, F) pairs."""
    alike = np.zeros((pairs.shape[1], 2, pairs.shape[2]), dtype=np.int64)
    for edge in range(len(alike)):
        for side, costs in enumerate((pairs[:, edge], pairs[:, edge].swapaxes(1, 2))):
            same = (costs[:, :, None] == costs[:, None, :]).all(axis=(0, 3))
            alike[edge, side] = same.argmax(axis=1)
    return alike


@dataclass(frozen=True)
class _Bounds:
    """Lower bounds of what a solution loses.

    Attributes:
        least: (P,) of any solution.
        own: (P, G, F) what a choice adds, infinite where it is not allowed.
        pairs: (P, E, F, F) what the two choices of an edge add.
    """

    least: FloatArray
    own: FloatArray
    pairs: FloatArray

    @classmethod
    def of(cls, knapsack: Knapsack, prices: FloatArray, moved: FloatArray) -> "_Bounds":
        """Returns the bounds at these prices, and with each of them raised and lowered.

        Any values give valid bounds, the duals of the linear relaxation the best.

        Args:
            knapsack: What is summed.
            prices: (K,) what a unit of each limited sum is worth; not negative.
            moved: (E, 2, F) what is counted at the ends instead of on the edge.
        """
        step = _STEP * np.eye(len(prices))
        factors = np.concatenate([np.ones((1, len(prices))), 1.0 + step, 1.0 - step])
        weights = np.concatenate([np.ones((len(factors), 1)), factors * prices], axis=1)
        moved = np.multiply.outer(factors.prod(axis=1), moved)
        own = np.tensordot(weights, knapsack.own, axes=1)
        for side in (0, 1):
            _add(own, knapsack.ends[:, side], moved[:, :, side])
        own = np.where(knapsack.allowed, own, np.inf)
        pairs = np.tensordot(weights, knapsack.pairs, axes=1)
        pairs -= moved[:, :, 0, :, None] + moved[:, :, 1, None, :]
        least_own = own.min(axis=2, keepdims=True)
        least_pair = pairs.min(axis=(2, 3), keepdims=True)
        least = least_own.sum(axis=(1, 2)) + least_pair.sum(axis=(1, 2, 3))
        least -= weights[:, 1:] @ knapsack.limits
        return cls(least, own - least_own, pairs - least_pair)

    def choices(self, ceiling: float) -> BoolArray:
        """(G, F) choices of solutions that may lose less than a ceiling."""
        return np.asarray((self.own + self.least[:, None, None] < ceiling).all(axis=0))

    def changes(self, ceiling: float) -> BoolArray:
        """(E, F, F) pairs of choices of solutions that may lose less than a ceiling."""
        return np.asarray((self.pairs + self.least[:, None, None, None] < ceiling).all(axis=0))


@dataclass(frozen=True)
class _Program:
    """Integer program whose variables are choices, then pairs of choices of each edge.

    Attributes:
        knapsack: What it solves.
        alike: (E, 2, F) the first choice that costs the same at that end.
        changes: (E, F, F) pairs that have a variable: the first of those that cost the same.
        rows: (1 + K, V) coefficients of what is summed.
        equalities: (G + 2 E F, V) one choice a group, and pairs that agree with the choices.
        totals: (G + 2 E F,) their right sides.
    """

    knapsack: Knapsack
    alike: IntArray
    changes: BoolArray
    rows: FloatArray
    equalities: csc_array
    totals: FloatArray

    @classmethod
    def of(cls, knapsack: Knapsack, alike: IntArray) -> "_Program":
        first = alike == np.arange(alike.shape[2])
        changes = first[:, 0, :, None] & first[:, 1, None, :]
        own, pairs = knapsack.own[:, knapsack.allowed], knapsack.pairs[:, changes]
        rows = np.concatenate([own, pairs], axis=1)
        equalities = _equalities(knapsack, alike, changes)
        totals = np.zeros(equalities.shape[0])
        totals[: len(knapsack.allowed)] = 1.0
        return cls(knapsack, alike, changes, rows, equalities, totals)

    def bounds(self) -> _Bounds:
        """Returns the bounds of the linear relaxation, weak ones if it finds no solution."""
        rows, limits, scales = self._scaled(np.ones(self.rows.shape[1], dtype=bool))
        result = linprog(
            rows[0],
            A_ub=rows[1:],
            b_ub=limits,
            A_eq=self.equalities,
            b_eq=self.totals,
            bounds=(0.0, None),
            method="highs-ds",
        )
        prices, duals = np.zeros(len(limits)), np.zeros(len(self.totals))
        if result.x is not None:  # exact limits can be just out of its reach
            prices = np.maximum(-result.ineqlin.marginals, 0.0) * scales[0] / scales[1:]
            duals = result.eqlin.marginals * scales[0]
        count, choices = self.knapsack.allowed.shape
        moved = duals[count:].reshape(2, -1, choices).swapaxes(0, 1)
        moved = np.take_along_axis(moved, self.alike, axis=2)
        return _Bounds.of(self.knapsack, prices, moved)

    def minimised(self, bounds: _Bounds, ceiling: float) -> IntArray | None:
        """Returns the (G,) best choices of those that may lose less than a ceiling, or None.

        HiGHS 1.12 can print a line when it repairs a solution, which no option turns off.
        """
        core = bounds.choices(ceiling)
        if not core.any(axis=1).all():
            return None
        own, pairs = core[self.knapsack.allowed], bounds.changes(ceiling)[self.changes]
        kept = np.concatenate([own, pairs])
        rows, limits, _ = self._scaled(kept)
        constraints = [
            LinearConstraint(self.equalities[:, kept], self.totals, self.totals),
            LinearConstraint(rows[1:], ub=limits),
        ]
        whole = np.repeat([1, 0], [own.sum(), pairs.sum()])
        while True:
            result = milp(
                rows[0],
                constraints=constraints,
                bounds=Bounds(0.0, 1.0),
                integrality=whole,
                options={"mip_rel_gap": 0.0},
            )
            if result.x is None:
                return None
            taken = np.round(result.x) * whole
            table = np.zeros(core.shape)
            table[core] = taken[: own.sum()]
            chosen = np.asarray(table.argmax(axis=1))
            if (self.knapsack.sums(chosen)[1:] <= self.knapsack.limits).all():
                return chosen
            # Almost whole choices were within the limits, whole ones are not.
            constraints.append(LinearConstraint(taken[None], ub=len(core) - 1))

    def _scaled(self, kept: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Returns rows, limits and what they were divided by, so that units do not matter.

        The tolerance of 1e-6 of the solver becomes 1e-10 of the largest coefficient or limit.
        """
        rows, limits = self.rows[:, kept], self.knapsack.limits
        scales = np.abs(rows).max(axis=1, initial=1e-300)
        scales[1:] = np.maximum(scales[1:], np.abs(limits))
        scales /= _UNIT
        return rows / scales[:, None], limits / scales[1:], scales


def _equalities(knapsack: Knapsack, alike: IntArray, changes: BoolArray) -> csc_array:
    count, choices = knapsack.allowed.shape
    group, _ = np.nonzero(knapsack.allowed)
    edge, *pair = np.nonzero(changes)
    number = np.cumsum(knapsack.allowed).reshape(count, choices) - 1
    parts = [(group, np.arange(len(group)), np.ones(len(group)))]
    for side in (0, 1):
        ends, first = knapsack.ends[:, side], count + side * len(alike) * choices
        rows = first + edge * choices + pair[side]
        parts.append((rows, len(group) + np.arange(len(edge)), np.ones(len(edge))))
        at, chosen = np.nonzero(knapsack.allowed[ends])
        rows = first + at * choices + alike[at, side, chosen]
        parts.append((rows, number[ends[at], chosen], -np.ones(len(at))))
    rows, columns, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    shape = (count + 2 * len(alike) * choices, len(group) + len(edge))
    return coo_array((values, (rows, columns)), shape=shape).tocsc()


@dataclass(frozen=True)
class _States:
    """Beginnings of solutions, n of them.

    Attributes:
        sums: (R, n) what is minimised, what is limited, lower bounds.
        chosen: (n, G) choices of the groups that are decided.
    """

    sums: FloatArray
    chosen: IntArray


@dataclass(frozen=True)
class _Search:
    """Decides one group after another and keeps the beginnings with the least bounds.

    Attributes:
        program: With what is summed.
        start: (R,) sums where nothing is decided.
        own: (R, G, F) what a choice adds to them.
        pairs: (R, E, F, F) what the two choices of an edge add.
        core: (G, F) choices that are tried.
        ceiling: What has to be undercut.
        order: (G,) groups as they are decided.
        decided_at: (E, 2) steps at which the ends of an edge are decided.
    """

    program: _Program
    start: FloatArray
    own: FloatArray
    pairs: FloatArray
    core: BoolArray
    ceiling: float
    order: IntArray
    decided_at: IntArray

    @classmethod
    def of(cls, program: _Program, bounds: _Bounds, ceiling: float) -> "_Search":
        knapsack, core = program.knapsack, bounds.choices(ceiling)
        weight = np.zeros(len(core))
        if not len(knapsack.ends):  # what spends much is best decided early
            priced = bounds.own[0] - knapsack.own[0]
            most = np.where(core, priced, -np.inf).max(axis=1)
            weight = most - np.where(core, priced, np.inf).min(axis=1)
        order = np.lexsort((-weight, core.sum(axis=1) > 1))  # with one choice nothing branches
        return cls(
            program,
            np.concatenate([np.zeros(len(knapsack.own)), bounds.least]),
            np.concatenate([knapsack.own, bounds.own]),
            np.concatenate([knapsack.pairs, bounds.pairs]),
            core,
            ceiling,
            order,
            np.argsort(order)[knapsack.ends],
        )

    def best(self, width: int) -> tuple[IntArray | None, float]:
        """Returns the best solution it meets, if any, and the least bound of what it leaves out.

        No other solution loses less than the least of this one, that bound and the ceiling.

        Args:
            width: Beginnings that it keeps.
        """
        if not self.core.any(axis=1).all():
            return None, np.inf
        rows, room, left_out = len(self.program.knapsack.own), self._room(), np.inf
        states = _States(self.start[:, None], np.zeros((1, len(self.order)), dtype=np.int16))
        for step in range(len(self.order)):
            states = self._grown(states, step)
            bound = states.sums[rows:].max(axis=0)
            within = (states.sums[:rows] <= room[:, step, None]).all(axis=0)
            kept = np.flatnonzero(within & (bound < self.ceiling))
            if rows <= 2:  # one limit at most; to compare all would cost more than it gains
                kept, others = _nearest(kept, bound, 2 * width)
                kept = self._unbeaten(states, kept, step)
                left_out = min(left_out, others)
            kept, others = _nearest(kept, bound, width)
            left_out = min(left_out, others)
            states = _States(states.sums[:, kept], states.chosen[kept])
        if not len(states.chosen):
            return None, left_out
        return states.chosen[states.sums[0].argmin()].astype(np.int64), left_out

    def _room(self) -> FloatArray:
        """(1 + K, G) largest sums after each step: what follows adds its least at least."""
        rows = len(self.program.knapsack.own)
        least = np.where(self.core, self.own[:rows], np.inf).min(axis=2)[:, self.order]
        _add(least, self.decided_at.max(axis=1), self.pairs[:rows].min(axis=(2, 3)))
        following = least[:, ::-1].cumsum(axis=1)[:, ::-1] - least
        most = np.append(self.ceiling, self.program.knapsack.limits)
        return np.asarray(most[:, None] - following)

    def _grown(self, states: _States, step: int) -> _States:
        """All beginnings that are one group longer."""
        group = self.order[step]
        choices = np.flatnonzero(self.core[group])
        sums = states.sums[:, :, None] + self.own[:, group, choices][:, None]
        sums = sums.reshape(len(sums), -1)
        chosen = np.repeat(states.chosen, len(choices), axis=0)
        chosen[:, group] = np.tile(choices, len(states.chosen))
        for edge in np.flatnonzero(self.decided_at.max(axis=1) == step):
            first, second = chosen[:, self.program.knapsack.ends[edge]].T
            sums += self.pairs[:, edge, first, second]
        return _States(sums, chosen)

    def _unbeaten(self, states: _States, kept: IntArray, step: int) -> IntArray:
        """Those kept that no other undercuts or equals in loss and cost and that ends alike."""
        lost = states.sums[0, kept]
        spent = states.sums[1 : len(self.program.knapsack.own), kept].sum(axis=0)
        ends = self._ends(states.chosen[kept], step)
        rank = np.empty(len(kept), dtype=np.int64)
        rank[np.lexsort((spent, lost))] = np.arange(len(kept))
        order = np.lexsort((rank, spent, ends))
        # Ranks fall from one kind of end to the next, so that their least starts anew with each.
        rank = rank[order] - ends[order] * len(order)
        least = np.minimum.accumulate(rank)
        return np.asarray(kept[order[rank == least]])

    def _ends(self, chosen: IntArray, step: int) -> IntArray:
        """(n,) equal where the choices at edges with one end decided cost the same."""
        ends = np.zeros(len(chosen), dtype=np.int64)
        half = (self.decided_at <= step) & (self.decided_at.max(axis=1, keepdims=True) > step)
        half &= self.core.sum(axis=1)[self.program.knapsack.ends] > 1
        for edge, side in np.argwhere(half):
            group = self.program.knapsack.ends[edge, side]
            alike = self.program.alike[edge, side, chosen[:, group]]
            ends = np.unique(ends * self.core.shape[1] + alike, return_inverse=True)[1]
        return ends


def _nearest(kept: IntArray, bound: FloatArray, width: int) -> tuple[IntArray, float]:
    """Returns those with the least bounds, as many as the width, and the next bound."""
    if len(kept) <= width:
        return kept, np.inf
    kept = kept[np.argpartition(bound[kept], width)]
    return kept[:width], float(bound[kept[width]])

"""The operations of formulas: 22 of one operand, 4 of two.

Outside its domain an operation gives NaN or an infinity, never a clipped value: whoever evaluates
a formula looks for them after each step and calls the formula broken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from predictors.zerocost.arrays import FloatArray, IntArray

__all__ = ["BINARY", "UNARY", "BinaryOperation", "Groups", "UnaryOperation"]

_ROUNDING = 1e-12  # of the mean: a standard deviation below this is that of equal values


@dataclass(frozen=True, eq=False)
class Groups:
    """Where groups of values begin in a flat array, such as those of each layer.

    Attributes:
        lengths: (groups,) how many values each has, 1 or more.
    """

    lengths: IntArray

    @cached_property
    def starts(self) -> IntArray:
        """(groups,) places of the first values."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    def sums(self, values: FloatArray) -> FloatArray:
        """Returns the sum of each group."""
        totals: FloatArray = np.add.reduceat(values, self.starts)
        return totals

    def means(self, values: FloatArray) -> FloatArray:
        """Returns the mean of each group."""
        return self.sums(values) / self.lengths

    def stds(self, values: FloatArray) -> FloatArray:
        """Returns the standard deviation of each group, exactly 0 if its values are equal."""
        means = self.means(values)
        stds = np.sqrt(self.means(np.square(values - self.spread(means))))
        stds[stds <= _ROUNDING * np.abs(means)] = 0.0
        return stds

    def spread(self, figures: FloatArray) -> FloatArray:
        """Returns figures of groups, one for each value."""
        spread: FloatArray = np.repeat(figures, self.lengths)
        return spread


@dataclass(frozen=True)
class UnaryOperation:
    """An operation of one operand.

    Attributes:
        name: In formulas and files.
        kind: ``each``: value by value; ``group``: values with respect to the others of their
            group; ``reduce``: one number for a group.
        apply: Returns new values, or those of the groups.
    """

    name: str
    kind: Literal["each", "group", "reduce"]
    apply: Callable[[FloatArray, Groups], FloatArray]


@dataclass(frozen=True)
class BinaryOperation:
    """An operation of two operands.

    Attributes:
        name: In files.
        sign: In formulas.
        odds: How often it is drawn at first.
        apply: Returns new values.
    """

    name: str
    sign: str
    odds: float
    apply: Callable[[FloatArray, FloatArray], FloatArray]


def _standardise(x: FloatArray, groups: Groups) -> FloatArray:
    centred = x - groups.spread(groups.means(x))
    return centred / groups.spread(groups.stds(x))


def _below_largest(x: FloatArray, groups: Groups) -> FloatArray:
    return x - groups.spread(np.maximum.reduceat(x, groups.starts))


def _softmax(x: FloatArray, groups: Groups) -> FloatArray:
    powers = np.exp(_below_largest(x, groups))
    return powers / groups.spread(groups.sums(powers))


def _log_softmax(x: FloatArray, groups: Groups) -> FloatArray:
    lower = _below_largest(x, groups)
    return lower - groups.spread(np.log(groups.sums(np.exp(lower))))


def _min_max(x: FloatArray, groups: Groups) -> FloatArray:
    least = np.minimum.reduceat(x, groups.starts)
    ranges = np.maximum.reduceat(x, groups.starts) - least
    return (x - groups.spread(least)) / groups.spread(ranges)


def _sigmoid(x: FloatArray, groups: Groups) -> FloatArray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # exp would overflow


def _mean(x: FloatArray, groups: Groups) -> FloatArray:
    return groups.means(x)


def _log_determinant(x: FloatArray, groups: Groups) -> FloatArray:
    return groups.sums(np.log(np.abs(x)))


_UNARY = (
    UnaryOperation("log", "each", lambda x, groups: np.log(x)),
    UnaryOperation("log_abs", "each", lambda x, groups: np.log(np.abs(x))),
    UnaryOperation("abs", "each", lambda x, groups: np.abs(x)),
    UnaryOperation("square", "each", lambda x, groups: np.square(x)),
    UnaryOperation("exp", "each", lambda x, groups: np.exp(x)),
    UnaryOperation("standardise", "group", _standardise),
    UnaryOperation("relu", "each", lambda x, groups: np.maximum(x, 0.0)),
    UnaryOperation("reciprocal", "each", lambda x, groups: 1.0 / x),
    UnaryOperation("norm", "reduce", lambda x, groups: np.sqrt(groups.sums(np.square(x)))),
    UnaryOperation("mean", "reduce", _mean),
    UnaryOperation("mean_abs", "reduce", lambda x, groups: groups.means(np.abs(x))),
    UnaryOperation("softmax", "group", _softmax),
    UnaryOperation("log_softmax", "group", _log_softmax),
    UnaryOperation("sigmoid", "each", _sigmoid),
    UnaryOperation("sqrt", "each", lambda x, groups: np.sqrt(x)),
    UnaryOperation("negate", "each", lambda x, groups: -x),
    UnaryOperation("sign", "each", lambda x, groups: np.sign(x)),
    UnaryOperation("min_max", "group", _min_max),
    UnaryOperation("mean_scalar", "reduce", _mean),
    UnaryOperation("std_scalar", "reduce", lambda x, groups: groups.stds(x)),
    UnaryOperation("identity", "each", lambda x, groups: x),
    UnaryOperation("slogdet", "reduce", _log_determinant),
)

UNARY: dict[str, UnaryOperation] = {each.name: each for each in _UNARY}
"""Operations of one operand by name.

A group is a layer's array; of inputs with one number a layer or format it is all numbers of the
network. ``slogdet`` is the logarithm of the determinant's magnitude of the diagonal matrix of the
values: the sum of their logarithms. ``mean_scalar`` is ``mean`` under its other name.
"""

_BINARY = (
    BinaryOperation("sum", "+", 0.6, lambda one, other: one + other),
    BinaryOperation("difference", "-", 0.3, lambda one, other: one - other),
    BinaryOperation("product", "*", 0.05, lambda one, other: one * other),
    BinaryOperation("matmul", "*", 0.05, lambda one, other: one * other),
)

BINARY: dict[str, BinaryOperation] = {each.name: each for each in _BINARY}
"""Operations of two operands by name. Operands have one number for a layer and format, so that
``matmul`` is ``product`` under its other name."""

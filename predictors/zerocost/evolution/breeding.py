"""How expressions come to be: drawn at random, by mutation, by crossover.

All functions return new expressions and change none. What they return depends on the format.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from predictors.zerocost.evolution.expressions import (
    Binary,
    Expression,
    Input,
    Unary,
    subexpressions,
)
from predictors.zerocost.evolution.operations import BINARY, UNARY

__all__ = ["MOST_SIZE", "Odds", "crossover", "first_odds", "mutation", "raised_odds", "random_one"]

MOST_SIZE = 18
"""Inputs and operations of an expression, at most."""

_STRUCTURES = {"chain": 0.3, "tree": 0.5, "dag": 0.2}
_LONGEST_CHAIN = 4
_FROM_GOOD = 0.5  # part of the odds that comes from good expressions
_FORMAT_INPUTS = ("bits", "errors")


@dataclass(frozen=True)
class Odds:
    """How often what an expression is made of is drawn; each sums to 1.

    Attributes:
        inputs: By name.
        unary: By name, in ``UNARY``.
        binary: By name, in ``BINARY``.
    """

    inputs: Mapping[str, float]
    unary: Mapping[str, float]
    binary: Mapping[str, float]


def first_odds(inputs: Iterable[str]) -> Odds:
    """Returns the odds that evolution starts with.

    Args:
        inputs: Names of the inputs that there are.
    """
    return Odds(
        _shares(dict.fromkeys(inputs, 1.0)),
        _shares(dict.fromkeys(UNARY, 1.0)),
        _shares({name: each.odds for name, each in BINARY.items()}),
    )


def raised_odds(first: Odds, good: Iterable[Expression]) -> Odds:
    """Returns odds that are higher for what good expressions are made of.

    Half of each is as at first, so that everything can still be drawn; half is how often it
    occurs in the good ones.
    """
    inputs: Counter[str] = Counter()
    unary: Counter[str] = Counter()
    binary: Counter[str] = Counter()
    for expression in good:
        for _, part in subexpressions(expression):
            if isinstance(part, Input):
                inputs[part.name] += 1
            elif isinstance(part, Unary):
                unary[part.operation] += 1
            else:
                binary[part.operation] += 1
    return Odds(
        _raised(first.inputs, inputs), _raised(first.unary, unary), _raised(first.binary, binary)
    )


def random_one(rng: np.random.Generator, odds: Odds) -> Expression:
    """Returns a fresh expression: a chain, a tree of two branches, or a graph of sums."""
    structure = _pick(rng, _STRUCTURES)
    if structure == "chain":
        drawn = _branch(rng, odds, int(rng.integers(1, _LONGEST_CHAIN + 1)))
    elif structure == "tree":
        left, right = _branch(rng, odds, 2), _branch(rng, odds, 2)
        drawn = Binary(_pick(rng, odds.binary), left, right)
    else:
        drawn = _graph(rng, odds)
    return _closed(rng, drawn)


def mutation(rng: np.random.Generator, odds: Odds, parent: Expression) -> Expression:
    """Returns the parent with one part drawn anew, put in or left out."""
    path, part = _any_part(rng, parent)
    kind = rng.integers(0, 4)
    new: Expression
    if kind == 0:
        new = _branch(rng, odds, int(rng.integers(0, 3)))
    elif kind == 1:
        new = _applied(_pick(rng, odds.unary), part)
    elif isinstance(part, Input):
        new = Input(_pick(rng, odds.inputs))
    elif isinstance(part, Unary):
        inner = part.operand
        new = inner if kind == 2 else _applied(_pick(rng, odds.unary), inner)
    else:
        sides = (part.left, part.right)
        new = sides[rng.integers(0, 2)] if kind == 2 else Binary(_pick(rng, odds.binary), *sides)
    return _fitting(rng, _replaced(parent, path, new), parent)


def crossover(rng: np.random.Generator, one: Expression, other: Expression) -> Expression:
    """Returns the first parent with one part taken from the second."""
    path, _ = _any_part(rng, one)
    _, part = _any_part(rng, other)
    return _fitting(rng, _replaced(one, path, part), one)


def _branch(rng: np.random.Generator, odds: Odds, operations: int) -> Expression:
    expression: Expression = Input(_pick(rng, odds.inputs))
    for _ in range(operations):
        expression = _applied(_pick(rng, odds.unary), expression)
    return expression


def _graph(rng: np.random.Generator, odds: Odds) -> Expression:
    """Returns two nodes that add up what enters them, each edge with an operation.

    Both branches enter the first node, and one of them, again, the second.
    """
    branches = [_per_layer(_branch(rng, odds, int(rng.integers(0, 2)))) for _ in range(2)]
    first = Binary("sum", *(_applied(_pick(rng, odds.unary), each) for each in branches))
    again = branches[rng.integers(0, 2)]
    return Binary(
        "sum",
        _applied(_pick(rng, odds.unary), first),
        _applied(_pick(rng, odds.unary), again),
    )


def _per_layer(expression: Expression) -> Expression:
    return Unary("mean", expression) if expression.per_value else expression


def _applied(operation: str, operand: Expression) -> Expression:
    """Returns the operation on the operand; the operand if there is nothing to reduce."""
    if UNARY[operation].kind == "reduce" and not operand.per_value:
        return operand
    return Unary(operation, operand)


def _closed(rng: np.random.Generator, expression: Expression) -> Expression:
    """Returns an expression that depends on the format: times the bits or the errors."""
    if expression.sees_format:
        return expression
    return Binary("product", expression, Input(_FORMAT_INPUTS[rng.integers(0, 2)]))


def _fitting(rng: np.random.Generator, child: Expression, parent: Expression) -> Expression:
    closed = _closed(rng, child)
    return closed if closed.size <= MOST_SIZE else parent


def _any_part(
    rng: np.random.Generator, expression: Expression
) -> tuple[tuple[int, ...], Expression]:
    parts = list(subexpressions(expression))
    return parts[rng.integers(0, len(parts))]


def _replaced(expression: Expression, path: Sequence[int], new: Expression) -> Expression:
    """Returns the expression with another part at a path; what then has nothing to reduce goes."""
    if not path:
        return new
    if isinstance(expression, Unary):
        return _applied(expression.operation, _replaced(expression.operand, path[1:], new))
    assert isinstance(expression, Binary)  # a path ends at an input
    left, right = expression.left, expression.right
    if path[0] == 0:
        return Binary(expression.operation, _replaced(left, path[1:], new), right)
    return Binary(expression.operation, left, _replaced(right, path[1:], new))


def _pick(rng: np.random.Generator, odds: Mapping[str, float]) -> str:
    """Returns a name by its odds, which sum to 1."""
    names = list(odds)
    place = np.searchsorted(np.cumsum(list(odds.values())), rng.random(), side="right")
    return names[min(int(place), len(names) - 1)]  # the sum may fall short of 1 by rounding


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _raised(first: Mapping[str, float], counts: Counter[str]) -> dict[str, float]:
    total = counts.total()
    if not total:
        return dict(first)
    return {
        name: (1.0 - _FROM_GOOD) * share + _FROM_GOOD * counts[name] / total
        for name, share in first.items()
    }

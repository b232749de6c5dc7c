"""What a row of a network table answers to: dims whose choices fall into classes.

Letters: n candidates, k dims, e entries of a table over all classes of some factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from apqkit.types import IntArray

__all__ = [
    "Factor",
    "Leaf",
    "Pair",
    "assign",
    "classes_of",
    "dims_of",
    "entries",
    "entry_of",
    "joined",
    "leaves_of",
    "refined",
    "scaled",
]


@dataclass(frozen=True)
class Leaf:
    """A dim whose choices fall into classes; those of a class do the same to a row.

    Attributes:
        dim: Column of picks.
        classes: (choices,) the class of each choice.
        count: Number of classes.
    """

    dim: int
    classes: IntArray
    count: int


@dataclass(frozen=True)
class Pair:
    """Two factors whose classes act through few classes of their combinations.

    Attributes:
        left: One of them.
        right: The other.
        classes: (left.count * right.count,) the class of each combination, right running fastest.
        count: Number of classes.
    """

    left: "Factor"
    right: "Factor"
    classes: IntArray
    count: int


Factor: TypeAlias = Leaf | Pair


def refined(factor: Leaf, marks: NDArray[np.uint64]) -> Leaf:
    """Returns a leaf whose classes also keep apart what differs in marks (choices,)."""
    both = np.stack([factor.classes, _numbered(marks)])
    _, classes = np.unique(both, axis=1, return_inverse=True)
    return Leaf(factor.dim, classes.astype(np.int64), int(classes.max()) + 1)


def joined(left: Factor, right: Factor, marks: NDArray[np.uint64]) -> Pair:
    """Returns a pair whose combinations are of one class where marks are equal.

    Args:
        left: c classes.
        right: d classes.
        marks: (c * d,) right running fastest.
    """
    classes = _numbered(marks)
    return Pair(left, right, classes, int(classes.max()) + 1)


def _numbered(marks: NDArray[np.uint64]) -> IntArray:
    return np.asarray(np.unique(marks, return_inverse=True)[1], dtype=np.int64)


def scaled(factor: Factor, step: int) -> Factor:
    """Returns a factor whose classes are multiplied, ready to be added into an index."""
    if isinstance(factor, Leaf):
        return Leaf(factor.dim, factor.classes * step, factor.count)
    left, right = scaled(factor.left, factor.right.count), scaled(factor.right, 1)
    return Pair(left, right, factor.classes * step, factor.count)


def classes_of(factor: Factor, columns: IntArray) -> IntArray:
    """(n,) the class of each candidate, given as columns (k, n)."""
    if isinstance(factor, Leaf):
        return np.asarray(factor.classes[columns[factor.dim]])
    left, right = classes_of(factor.left, columns), classes_of(factor.right, columns)
    return np.asarray(factor.classes[left * factor.right.count + right])


def dims_of(factor: Factor) -> tuple[int, ...]:
    """Returns the dims that a factor reads."""
    if isinstance(factor, Leaf):
        return (factor.dim,)
    return dims_of(factor.left) + dims_of(factor.right)


def leaves_of(factor: Factor) -> tuple[Leaf, ...]:
    """Returns the dims with their classes that a factor is made of."""
    if isinstance(factor, Leaf):
        return (factor,)
    return leaves_of(factor.left) + leaves_of(factor.right)


def entries(factors: Sequence[Factor]) -> int:
    """Returns how many combinations of classes there are."""
    return prod(factor.count for factor in factors)


def entry_of(factors: Sequence[Factor], columns: IntArray) -> IntArray:
    """(n,) the combination that each candidate has, given as columns (k, n)."""
    entry = np.zeros(columns.shape[1], dtype=np.int64)
    for factor in factors:
        entry = entry * factor.count + classes_of(factor, columns)
    return entry


def assign(
    factors: Sequence[Factor], entry: IntArray, columns: IntArray, rng: np.random.Generator
) -> None:
    """Writes random choices with the given combinations (n,) into columns (k, n)."""
    for factor in reversed(factors):
        entry, classes = np.divmod(entry, factor.count)
        _assign_classes(factor, classes, columns, rng)


def _assign_classes(
    factor: Factor, classes: IntArray, columns: IntArray, rng: np.random.Generator
) -> None:
    order = np.argsort(factor.classes, kind="stable")
    sizes = np.bincount(factor.classes, minlength=factor.count)
    starts = np.cumsum(sizes) - sizes
    chosen = order[starts[classes] + rng.integers(0, sizes[classes])]
    if isinstance(factor, Leaf):
        columns[factor.dim] = chosen
        return
    left, right = np.divmod(chosen, factor.right.count)
    _assign_classes(factor.left, left, columns, rng)
    _assign_classes(factor.right, right, columns, rng)

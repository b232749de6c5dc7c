"""Formulas as immutable expressions.  Letters: L layers, F formats.

An expression is either *per value*, an array for each layer, or *per layer*, one number for each
layer and format. Reducing operations lead from the first to the second; an operation of two
operands averages those that are still per value. What occurs twice in a formula is one shared
expression or two equal ones, with no difference: such a formula is a directed acyclic graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.layer_inputs import NUMBERS, STATISTICS
from predictors.zerocost.evolution.operations import BINARY, UNARY

__all__ = ["Binary", "Expression", "Input", "Unary", "from_json", "subexpressions", "to_json"]

_MOST_DEPTH = 64  # of an expression in a file


@dataclass(frozen=True)
class Input:
    """One of the inputs of a formula.

    Attributes:
        name: In ``STATISTICS`` (per value) or ``NUMBERS`` (per layer).

    Raises:
        ProxyError: An unknown name.
    """

    name: str

    def __post_init__(self) -> None:
        """Checks the name."""
        if self.name not in (*STATISTICS, *NUMBERS):
            known = ", ".join((*STATISTICS, *NUMBERS))
            raise ProxyError(f"no input named {self.name!r}; there are: {known}")

    @property
    def key(self) -> str:
        """The formula without spaces to spare: equal keys mean equal expressions."""
        return self.name

    @property
    def per_value(self) -> bool:
        """Whether it has an array for each layer."""
        return self.name in STATISTICS

    @property
    def sees_format(self) -> bool:
        """Whether it depends on the format that a layer has."""
        return self.name in ("errors", "bits")

    @property
    def size(self) -> int:
        """How many inputs and operations it has."""
        return 1

    @property
    def is_branch(self) -> bool:
        """Whether it is one input with operations of one operand."""
        return True


@dataclass(frozen=True, eq=False)
class Unary:
    """An operation of one operand.

    Attributes:
        operation: In ``UNARY``.
        operand: Per value if the operation reduces.

    Raises:
        ProxyError: An unknown operation, or one that reduces what is per layer already.
    """

    operation: str
    operand: "Expression"
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Checks and names itself."""
        if self.operation not in UNARY:
            raise ProxyError(f"no operation {self.operation!r}; there are: {', '.join(UNARY)}")
        if UNARY[self.operation].kind == "reduce" and not self.operand.per_value:
            raise ProxyError(
                f"{self.operation} needs an array for each layer, {self.operand.key} has one "
                "number already"
            )
        object.__setattr__(self, "key", f"{self.operation}({self.operand.key})")

    def __eq__(self, other: object) -> bool:
        """Returns whether both are the same formula."""
        return isinstance(other, Unary) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def per_value(self) -> bool:
        """Whether it has an array for each layer."""
        return self.operand.per_value and UNARY[self.operation].kind != "reduce"

    @cached_property
    def sees_format(self) -> bool:
        """Whether it depends on the format that a layer has."""
        return self.operand.sees_format

    @cached_property
    def size(self) -> int:
        """How many inputs and operations it has."""
        return 1 + self.operand.size

    @cached_property
    def is_branch(self) -> bool:
        """Whether it is one input with operations of one operand."""
        return self.operand.is_branch


@dataclass(frozen=True, eq=False)
class Binary:
    """An operation of two operands; those that are per value are averaged first.

    Attributes:
        operation: In ``BINARY``.
        left: First operand.
        right: Second operand.

    Raises:
        ProxyError: An unknown operation.
    """

    operation: str
    left: "Expression"
    right: "Expression"
    key: str = field(init=False)

    per_value = False
    is_branch = False

    def __post_init__(self) -> None:
        """Checks and names itself."""
        if self.operation not in BINARY:
            raise ProxyError(f"no operation {self.operation!r}; there are: {', '.join(BINARY)}")
        object.__setattr__(self, "key", f"{self.operation}({self.left.key}, {self.right.key})")

    def __eq__(self, other: object) -> bool:
        """Returns whether both are the same formula."""
        return isinstance(other, Binary) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def sees_format(self) -> bool:
        """Whether it depends on the format that a layer has."""
        return self.left.sees_format or self.right.sees_format

    @cached_property
    def size(self) -> int:
        """How many inputs and operations it has."""
        return 1 + self.left.size + self.right.size


Expression: TypeAlias = Input | Unary | Binary
"""A formula: immutable, equal to any other of the same key."""


def subexpressions(
    expression: Expression, path: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], Expression]]:
    """Yields every part with its path: which operand to take, from the top down.

    >>> [part.key for _, part in subexpressions(Unary("mean", Input("weights")))]
    ['mean(weights)', 'weights']
    """
    yield path, expression
    if isinstance(expression, Unary):
        yield from subexpressions(expression.operand, (*path, 0))
    elif isinstance(expression, Binary):
        yield from subexpressions(expression.left, (*path, 0))
        yield from subexpressions(expression.right, (*path, 1))


def to_json(expression: Expression) -> dict[str, Any]:
    """Returns the expression as JSON."""
    if isinstance(expression, Input):
        return {"input": expression.name}
    if isinstance(expression, Unary):
        return {"operation": expression.operation, "of": [to_json(expression.operand)]}
    operands = [to_json(expression.left), to_json(expression.right)]
    return {"operation": expression.operation, "of": operands}


def from_json(tree: object, depth: int = 0) -> Expression:
    """Returns the expression that :func:`to_json` wrote.

    Raises:
        ProxyError: Anything else.
    """
    if depth > _MOST_DEPTH:
        raise ProxyError(f"an expression must be at most {_MOST_DEPTH} operations deep")
    if isinstance(tree, dict):
        match dict(tree):
            case {"input": str(name), **rest} if not rest:
                return Input(name)
            case {"operation": str(operation), "of": [operand], **rest} if not rest:
                return Unary(operation, from_json(operand, depth + 1))
            case {"operation": str(operation), "of": [left, right], **rest} if not rest:
                return Binary(operation, from_json(left, depth + 1), from_json(right, depth + 1))
    raise ProxyError(f"no expression: {str(tree)[:80]}")

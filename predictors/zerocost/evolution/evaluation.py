"""Values of expressions on the layers of one network.  Letters: L layers, F formats."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from predictors.zerocost.arrays import FloatArray
from predictors.zerocost.evolution.expressions import Binary, Expression, Input, Unary
from predictors.zerocost.evolution.layer_inputs import LayerInputs
from predictors.zerocost.evolution.operations import BINARY, UNARY, Groups

__all__ = ["Evaluator"]

_CACHE_BYTES = 256 * 2**20
_ENTRY_BYTES = 500  # of Python's own, about


@dataclass(frozen=True, eq=False)
class _Value:
    """What an expression is worth: an array that must not be written to.

    Attributes:
        array: Per value all layers in a row; per layer a shape that broadcasts to (L, F). None if
            some step left its domain.
        groups: The layers of what is per value; None for what is per layer.
    """

    array: FloatArray | None
    groups: Groups | None = None


_BROKEN = _Value(None)


class Evaluator:
    """Evaluates many expressions on one network and keeps what they share.

    Kept are the values of branches (an input under operations of one operand), up to 256 MiB, the
    longest unused going first.

    Args:
        inputs: Of the network.
    """

    def __init__(self, inputs: LayerInputs) -> None:
        self._shape = (len(inputs.layers), len(inputs.formats))
        self._kept: OrderedDict[str, _Value] = OrderedDict()
        self._bytes = 0
        self._inputs = {
            "bits": _Value(inputs.bits[None, :]),
            "parameters": _Value(inputs.parameters[:, None]),
            "errors": _Value(inputs.errors),
        }
        for kind, arrays in inputs.statistics.items():
            groups = Groups(np.array([len(each) for each in arrays], dtype=np.int64))
            self._inputs[kind] = _Value(np.concatenate(arrays).astype(np.float64), groups)

    def numbers(self, expression: Expression) -> FloatArray | None:
        """Returns (L, F) the value of each layer in each format, read-only.

        None if the expression is broken: a step gave NaN or an infinity, or an input is missing.
        """
        with np.errstate(all="ignore"):  # looked for after each step
            array = _per_layer(self._value(expression, {})).array
        return None if array is None else np.broadcast_to(array, self._shape)

    def _value(self, expression: Expression, shared: dict[str, _Value]) -> _Value:
        if isinstance(expression, Input):
            return self._inputs.get(expression.name, _BROKEN)
        kept = self._kept if expression.is_branch else shared
        found = kept.get(expression.key)
        if found is not None:
            if expression.is_branch:
                self._kept.move_to_end(expression.key)
            return found
        if isinstance(expression, Unary):
            value = _unary(expression.operation, self._value(expression.operand, shared))
        else:
            value = self._binary(expression, shared)
        if expression.is_branch:
            self._keep(expression.key, value)
        else:
            shared[expression.key] = value
        return value

    def _binary(self, expression: Binary, shared: dict[str, _Value]) -> _Value:
        left = _per_layer(self._value(expression.left, shared)).array
        right = _per_layer(self._value(expression.right, shared)).array
        if left is None or right is None:
            return _BROKEN
        return _checked(BINARY[expression.operation].apply(left, right), None)

    def _keep(self, key: str, value: _Value) -> None:
        self._kept[key] = value
        self._bytes += _cost(value)
        while self._bytes > _CACHE_BYTES:
            self._bytes -= _cost(self._kept.popitem(last=False)[1])


def _unary(name: str, operand: _Value) -> _Value:
    operation, x = UNARY[name], operand.array
    if x is None:
        return _BROKEN
    if operation.kind == "each":
        return _checked(operation.apply(x, operand.groups or _one_group(x)), operand.groups)
    if operand.groups is None:
        return _checked(operation.apply(x.ravel(), _one_group(x)).reshape(x.shape), None)
    values = operation.apply(x, operand.groups)
    if operation.kind == "reduce":
        return _checked(values[:, None], None)
    return _checked(values, operand.groups)


def _per_layer(value: _Value) -> _Value:
    return value if value.groups is None else _unary("mean", value)


def _one_group(x: FloatArray) -> Groups:
    return Groups(np.array([x.size]))


def _checked(array: FloatArray, groups: Groups | None) -> _Value:
    return _Value(array, groups) if np.isfinite(array).all() else _BROKEN


def _cost(value: _Value) -> int:
    return _ENTRY_BYTES + (0 if value.array is None else value.array.nbytes)

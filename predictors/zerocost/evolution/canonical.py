"""One form for expressions that are equal whatever the inputs, to the last bit.

Only identities that hold in floating-point arithmetic are used: signs move outwards, sides that
commute are sorted, what changes nothing is left out. ``log(exp(x))`` stays, for it is not ``x``.
"""

from predictors.zerocost.evolution.expressions import Binary, Expression, Input, Unary

__all__ = ["canonical", "without_sign"]

_OTHER_NAMES = {"mean_scalar": "mean", "matmul": "product"}
_EVEN = frozenset({"abs", "square", "log_abs", "norm", "mean_abs", "std_scalar", "slogdet"})
_BLIND_TO_SIGNS = _EVEN - {"std_scalar"}  # of each value, not only of all at once
_ODD = frozenset({"standardise", "mean", "sign", "reciprocal"})
_NEVER_NEGATIVE = frozenset(
    {
        *("abs", "square", "exp", "relu", "norm", "mean_abs"),
        *("softmax", "sigmoid", "sqrt", "min_max", "std_scalar"),
    }
)
_POSITIVE_INPUTS = frozenset({"errors", "parameters", "bits"})
_OF_POSITIVE = {"abs": None, "relu": None, "log_abs": "log", "mean_abs": "mean"}
_OF_MAGNITUDES = {"log": "log_abs", "mean": "mean_abs"}


def canonical(expression: Expression) -> Expression:
    """Returns the one form of all expressions that are known to equal this one.

    >>> canonical(Unary("abs", Unary("negate", Unary("identity", Input("weights"))))).key
    'abs(weights)'
    """
    if isinstance(expression, Input):
        return expression
    if isinstance(expression, Unary):
        return _unary(expression.operation, canonical(expression.operand))
    left, right = canonical(expression.left), canonical(expression.right)
    return _binary(expression.operation, _per_layer(left), _per_layer(right))


def without_sign(expression: Expression) -> Expression:
    """Returns the expression without an outermost negation, which only reverses a ranking."""
    return _split_sign(expression)[1]


def _unary(operation: str, operand: Expression) -> Expression:
    """Returns the form of an operation on an operand in its form."""
    operation = _OTHER_NAMES.get(operation, operation)
    if operation == "identity":
        return operand
    if isinstance(operand, Unary):
        simpler = _of_unary(operation, operand)
        if simpler is not None:
            return simpler
    if operation in _OF_POSITIVE and _is_never_negative(operand):
        other = _OF_POSITIVE[operation]
        return operand if other is None else _unary(other, operand)
    return Unary(operation, operand)


def _of_unary(operation: str, operand: Unary) -> Expression | None:
    """Returns the form of an operation after another, None if nothing is known of the two."""
    inner = operand.operand
    if operand.operation == "negate":
        if operation == "negate":
            return inner
        if operation in _EVEN:
            return _unary(operation, inner)
        if operation in _ODD:
            return Unary("negate", _unary(operation, inner))
    if operand.operation == "abs" and operation in _BLIND_TO_SIGNS:
        return _unary(operation, inner)
    if operand.operation == "abs" and operation in _OF_MAGNITUDES:
        return _unary(_OF_MAGNITUDES[operation], inner)
    if operand.operation == operation == "sign":
        return operand
    return None


def _binary(operation: str, left: Expression, right: Expression) -> Expression:
    """Returns the form of an operation on operands in their form, per layer."""
    operation = _OTHER_NAMES.get(operation, operation)
    (left_sign, left), (right_sign, right) = _split_sign(left), _split_sign(right)
    if operation == "product":
        return _signed(left_sign * right_sign, Binary("product", *_sorted(left, right)))
    if operation == "difference":
        right_sign = -right_sign
    if left_sign == right_sign:
        return _signed(left_sign, Binary("sum", *_sorted(left, right)))
    first, second = _sorted(left, right)
    sign = left_sign if first is left else right_sign
    if first == second:  # nothing is left over, whatever its sign
        sign = 1
    return _signed(sign, Binary("difference", first, second))


def _per_layer(expression: Expression) -> Expression:
    return _unary("mean", expression) if expression.per_value else expression


def _split_sign(expression: Expression) -> tuple[int, Expression]:
    if isinstance(expression, Unary) and expression.operation == "negate":
        return -1, expression.operand
    return 1, expression


def _signed(sign: int, expression: Expression) -> Expression:
    return expression if sign > 0 else Unary("negate", expression)


def _sorted(one: Expression, other: Expression) -> tuple[Expression, Expression]:
    return (one, other) if one.key <= other.key else (other, one)


def _is_never_negative(expression: Expression) -> bool:
    if isinstance(expression, Input):
        return expression.name in _POSITIVE_INPUTS
    if isinstance(expression, Unary):
        if expression.operation in _NEVER_NEGATIVE:
            return True
        return expression.operation in ("mean", "reciprocal") and _is_never_negative(
            expression.operand
        )
    return False

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.zerocost.evolution.canonical import canonical, without_sign
from predictors.zerocost.evolution.evaluation import Evaluator
from predictors.zerocost.evolution.expressions import Binary, Expression, Input, Unary
from predictors.zerocost.evolution.layer_inputs import NUMBERS, STATISTICS
from predictors.zerocost.evolution.operations import BINARY, UNARY

W, G, H = Input("weights"), Input("gradients"), Input("hessian")
BITS, ERRORS = Input("bits"), Input("errors")


def apply(operation: str, operand: Expression) -> Expression:
    if UNARY[operation].kind == "reduce" and not operand.per_value:
        return operand
    return Unary(operation, operand)


EXPRESSIONS = st.recursive(
    st.sampled_from((*STATISTICS, *NUMBERS)).map(Input),
    lambda parts: (
        st.builds(apply, st.sampled_from(sorted(UNARY)), parts)
        | st.builds(Binary, st.sampled_from(sorted(BINARY)), parts, parts)
    ),
    max_leaves=5,
)


def negated(x: Expression) -> Expression:
    return Unary("negate", x)


REWRITINGS = [
    lambda x: Unary("identity", x),
    lambda x: negated(negated(x)),
    lambda x: negated(Unary("negate", Unary("identity", x))),
]


@given(EXPRESSIONS)
@settings(deadline=None, max_examples=200)
def test_the_form_has_the_same_value_to_the_last_bit(table, expression) -> None:
    value = Evaluator(table.inputs).numbers(expression)
    other = Evaluator(table.inputs).numbers(canonical(expression))
    if value is None or other is None:
        assert value is other
    else:
        assert np.array_equal(value, other)


@given(EXPRESSIONS)
@settings(deadline=None, max_examples=200)
def test_a_form_is_its_own_form(expression) -> None:
    form = canonical(expression)
    assert canonical(form) == form


@given(EXPRESSIONS, EXPRESSIONS)
@settings(deadline=None, max_examples=100)
def test_equal_forms_of_different_formulas_score_the_same(table, one, other) -> None:
    evaluator = Evaluator(table.inputs)
    for operation in ("sum", "product", "matmul"):
        left, right = Binary(operation, one, other), Binary(operation, other, one)
        assert canonical(left) == canonical(right)
        values = [Evaluator(table.inputs).numbers(each) for each in (left, right)]
        assert np.array_equal(values[0], values[1]) or values == [None, None]
    difference = Binary("difference", one, other), Binary("difference", other, one)
    assert without_sign(canonical(difference[0])) == without_sign(canonical(difference[1]))
    first, second = (evaluator.numbers(each) for each in difference)
    assert first is second is None or np.array_equal(first, -second)


@pytest.mark.parametrize("rewrite", REWRITINGS)
@given(EXPRESSIONS)
@settings(deadline=None, max_examples=60)
def test_what_changes_nothing_is_left_out(rewrite, expression) -> None:
    assert canonical(rewrite(expression)) == canonical(expression)


@pytest.mark.parametrize(
    ("expression", "form"),
    [
        (Unary("abs", Unary("abs", W)), "abs(weights)"),
        (Unary("abs", Unary("square", W)), "square(weights)"),
        (Unary("square", Unary("abs", negated(W))), "square(weights)"),
        (Unary("relu", Unary("relu", W)), "relu(weights)"),
        (Unary("relu", ERRORS), "errors"),
        (Unary("log", Unary("abs", W)), "log_abs(weights)"),
        (Unary("log_abs", Unary("exp", W)), "log(exp(weights))"),
        (Unary("sign", Unary("sign", W)), "sign(weights)"),
        (Unary("mean_scalar", Unary("abs", W)), "mean_abs(weights)"),
        (Unary("mean_abs", Unary("square", W)), "mean(square(weights))"),
        (Unary("norm", negated(W)), "norm(weights)"),
        (Unary("reciprocal", negated(ERRORS)), "negate(reciprocal(errors))"),
        (Unary("log", Unary("exp", W)), "log(exp(weights))"),
        (Unary("reciprocal", Unary("reciprocal", W)), "reciprocal(reciprocal(weights))"),
        (Unary("std_scalar", Unary("abs", W)), "std_scalar(abs(weights))"),
        (Unary("exp", negated(W)), "exp(negate(weights))"),
        (Binary("matmul", W, G), "product(mean(gradients), mean(weights))"),
        (Binary("difference", BITS, negated(ERRORS)), "sum(bits, errors)"),
        (Binary("sum", negated(BITS), ERRORS), "negate(difference(bits, errors))"),
        (Binary("difference", ERRORS, BITS), "negate(difference(bits, errors))"),
        (Binary("product", negated(BITS), negated(ERRORS)), "product(bits, errors)"),
        (
            Unary("square", Binary("product", negated(H), BITS)),
            "square(product(bits, mean(hessian)))",
        ),
    ],
)
def test_known_forms(expression, form) -> None:
    assert canonical(expression).key == form


def test_only_an_outermost_sign_is_taken_off() -> None:
    assert without_sign(negated(BITS)) == BITS
    assert without_sign(Unary("exp", negated(BITS))).key == "exp(negate(bits))"

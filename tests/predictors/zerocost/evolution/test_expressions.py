import pytest

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.expressions import (
    Binary,
    Input,
    Unary,
    from_json,
    subexpressions,
    to_json,
)

TREE = Binary(
    "product",
    Unary("sqrt", Unary("mean_abs", Input("gradients"))),
    Binary("difference", Input("errors"), Input("parameters")),
)


def test_knows_its_type() -> None:
    weights = Input("weights")
    assert weights.per_value
    assert Unary("log", weights).per_value
    assert not Unary("mean", weights).per_value
    assert not Binary("sum", weights, weights).per_value
    assert not Input("parameters").per_value
    assert not Binary("sum", weights, Input("parameters")).sees_format
    assert Unary("log", Binary("sum", weights, Input("bits"))).sees_format


def test_counts_its_parts_and_knows_branches() -> None:
    assert TREE.size == 7
    assert [part.key for path, part in subexpressions(TREE) if len(path) == 1] == [
        "sqrt(mean_abs(gradients))",
        "difference(errors, parameters)",
    ]
    assert len(list(subexpressions(TREE))) == TREE.size
    assert TREE.left.is_branch
    assert not TREE.is_branch
    assert not Unary("log", TREE).is_branch


def test_equal_formulas_are_equal_whoever_made_them() -> None:
    again = from_json(to_json(TREE))
    assert again is not TREE
    assert again == TREE
    assert hash(again) == hash(TREE)
    assert Unary("log", TREE) == Unary("log", again)
    assert Unary("log", TREE) != Unary("abs", again)
    assert TREE.right != TREE


@pytest.mark.parametrize("name", ["operation", "operand", "key", "size"])
def test_nobody_can_change_one(name) -> None:
    with pytest.raises(AttributeError):
        setattr(Unary("log", TREE), name, "abs")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: Input("weight"),
            "no input named 'weight'; there are: weights, gradients, activations, hessian, "
            "virtual_gradients, errors, parameters, bits",
        ),
        (
            lambda: Unary("norm", Input("errors")),
            "norm needs an array for each layer, errors has one number already",
        ),
        (
            lambda: Binary("power", TREE, TREE),
            "no operation 'power'; there are: sum, difference, product, matmul",
        ),
        (lambda: from_json({"input": 3}), "no expression: {'input': 3}"),
        (lambda: from_json(["weights"]), "no expression: ['weights']"),
        (
            lambda: from_json({"input": "bits", "code": "x"}),
            "no expression: {'input': 'bits', 'code': 'x'}",
        ),
        (
            lambda: from_json({"operation": "log", "of": []}),
            "no expression: {'operation': 'log', 'of': []}",
        ),
    ],
)
def test_refuses_what_is_no_formula(made, message) -> None:
    with pytest.raises(ProxyError) as caught:
        made()
    assert str(caught.value) == message


def test_an_unknown_operation_is_told_the_known_ones() -> None:
    with pytest.raises(ProxyError, match=r"^no operation 'eval'; there are: log, log_abs, abs, "):
        Unary("eval", TREE)


def test_a_file_cannot_be_deep_without_end() -> None:
    tree = {"input": "bits"}
    for _ in range(500):
        tree = {"operation": "abs", "of": [tree]}
    with pytest.raises(ProxyError) as caught:
        from_json(tree)
    assert str(caught.value) == "an expression must be at most 64 operations deep"

import math

import numpy as np
import pytest

from predictors.zerocost.evolution import evaluation
from predictors.zerocost.evolution.evaluation import Evaluator
from predictors.zerocost.evolution.expressions import Binary, Input, Unary
from predictors.zerocost.evolution.layer_inputs import LayerInputs


@pytest.fixture
def inputs() -> LayerInputs:
    return LayerInputs(
        layers=("stem", "head"),
        formats=("int2", "int4", "int8"),
        bits=np.array([2.0, 4.0, 8.0]),
        parameters=np.array([3.0, 2.0]),
        errors=np.array([[0.5, 0.25, 0.0], [8.0, 4.0, 2.0]]),
        statistics={
            "weights": (np.array([1.0, -2.0, 3.0]), np.array([-4.0, 4.0])),
            "gradients": (np.array([0.5]), np.array([0.25, 0.5, 0.75, 2.5])),
        },
    )


def test_a_formula_is_worked_out_layer_by_layer(inputs) -> None:
    weights = Unary("norm", Unary("relu", Input("weights")))
    formula = Binary(
        "sum",
        Binary("product", weights, Input("bits")),
        Binary("difference", Input("errors"), Unary("log", Input("gradients"))),
    )
    expected = []
    logs = (math.log(0.5), sum(math.log(each) for each in (0.25, 0.5, 0.75, 2.5)) / 4)
    for norm, errors, log in zip((math.sqrt(10.0), 4.0), inputs.errors, logs, strict=True):
        expected.append(
            [norm * bits + (error - log) for bits, error in zip((2, 4, 8), errors, strict=True)]
        )
    assert Evaluator(inputs).numbers(formula) == pytest.approx(np.array(expected))


def test_one_number_a_layer_is_seen_beside_those_of_other_layers(inputs) -> None:
    shares = Evaluator(inputs).numbers(Unary("softmax", Input("parameters")))
    larger = math.e / (1.0 + math.e)
    assert shares == pytest.approx(np.array([[larger] * 3, [1.0 - larger] * 3]))
    places = Evaluator(inputs).numbers(Unary("min_max", Input("errors")))
    assert places == pytest.approx(inputs.errors / 8.0)


@pytest.mark.parametrize(
    "formula",
    [
        Unary("log", Input("weights")),
        Unary("relu", Unary("log", Input("weights"))),
        Unary("sigmoid", Unary("reciprocal", Input("errors"))),
        Unary("sign", Unary("exp", Unary("exp", Unary("square", Input("bits"))))),
        Unary("min_max", Unary("sign", Input("gradients"))),
        Binary("sum", Input("bits"), Unary("sqrt", Input("weights"))),
        Input("hessian"),
    ],
)
def test_a_step_outside_its_domain_breaks_the_formula(inputs, formula) -> None:
    assert Evaluator(inputs).numbers(formula) is None


def test_the_inputs_stay_as_they_are(inputs) -> None:
    def held() -> dict:
        kinds = inputs.statistics.items()
        return {kind: [each.tolist() for each in arrays] for kind, arrays in kinds}

    before = held()
    evaluator = Evaluator(inputs)
    for operation in ("negate", "softmax", "standardise", "abs"):
        evaluator.numbers(Unary(operation, Input("weights")))
        evaluator.numbers(Unary(operation, Input("errors")))
    assert held() == before
    assert evaluator.numbers(Input("errors")).tolist() == inputs.errors.tolist()


def test_what_it_returns_cannot_be_written_to(inputs) -> None:
    numbers = Evaluator(inputs).numbers(Input("bits"))
    with pytest.raises(ValueError, match="read-only"):
        numbers[0, 0] = 1.0


def count_unary(monkeypatch) -> list[str]:
    calls: list[str] = []
    plain = evaluation._unary

    def counted(name, operand):
        calls.append(name)
        return plain(name, operand)

    monkeypatch.setattr(evaluation, "_unary", counted)
    return calls


def test_a_branch_is_worked_out_once_for_all_formulas(inputs, monkeypatch) -> None:
    calls = count_unary(monkeypatch)
    branch = Unary("mean", Unary("abs", Input("weights")))
    evaluator = Evaluator(inputs)
    values = [
        evaluator.numbers(Binary(operation, branch, Input("bits"))).tolist()
        for operation in ("sum", "difference", "product")
    ]
    assert calls == ["abs", "mean"]
    assert len({str(each) for each in values}) == 3


def test_a_shared_part_of_a_graph_is_worked_out_once(inputs, monkeypatch) -> None:
    calls = count_unary(monkeypatch)
    node = Unary("square", Binary("sum", Input("bits"), Input("errors")))
    found = Evaluator(inputs).numbers(Binary("sum", node, Binary("product", node, node)))
    assert calls == ["square"]
    square = (inputs.bits + inputs.errors) ** 2
    assert found == pytest.approx(square + square * square)


def test_a_full_cache_forgets_and_stays_right(inputs, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "_CACHE_BYTES", 1200)
    evaluator = Evaluator(inputs)
    formulas = [
        Unary(last, Unary(first, Input("weights")))
        for first in ("abs", "square", "exp")
        for last in ("mean", "norm", "std_scalar")
    ]
    for formula in formulas * 2:
        fresh = Evaluator(inputs).numbers(formula)
        assert evaluator.numbers(formula).tolist() == fresh.tolist()
    assert evaluator._bytes <= 1200
    assert len(evaluator._kept) <= 2

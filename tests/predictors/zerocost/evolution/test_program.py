import json

import numpy as np
import pytest

from predictors.zerocost.assembly import assemble
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.expressions import Binary, Input, Unary
from predictors.zerocost.evolution.layer_inputs import LayerInputs
from predictors.zerocost.evolution.program import Program, formula, load_program, save_program

NORM_TIMES_ERROR = Program(
    Binary("product", Unary("sqrt", Input("errors")), Unary("norm", Input("gradients"))), "down"
)


def refusal(path) -> str:
    with pytest.raises(ProxyError) as caught:
        load_program(path)
    return str(caught.value)


def test_a_score_is_the_sum_over_layers_in_their_formats(table, planted_numbers) -> None:
    scores = NORM_TIMES_ERROR.score(table)
    numbers = planted_numbers(table.inputs)
    expected = [
        sum(numbers[layer][pick] for layer, pick in enumerate(setting))
        for setting in table.settings.tolist()
    ]
    assert scores == pytest.approx(expected)


def test_layer_scores_price_settings_that_no_table_has(table) -> None:
    index = np.array([[0] * 8, [3] * 8])
    scores = assemble(NORM_TIMES_ERROR.layer_scores(table.inputs), index)
    assert scores[0] > scores[1]


def test_equal_programs_are_equal_and_rank_alike(table) -> None:
    swapped = Unary("negate", Binary("matmul", *reversed(operands(NORM_TIMES_ERROR.expression))))
    again = Program(swapped, "down")
    assert again == NORM_TIMES_ERROR
    assert hash(again) == hash(NORM_TIMES_ERROR)
    assert (again.score(table) == NORM_TIMES_ERROR.score(table)).all()


def operands(product: Binary) -> tuple:
    return product.left, product.right


def test_prints_as_one_would_write_it() -> None:
    assert NORM_TIMES_ERROR.formula == "norm(gradients) * sqrt(errors)"
    nested = Binary("difference", Input("bits"), Binary("sum", Input("errors"), Input("bits")))
    assert formula(Binary("product", nested, Unary("negate", nested))) == (
        "(bits - (errors + bits)) * -(bits - (errors + bits))"
    )


def test_knows_what_it_reads() -> None:
    assert NORM_TIMES_ERROR.inputs == ("errors", "gradients")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: Program(Unary("norm", Input("weights")), "up"),
            "a program must depend on bits or errors, got norm(weights)",
        ),
        (
            lambda: Program(Input("bits"), "left"),
            "direction must be up or down, got 'left'",
        ),
    ],
)
def test_refuses_what_ranks_nothing(made, message) -> None:
    with pytest.raises(ProxyError) as caught:
        made()
    assert str(caught.value) == message


def test_says_which_input_a_network_lacks(table) -> None:
    inputs = LayerInputs(("a",), ("int4",), [4.0], [1.0], [[0.5]], {"weights": ([1.0],)})
    with pytest.raises(ProxyError) as caught:
        NORM_TIMES_ERROR.layer_scores(inputs)
    assert str(caught.value) == (
        "norm(gradients) * sqrt(errors) needs gradients; there are: weights, errors, parameters, "
        "bits"
    )


def test_says_so_where_it_leaves_its_domain(table) -> None:
    broken = Program(Binary("sum", Unary("log", Input("weights")), Input("bits")), "up")
    with pytest.raises(ProxyError) as caught:
        broken.score(table)
    assert str(caught.value) == "bits + mean(log(weights)) has no finite value on these layers"


def test_loads_what_it_saved(tmp_path, table) -> None:
    path = tmp_path / "new" / "proxy.json"
    save_program(path, NORM_TIMES_ERROR)
    loaded = load_program(path)
    assert loaded == NORM_TIMES_ERROR
    assert (loaded.score(table) == NORM_TIMES_ERROR.score(table)).all()
    assert json.loads(path.read_text())["formula"] == "norm(gradients) * sqrt(errors)"


def test_a_missing_file_is_named(tmp_path) -> None:
    path = tmp_path / "proxy.json"
    assert refusal(path) == (
        f"{path} is missing or damaged (No such file or directory): evolve it anew"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", " is missing or damaged (JSONDecodeError): evolve it anew"),
        ("\x00\xff", " is missing or damaged (JSONDecodeError): evolve it anew"),
        ("[" * 100_000, " is missing or damaged (RecursionError): evolve it anew"),
        ("[]", " is no program ('proxy program 1'): evolve it anew"),
        ('{"schema": 1}', " is no program ('proxy program 1'): evolve it anew"),
    ],
)
def test_a_foreign_file_is_named(tmp_path, text, reason) -> None:
    path = tmp_path / "proxy.json"
    path.write_text(text)
    assert refusal(path) == f"{path}{reason}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expression": None}, "is damaged (no expression: None)"),
        ({"direction": "left"}, "is damaged (direction must be up or down, got 'left')"),
        ({"direction": ["up"]}, "is damaged (direction must be up or down, got ['up'])"),
        (
            {"expression": {"input": "weights"}},
            "is damaged (a program must depend on bits or errors, got weights)",
        ),
        (
            {"formula": "bits"},
            "is damaged (the formula is not that of the expression, "
            "norm(gradients) * sqrt(errors))",
        ),
    ],
)
def test_an_edited_file_is_refused(tmp_path, change, reason) -> None:
    path = tmp_path / "proxy.json"
    save_program(path, NORM_TIMES_ERROR)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refusal(path) == f"{path} {reason}: evolve it anew"


def test_a_formula_in_a_file_cannot_be_huge(tmp_path) -> None:
    tree = {"input": "bits"}
    for _ in range(7):
        tree = {"operation": "sum", "of": [tree, tree]}
    path = tmp_path / "proxy.json"
    header = {"schema": "proxy program 1", "direction": "up", "formula": ""}
    path.write_text(json.dumps({**header, "expression": tree}))
    assert refusal(path) == (
        f"{path} is damaged (a formula may have 200 parts, got 255): evolve it anew"
    )

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from predictors.zerocost.evolution.expressions import Binary, Input, Unary
from predictors.zerocost.evolution.fitness import TOP_SHARES, TrainingSettings, fitness
from predictors.zerocost.evolution.program import Program

BITS, ERRORS = Input("bits"), Input("errors")


def plain_fitness(program: Program, table) -> float:
    rows = np.flatnonzero(~table.held_out)
    rows = rows[np.argsort(-table.accuracy[rows], kind="stable")]
    scores = program.score(table)
    rhos = []
    for share in TOP_SHARES:
        top = rows[: int(np.ceil(share * len(rows)))]
        rhos.append(stats.spearmanr(scores[top], table.accuracy[top]).statistic)
    return float(np.mean(rhos))


@pytest.mark.parametrize(
    "expression",
    [BITS, ERRORS, Binary("product", Unary("norm", Input("gradients")), ERRORS)],
)
def test_is_the_mean_rho_of_the_top_shares_over_tables(table, other_table, expression) -> None:
    tables = [table, other_table]
    found = fitness(expression, [TrainingSettings.of(each) for each in tables])
    rhos = [plain_fitness(Program(expression, "up"), each) for each in tables]
    assert found.value == pytest.approx(abs(np.mean(rhos)))
    assert found.direction == ("up" if np.mean(rhos) > 0 else "down")


def test_the_sign_decides_the_direction_and_nothing_else(table) -> None:
    settings = [TrainingSettings.of(table)]
    damage = fitness(ERRORS, settings)
    gain = fitness(Unary("negate", ERRORS), settings)
    assert damage.value == gain.value
    assert (damage.direction, gain.direction) == ("down", "up")


def test_held_out_settings_are_not_looked_at(table) -> None:
    rng = np.random.default_rng(0)
    accuracy = table.accuracy.copy()
    accuracy[table.held_out] = rng.random(table.held_out.sum())
    other = replace(table, accuracy=accuracy)
    for expression in (BITS, ERRORS):
        one, two = (fitness(expression, [TrainingSettings.of(each)]) for each in (table, other))
        assert one == two


def test_four_settings_from_best_to_worst_are_screened(table) -> None:
    settings = TrainingSettings.of(table)
    assert settings.screened.shape == (4, 8)
    assert settings.screened[0].tolist() == settings.places[0].tolist()
    assert settings.screened[3].tolist() == settings.places[-1].tolist()
    assert (np.diff(settings.accuracy) <= 0.0).all()


@pytest.mark.parametrize(
    "expression",
    [
        Binary("sum", Unary("log", Input("weights")), BITS),
        Binary("difference", BITS, BITS),
        Binary("product", BITS, Unary("reciprocal", BITS)),
        Unary("exp", Unary("exp", Unary("square", BITS))),
        Binary("sum", Binary("difference", BITS, BITS), Unary("mean", Input("weights"))),
    ],
)
def test_broken_and_constant_programs_have_none(table, other_table, expression) -> None:
    assert fitness(expression, [TrainingSettings.of(table)]) is None
    assert fitness(expression, [TrainingSettings.of(e) for e in (other_table, table)]) is None


def test_sums_that_overflow_are_broken(table) -> None:
    settings = TrainingSettings.of(table)
    largest = np.finfo(float).max
    assert settings._rho_of is not None
    with np.errstate(all="ignore"):
        assert settings._rho_of(np.full(table.inputs.errors.size, largest)) is None


def test_a_program_broken_on_one_network_is_broken(table, other_table) -> None:
    negative = replace(
        other_table,
        inputs=replace(
            other_table.inputs,
            statistics={**other_table.inputs.statistics, "hessian": [[-1.0]] * 6},
        ),
    )
    expression = Binary("product", Unary("log", Input("hessian")), BITS)
    assert fitness(expression, [TrainingSettings.of(table)]) is not None
    assert fitness(expression, [TrainingSettings.of(each) for each in (table, negative)]) is None

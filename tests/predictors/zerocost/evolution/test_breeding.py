from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.zerocost.evolution.breeding import (
    MOST_SIZE,
    Odds,
    crossover,
    first_odds,
    mutation,
    raised_odds,
    random_one,
)
from predictors.zerocost.evolution.expressions import Binary, Input, Unary, subexpressions, to_json
from predictors.zerocost.evolution.layer_inputs import NUMBERS, STATISTICS
from predictors.zerocost.evolution.operations import BINARY, UNARY

ODDS = first_odds((*STATISTICS, *NUMBERS))
SEEDS = st.integers(0, 2**32)


@given(SEEDS)
@settings(deadline=None, max_examples=200)
def test_everything_bred_is_a_sound_type_of_modest_size(seed) -> None:
    rng = np.random.default_rng(seed)
    one, other = random_one(rng, ODDS), random_one(rng, ODDS)
    for child in (one, other, mutation(rng, ODDS, one), crossover(rng, one, other)):
        assert child.sees_format
        assert not child.per_value
        assert child.size <= MOST_SIZE


@given(SEEDS)
@settings(deadline=None, max_examples=100)
def test_parents_stay_as_they_are(seed) -> None:
    rng = np.random.default_rng(seed)
    one, other = random_one(rng, ODDS), random_one(rng, ODDS)
    before = to_json(one), to_json(other), one.key, other.key
    mutation(rng, ODDS, one)
    crossover(rng, one, other)
    assert (to_json(one), to_json(other), one.key, other.key) == before


@given(SEEDS)
@settings(deadline=None, max_examples=50)
def test_a_seed_breeds_the_same_again(seed) -> None:
    def bred() -> list[str]:
        rng = np.random.default_rng(seed)
        one, other = random_one(rng, ODDS), random_one(rng, ODDS)
        return [one.key, mutation(rng, ODDS, one).key, crossover(rng, one, other).key]

    assert bred() == bred()


def test_a_child_of_two_has_parts_of_both() -> None:
    one = Binary("sum", Input("bits"), Unary("norm", Input("weights")))
    other = Binary("product", Input("errors"), Unary("mean", Input("gradients")))
    rng = np.random.default_rng(0)
    children = [crossover(rng, one, other).key for _ in range(200)]
    assert "sum(errors, norm(weights))" in children
    assert "sum(bits, mean(gradients))" in children
    mixed = [each for each in children if "weights" in each and "gradients" in each]
    assert len(mixed) > 20


def test_a_mutant_may_gain_lose_or_change_a_part() -> None:
    parent = Binary("sum", Unary("log", Input("bits")), Input("errors"))
    rng = np.random.default_rng(0)
    mutants = {mutation(rng, ODDS, parent).key for _ in range(2000)}
    assert "sum(bits, errors)" in mutants
    assert "sum(sqrt(bits), errors)" in mutants
    assert "sum(sqrt(log(bits)), errors)" in mutants
    assert "product(log(bits), errors)" in mutants
    assert "log(bits)" in mutants
    assert "sum(log(bits), parameters)" in mutants


def test_every_operation_and_structure_is_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_one(rng, ODDS) for _ in range(3000)]
    parts = [part for each in drawn for _, part in subexpressions(each)]
    assert {part.name for part in parts if isinstance(part, Input)} == {*STATISTICS, *NUMBERS}
    assert {part.operation for part in parts if isinstance(part, Unary)} == set(UNARY)
    assert {part.operation for part in parts if isinstance(part, Binary)} == set(BINARY)
    keys = [[part.key for _, part in subexpressions(each)] for each in drawn]
    nested = [each for each in keys if Counter(each).most_common(1)[0][1] > 1]
    assert len(nested) > 300  # graphs, where a part occurs twice
    assert sum(each.is_branch for each in drawn) > 50  # chains


def test_operations_of_two_start_with_their_own_odds() -> None:
    assert ODDS.binary == pytest.approx(
        {"sum": 0.6, "difference": 0.3, "product": 0.05, "matmul": 0.05}
    )


def test_odds_rise_for_what_good_programs_are_made_of() -> None:
    good = [Binary("product", Unary("norm", Input("gradients")), Input("bits"))] * 5
    raised = raised_odds(ODDS, good)
    assert raised.binary["product"] == pytest.approx(0.5 * 0.05 + 0.5)
    assert raised.unary["norm"] == pytest.approx(0.5 / 22 + 0.5)
    assert raised.inputs["gradients"] == raised.inputs["bits"] == pytest.approx(0.5 / 8 + 0.25)
    for odds in (raised.inputs, raised.unary, raised.binary):
        assert sum(odds.values()) == pytest.approx(1.0)
        assert min(odds.values()) > 0.0
    assert first_odds((*STATISTICS, *NUMBERS)) == ODDS


def test_without_good_programs_odds_stay() -> None:
    assert raised_odds(ODDS, []) == ODDS


def test_raised_odds_are_drawn_more_often() -> None:
    raised = Odds(
        ODDS.inputs, {**dict.fromkeys(UNARY, 0.5 / 22), "sqrt": 0.5 + 0.5 / 22}, ODDS.binary
    )

    def count(odds: Odds) -> int:
        rng = np.random.default_rng(1)
        return sum(random_one(rng, odds).key.count("sqrt(") for _ in range(500))

    assert count(raised) > 4 * count(ODDS)

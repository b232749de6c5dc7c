import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from predictors.zerocost.evolution.expressions import Binary, Input, Unary
from predictors.zerocost.evolution.program import Program
from predictors.zerocost.evolution.ranking import in_steps, rank_settings, unit_ranks

VALUES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12)


@given(VALUES)
@settings(deadline=None, max_examples=100)
def test_ranks_are_those_of_scipy_in_unit_length(values) -> None:
    ranks = stats.rankdata(values) - (len(values) + 1) / 2
    norm = np.linalg.norm(ranks)
    expected = ranks / norm if norm > 0 else ranks
    assert unit_ranks(np.array(values)) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20))
@settings(deadline=None, max_examples=100)
def test_their_product_is_spearmans_rho(pairs) -> None:
    one, other = np.array(pairs, dtype=float).T
    if np.ptp(one) and np.ptp(other):
        rho = stats.spearmanr(one, other).statistic
        assert unit_ranks(one) @ unit_ranks(other) == pytest.approx(rho)


def test_scores_that_differ_by_rounding_tie() -> None:
    steps = in_steps(np.array([0.1 + 0.2, 0.3, 5.0]))
    assert steps[0] == steps[1] < steps[2]
    assert in_steps(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]


def test_tells_training_held_out_and_other_settings_apart(table, other_table) -> None:
    bits = Program(Input("bits"), "up")
    ranking = rank_settings(bits, [table], [other_table])
    sides = {
        "train": (ranking.train["synthetic 1"], table, ~table.held_out),
        "held out": (ranking.held_out["synthetic 1"], table, table.held_out),
        "other": (ranking.others["synthetic 2"], other_table, np.ones(300, bool)),
    }
    for interval, each, rows in sides.values():
        sums = each.inputs.bits[each.settings].sum(axis=1)
        rho = stats.spearmanr(sums[rows], each.accuracy[rows]).statistic
        assert interval.value == pytest.approx(rho)
        assert interval.low < rho < interval.high


def test_rho_is_positive_where_the_direction_is_right(table) -> None:
    errors = Input("errors")
    down, up = (
        rank_settings(Program(errors, direction), [table]).train["synthetic 1"].value
        for direction in ("down", "up")
    )
    assert down == -up
    assert down > 0.0


def test_a_program_that_is_broken_or_constant_there_has_no_rho(table) -> None:
    broken = Program(Binary("sum", Unary("log", Input("weights")), Input("bits")), "up")
    constant = Program(Binary("difference", Input("bits"), Input("bits")), "up")
    for program in (broken, constant):
        assert np.isnan(rank_settings(program, [table]).train["synthetic 1"].value)

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.zerocost.evolution.operations import BINARY, UNARY, Groups

GROUPS = st.lists(
    st.lists(st.floats(-5.0, 5.0).map(lambda x: round(x, 3)), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)


def plain_logarithm(x: float) -> float:
    return math.log(x) if x > 0.0 else (-math.inf if x == 0.0 else math.nan)


def plain_softmax(values: list[float]) -> list[float]:
    total = math.fsum(math.exp(each) for each in values)
    return [math.exp(each) / total for each in values]


EACH = {
    "log": plain_logarithm,
    "log_abs": lambda x: plain_logarithm(abs(x)),
    "abs": abs,
    "square": lambda x: x * x,
    "exp": math.exp,
    "relu": lambda x: max(x, 0.0),
    "reciprocal": lambda x: 1.0 / x if x else math.copysign(math.inf, x),
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)),
    "sqrt": lambda x: math.sqrt(x) if x >= 0.0 else math.nan,
    "negate": lambda x: -x,
    "sign": lambda x: float((x > 0.0) - (x < 0.0)),
    "identity": lambda x: x,
}
GROUP = {
    "standardise": lambda v: [(x - statistics.fmean(v)) / statistics.pstdev(v) for x in v],
    "softmax": plain_softmax,
    "log_softmax": lambda v: [math.log(x) for x in plain_softmax(v)],
    "min_max": lambda v: [(x - min(v)) / (max(v) - min(v)) for x in v],
}
REDUCE = {
    "norm": lambda v: math.sqrt(math.fsum(x * x for x in v)),
    "mean": statistics.fmean,
    "mean_abs": lambda v: statistics.fmean(abs(x) for x in v),
    "mean_scalar": statistics.fmean,
    "std_scalar": statistics.pstdev,
    "slogdet": lambda v: math.fsum(plain_logarithm(abs(x)) for x in v),
}


def applied(name: str, groups: list[list[float]]) -> list[float]:
    lengths = Groups(np.array([len(each) for each in groups]))
    with np.errstate(all="ignore"):
        return UNARY[name].apply(np.concatenate(groups), lengths).tolist()


def test_there_are_22_of_one_operand_and_4_of_two() -> None:
    assert (len(UNARY), len(BINARY)) == (22, 4)
    assert {name for name, each in UNARY.items() if each.kind == "each"} == set(EACH)
    assert {name for name, each in UNARY.items() if each.kind == "group"} == set(GROUP)
    assert {name for name, each in UNARY.items() if each.kind == "reduce"} == set(REDUCE)
    assert math.fsum(each.odds for each in BINARY.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(EACH))
@given(GROUPS)
@settings(deadline=None, max_examples=40)
def test_operations_on_values_equal_plain_ones(name, groups) -> None:
    expected = [EACH[name](x) for values in groups for x in values]
    assert applied(name, groups) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", sorted(GROUP))
@given(GROUPS)
@settings(deadline=None, max_examples=40)
def test_operations_in_groups_equal_plain_ones(name, groups) -> None:
    groups = [values for values in groups if len(set(values)) > 1] or [[1.0, 2.0]]
    expected = [x for values in groups for x in GROUP[name](values)]
    assert applied(name, groups) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", sorted(REDUCE))
@given(GROUPS)
@settings(deadline=None, max_examples=40)
def test_reductions_equal_plain_ones(name, groups) -> None:
    expected = [REDUCE[name](values) for values in groups]
    assert applied(name, groups) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["standardise", "min_max"])
def test_equal_values_have_no_scale(name) -> None:
    assert not np.isfinite(applied(name, [[0.1] * 7, [1.0, 2.0]])[:7]).any()
    assert applied("std_scalar", [[0.1] * 7]) == [0.0]


def test_a_large_exponent_is_not_clipped() -> None:
    assert applied("exp", [[1e4]]) == [math.inf]
    assert applied("sigmoid", [[1e4, -1e4]]) == [1.0, 0.0]
    assert applied("softmax", [[1e4, 0.0]]) == [1.0, 0.0]


def test_operations_of_two_are_those_of_arithmetic() -> None:
    one, other = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    found = {name: each.apply(one, other).tolist() for name, each in BINARY.items()}
    assert found == {
        "sum": [4.0, 7.0],
        "difference": [-2.0, -3.0],
        "product": [3.0, 10.0],
        "matmul": [3.0, 10.0],
    }


@pytest.mark.parametrize("name", sorted(UNARY))
def test_operands_stay_as_they_are(name) -> None:
    values = np.array([1.0, 2.0, -3.0])
    values.setflags(write=False)
    with np.errstate(all="ignore"):
        UNARY[name].apply(values, Groups(np.array([2, 1])))
    assert values.tolist() == [1.0, 2.0, -3.0]

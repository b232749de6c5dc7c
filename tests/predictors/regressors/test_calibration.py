import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.regressors.calibration import RisingMap

SETTINGS = settings(max_examples=60, deadline=None)
VALUES = st.lists(
    st.tuples(st.floats(-3, 3).map(lambda x: round(x, 2)), st.floats(-50, 50)),
    min_size=2, max_size=30,
)  # fmt: skip


def pooled(scores, values):
    """Isotonic regression by pooling adjacent violators, in plain loops; equal scores first."""
    blocks = []
    for score in sorted(set(scores)):
        mine = [v for s, v in zip(scores, values, strict=True) if s == score]
        blocks.append([sum(mine) / len(mine), len(mine), score * len(mine)])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            value, count, total = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + value * count) / (last[1] + count)
            last[1], last[2] = last[1] + count, last[2] + total
    return [(total / count, value) for value, count, total in blocks]


@SETTINGS
@given(VALUES)
def test_knots_are_the_blocks_of_an_isotonic_regression(pairs):
    scores, values = (np.array(each) for each in zip(*pairs, strict=True))
    found = RisingMap.fitted(scores, values)
    for score, value in pooled(scores.tolist(), values.tolist()):
        assert found(np.array([score]))[0] == pytest.approx(value, abs=1e-6)


@SETTINGS
@given(VALUES)
def test_it_rises_everywhere_unless_all_values_are_equal(pairs):
    scores, values = (np.array(each) for each in zip(*pairs, strict=True))
    steps = np.diff(RisingMap.fitted(scores, values)(np.linspace(-9.0, 9.0, 50)))
    assert (steps >= 0.0).all()
    if values.std() > 1e-6:
        assert (steps > 0.0).all()


def test_a_line_stays_a_line_beyond_its_ends():
    scores = np.linspace(-1.0, 1.0, 9)
    line = RisingMap.fitted(scores, 4.0 + 3.0 * scores)
    assert line(np.array([-3.0, 0.1, 2.0])) == pytest.approx([-5.0, 4.3, 10.0])


def test_scores_that_tell_nothing_lead_to_the_mean():
    found = RisingMap.fitted(np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 7.0, 5.0, 3.0]))
    assert found(np.array([0.0, 5.0])) == pytest.approx([6.0, 6.0], abs=0.02)

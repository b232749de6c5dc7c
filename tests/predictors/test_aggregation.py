import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from predictors import mean_rank


def test_the_mean_rank_is_that_of_scipy_s_average_ranks():
    columns = np.random.default_rng(0).integers(0, 6, (40, 3)).astype(float)
    expected = np.mean([(rankdata(each) - 0.5) / 40 for each in columns.T], axis=0)
    np.testing.assert_allclose(mean_rank(columns), expected, rtol=1e-12)


def test_a_fixed_population_gives_each_row_a_value_of_its_own():
    rng = np.random.default_rng(1)
    population, rows = rng.normal(size=(100, 4)), rng.normal(size=(20, 4))
    together = mean_rank(rows, population)
    alone = [mean_rank(row[None], population)[0] for row in rows]
    np.testing.assert_array_equal(together, alone)


def test_rows_between_two_of_the_population_stay_apart_and_rows_beyond_it_do_not():
    found = mean_rank(np.array([[0.5], [0.25], [-1.0], [2.0]]), np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(found, [0.5, 0.375, 0.25, 0.75])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_scale_and_unit_of_a_column_do_not_matter(seed, scale, offset):
    columns = np.random.default_rng(seed).integers(-50, 50, (15, 2)).astype(float)
    np.testing.assert_array_equal(mean_rank(columns), mean_rank(scale * columns**3 + offset))


@pytest.mark.parametrize(
    ("columns", "population", "text"),
    [
        (np.zeros(3), None, "columns must have shape (rows, columns), got (3,)"),
        (np.zeros((3, 0)), None, "columns must have shape (rows, columns), got (3, 0)"),
        (np.array([[1.0, np.nan]]), None, "columns[0, 1] is not finite: nan"),
        (np.zeros((2, 2)), np.array([[0.0, np.inf]]), "population[0, 1] is not finite: inf"),
        (
            np.zeros((2, 2)),
            np.zeros((0, 2)),
            "population must have shape (1 or more, 2), got (0, 2)",
        ),
        (
            np.zeros((2, 2)),
            np.zeros((4, 3)),
            "population must have shape (1 or more, 2), got (4, 3)",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused(columns, population, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        mean_rank(columns, population)

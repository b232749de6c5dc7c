import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.regressors.columns import (
    PooledColumns,
    ScaledColumns,
    column_kinds,
    continuous_columns,
    one_hot_blocks,
)


def one_hot(widths, count=60, seed=0, inactive=0.0):
    """Choices, a share of them inactive, with every choice of every decision seen."""
    rng = np.random.default_rng(seed)
    columns = []
    for width in widths:
        picks = rng.permutation(np.arange(count) % width)
        hot = np.eye(width)[picks]
        hot[rng.random(count) < inactive] = 0.0
        columns.append(hot)
    return np.hstack(columns)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_decisions_are_found_from_their_columns(widths, seed):
    ends = np.cumsum(widths)
    expected = [list(range(end - width, end)) for width, end in zip(widths, ends, strict=True)]
    assert one_hot_blocks(one_hot(widths, seed=seed)) == expected


def test_inactive_decisions_are_still_blocks():
    X = one_hot([3, 3, 3], inactive=0.3)
    assert one_hot_blocks(X) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_numbers_part_blocks_and_belong_to_none():
    hot = one_hot([2, 2])
    X = np.hstack([hot[:, :2], np.arange(60.0)[:, None], hot[:, 2:]])
    assert one_hot_blocks(X) == [[0, 1], [3, 4]]


def test_a_column_that_is_always_set_stands_alone():
    X = np.hstack([np.ones((60, 1)), one_hot([2])])
    assert one_hot_blocks(X) == [[0], [1, 2]]


def plain_sums(X, width, windows):
    """Counts by plain loops; the columns are all of one run."""
    rows = []
    for row in X:
        sums = [
            sum(row[block * width + choice] for block in range(first, behind))
            for first, behind in windows
            for choice in range(width)
        ]
        rows.append([*row, *sums])
    return np.array(rows)


@pytest.mark.parametrize(
    ("count", "windows"),
    [
        (2, [(0, 2)]),
        (7, [(0, 7)]),
        (8, [(0, 8), (0, 4), (2, 6), (4, 8), *((start, start + 2) for start in range(7))]),
    ],
)
def test_choices_are_counted_over_the_run_and_over_windows_of_it(count, windows):
    X = one_hot([3] * count)
    found = PooledColumns().fit(X)
    assert [run.windows for run in found.runs] == [windows]
    np.testing.assert_array_equal(found.transform(X), plain_sums(X, 3, windows))


def test_windows_halve_until_they_are_pairs_or_too_many():
    def lengths(count, width):
        run = PooledColumns().fit(one_hot([width] * count)).runs[0]
        assert len(run.windows) * width <= 256
        assert all(0 <= first < behind <= count for first, behind in run.windows)
        return {behind - first for first, behind in run.windows}

    assert {40, 20, 10, 5, 3, 2} <= lengths(40, 2)
    assert {40, 20, 10, 5} <= lengths(40, 6)
    assert not {2, 3} & lengths(40, 6)


def test_runs_end_where_the_width_changes():
    X = one_hot([3, 3, 2, 2, 2])
    found = PooledColumns().fit(X)
    assert [(run.start, run.length, run.width) for run in found.runs] == [(0, 2, 3), (6, 3, 2)]


def test_nothing_is_added_to_numbers_or_to_a_single_decision():
    for X in (np.random.default_rng(0).normal(size=(20, 4)), one_hot([4])):
        np.testing.assert_array_equal(PooledColumns().fit(X).transform(X), X)


def test_new_rows_are_counted_as_the_fitted_ones_are():
    X = one_hot([3, 3])
    assert PooledColumns().fit(X).transform(np.ones((1, 6)))[0, 6:].tolist() == [2.0, 2.0, 2.0]


def test_scaled_columns_have_mean_0_and_deviation_1_and_are_clipped():
    X = np.random.default_rng(0).normal(3.0, 2.0, (50, 3))
    X[:, 1] = 4.0
    scaled = ScaledColumns().fit(X)
    found = scaled.transform(X)
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=0), [1.0, 0.0, 1.0])
    assert scaled.transform(np.full((1, 3), 1e9)).tolist() == [[5.0, 0.0, 5.0]]


def test_kinds_of_columns_are_a_partition():
    X = np.array([[0.0, 2.0, 0.5, 1.0], [1.0, 3.0, 2.0, 0.0]])
    assert [kind.tolist() for kind in column_kinds(X)] == [[0, 3], [1], [2]]
    assert [kind.tolist() for kind in column_kinds(X[:, :1])] == [[0]]
    assert continuous_columns(X).tolist() == [2]

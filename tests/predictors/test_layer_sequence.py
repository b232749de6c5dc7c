import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors import layer_columns, pad_layers


def message_of(call, *arguments):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        call(*arguments)
    return str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 2))
def test_layers_stand_in_front_and_the_rest_is_zero(lengths, statistics, more):
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(length, statistics)) for length in lengths]
    positions = max(lengths) + more
    values, present = pad_layers(sequences, positions)
    assert values.shape == (len(lengths), positions, statistics)
    for row, length in enumerate(lengths):
        for position in range(positions):
            there = position < length
            assert present[row, position] == there
            expected = sequences[row][position] if there else np.zeros(statistics)
            assert np.array_equal(values[row, position], expected)


def test_without_positions_the_longest_network_says_how_many():
    values, present = pad_layers([np.ones((2, 3)), np.ones((4, 3))])
    assert values.shape == (2, 4, 3)
    assert present.sum(axis=1).tolist() == [2, 4]


def test_columns_go_position_by_position_and_end_with_the_mask():
    values = np.arange(12.0).reshape(2, 3, 2)
    present = np.array([[True, False, True], [True, True, True]])
    columns = layer_columns(values, present)
    assert columns.tolist() == [
        [0.0, 1.0, 0.0, 0.0, 4.0, 5.0, 1.0, 0.0, 1.0],
        [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 1.0, 1.0, 1.0],
    ]


def test_what_absent_layers_hold_is_not_read():
    values = np.ones((1, 2, 1))
    present = np.array([[True, False]])
    other = values.copy()
    other[0, 1] = np.nan
    assert np.array_equal(layer_columns(values, present), layer_columns(other, present))


@pytest.mark.parametrize(("values", "present"), [((2, 3), (2, 3)), ((2, 3, 4), (2, 4))])
def test_shapes_that_do_not_fit_are_named(values, present):
    assert message_of(layer_columns, np.zeros(values), np.zeros(present)) == (
        "values must have shape (networks, positions, statistics) and present the first two of "
        f"it, got {values} and {present}"
    )


def test_no_network_is_refused():
    assert message_of(pad_layers, []) == "sequences must hold at least one network"


def test_statistics_must_agree():
    assert message_of(pad_layers, [np.zeros((2, 3)), np.zeros((1, 2))]) == (
        "sequences must hold arrays (layers, statistics) with as many statistics each, got shapes "
        "[(2, 3), (1, 2)]"
    )


def test_too_few_positions_are_refused():
    assert message_of(pad_layers, [np.zeros((5, 1))], 4) == "positions must be 5 or more, got 4"

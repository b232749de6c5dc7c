import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.search.pareto import (
    constrained_ranks,
    crowding,
    hypervolume,
    hypervolume_2d,
    knee,
    losses_of,
    merged_front,
    nondominated,
    pick_diverse,
    violations_of,
)

SETTINGS = settings(max_examples=60, deadline=None)
INF, NAN = float("inf"), float("nan")


@st.composite
def loss_arrays(draw, *, objectives=(1, 2, 3, 4), rows=(0, 14), broken=True):
    """Few distinct values, so that ties and equal rows are common."""
    columns = draw(st.sampled_from(objectives))
    count = draw(st.integers(*rows))
    values = st.integers(0, 4).map(float)
    values = values | st.sampled_from([INF, NAN]) if broken else values
    flat = draw(st.lists(values, min_size=count * columns, max_size=count * columns))
    return np.array(flat, dtype=np.float64).reshape(count, columns)


def beats(one, other) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(
        a < b for a, b in zip(one, other, strict=True)
    )


def brute_front(losses) -> list[bool]:
    rows = [[INF if np.isnan(each) else each for each in row] for row in losses]
    return [
        np.isfinite(row).all()
        and not any(beats(other, row) for other in rows)
        and row not in rows[:index]
        for index, row in enumerate(rows)
    ]


@SETTINGS
@given(loss_arrays())
def test_the_front_is_what_plain_loops_find(losses):
    assert nondominated(losses).tolist() == brute_front(losses)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_front_of_many_rows_is_what_plain_loops_find(objectives):
    losses = np.random.default_rng(objectives).integers(0, 25, (150, objectives)).astype(float)
    assert nondominated(losses).tolist() == brute_front(losses)


def test_a_missing_value_hides_no_other_row():
    losses = np.array([[0.0, NAN], [1.0, 1.0], [2.0, 0.5], [NAN, 0.0]])
    assert nondominated(losses).tolist() == [False, True, True, False]


def test_of_equal_rows_the_first_is_on_the_front():
    losses = np.array([[1.0, 1.0], [0.0, 2.0], [1.0, 1.0]])
    assert nondominated(losses).tolist() == [True, True, False]


@SETTINGS
@given(loss_arrays(objectives=(2, 3), rows=(1, 14)), st.data())
def test_ranks_peel_front_after_front_and_order_the_infeasible_by_violation(losses, data):
    count = len(losses)
    violations = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.5, INF]), min_size=count,
                           max_size=count))
    )  # fmt: skip
    left = [index for index in range(count) if violations[index] <= 0]
    expected, rank = {}, 0
    while left:
        best = [i for i, on in zip(left, brute_front(losses[left]), strict=True) if on] or left
        expected |= dict.fromkeys(best, rank)
        left = [index for index in left if index not in best]
        rank += 1
    for level in sorted({each for each in violations if each > 0}):
        expected |= {i: rank for i in range(count) if violations[i] == level}
        rank += 1
    assert constrained_ranks(losses, violations).tolist() == [expected[i] for i in range(count)]


def test_a_violation_that_is_not_a_number_is_the_worst():
    ranks = constrained_ranks(np.zeros((4, 2)), np.array([NAN, 0.0, 7.0, INF]))
    assert ranks[1] < ranks[2] < ranks[3] < ranks[0]


def test_crowding_is_the_normalised_gap_between_the_neighbours():
    losses = np.array([[0.0, 10.0], [1.0, 6.0], [4.0, 2.0], [5.0, 0.0]])
    expected = [INF, (4 - 0) / 5 + (10 - 2) / 10, (5 - 1) / 5 + (6 - 0) / 10, INF]
    np.testing.assert_allclose(crowding(losses), expected)


@SETTINGS
@given(loss_arrays(objectives=(1, 2, 3), broken=False))
def test_crowding_is_what_plain_loops_find(losses):
    count = len(losses)
    expected = [0.0] * count
    for column in losses.T.tolist():
        order = sorted(range(count), key=lambda row, column=column: column[row])
        for place, row in enumerate(order):
            if place in (0, count - 1):
                expected[row] = INF
            elif max(column) > min(column):
                gap = column[order[place + 1]] - column[order[place - 1]]
                expected[row] += gap / (max(column) - min(column))
    np.testing.assert_allclose(crowding(losses), expected)


@SETTINGS
@given(loss_arrays())
def test_crowding_bears_missing_values_and_needs_no_rows(losses):
    distance = crowding(losses)
    assert distance.shape == (len(losses),)
    assert (distance >= 0).all()


def area_in_cells(losses, corner: int) -> int:
    """Unit cells of a grid that some row with whole coordinates dominates."""
    return sum(
        any(x <= column and y <= row for x, y in losses)
        for column in range(corner)
        for row in range(corner)
    )


@SETTINGS
@given(loss_arrays(objectives=(2,), broken=False), st.integers(1, 6))
def test_hypervolume_counts_the_cells_that_are_dominated(losses, corner):
    reference = np.array([corner, corner], dtype=np.float64)
    assert hypervolume_2d(losses, reference) == area_in_cells(losses.tolist(), corner)


def test_hypervolume_by_hand():
    losses = np.array([[1.0, 3.0], [2.0, 1.0], [3.0, 3.0], [9.0, 0.0], [NAN, 0.0]])
    assert hypervolume_2d(losses, np.array([4.0, 5.0])) == 1 * 2 + 2 * 4


@SETTINGS
@given(loss_arrays(objectives=(1, 2, 3), broken=False), st.integers(1, 5))
def test_hypervolume_of_up_to_three_objectives_counts_cells(losses, corner):
    columns = losses.shape[1]
    cells = np.indices((corner,) * columns).reshape(columns, -1).T
    covered = [any((row <= cell).all() for row in losses) for cell in cells]
    assert hypervolume(losses, np.full(columns, float(corner))) == sum(covered)


def test_hypervolume_of_four_objectives_is_near_that_of_boxes():
    """Two boxes by inclusion and exclusion."""
    losses = np.array([[0.0, 0.5, 0.2, 0.1], [0.6, 0.0, 0.3, 0.0]])
    reference = np.ones(4)
    boxes = [np.prod(reference - row) for row in (*losses, losses.max(axis=0))]
    exact = boxes[0] + boxes[1] - boxes[2]
    assert hypervolume(losses, reference) == pytest.approx(exact, rel=0.03)
    wider = hypervolume(losses, reference, np.full(4, -0.2))
    assert wider == pytest.approx(exact, rel=0.08)


@SETTINGS
@given(loss_arrays(rows=(0, 12), broken=False), loss_arrays(rows=(0, 12), broken=False))
def test_a_merged_front_is_the_front_of_all(one, other):
    columns = min(one.shape[1], other.shape[1])
    front, rows = one[:, :columns], other[:, :columns]
    front = front[nondominated(front)]
    stays, joins = merged_front(front, rows)
    expected = brute_front(np.concatenate([front, rows]))
    assert [*stays.tolist(), *joins.tolist()] == expected


def test_the_front_of_more_rows_than_a_block_is_what_plain_loops_find():
    losses = np.random.default_rng(0).integers(0, 14, (1300, 3)).astype(float)
    assert nondominated(losses).tolist() == brute_front(losses)


def test_crowding_within_ranks_is_that_of_each_rank_alone():
    rng = np.random.default_rng(0)
    losses, ranks = rng.random((60, 3)), rng.integers(0, 5, 60)
    found = crowding(losses, ranks)
    for rank in range(5):
        np.testing.assert_allclose(found[ranks == rank], crowding(losses[ranks == rank]))


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
def test_two_thousand_rows_are_ranked_in_a_moment(objectives):
    losses = np.random.default_rng(0).random((2000, objectives))
    began = time.process_time()
    ranks = constrained_ranks(losses, np.zeros(2000))
    assert time.process_time() - began < 0.3
    assert nondominated(losses).tolist() == (ranks == 0).tolist()


def scaled_together(losses, known) -> tuple[np.ndarray, np.ndarray]:
    low = np.concatenate([losses, known]).min(axis=0)
    high = np.concatenate([losses, known]).max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return (losses - low) / span, (known - low) / span


def exact_gains(scaled, taken) -> np.ndarray:
    """By inclusion and exclusion: the volume with a row less the volume without."""
    corner = np.array([1.1, 1.1])
    before = hypervolume_2d(taken, corner)
    return np.array([hypervolume_2d(np.vstack([taken, row]), corner) - before for row in scaled])


def steps(losses, known, picked) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each index that was picked with the gains of all rows that were free before."""
    scaled, taken = scaled_together(losses, known)
    free = np.ones(len(losses), dtype=bool)
    for index in picked.tolist():
        yield index, np.where(free, exact_gains(scaled, taken), -INF)
        free[index] = False
        taken = np.vstack([taken, scaled[index]])


@SETTINGS
@given(
    loss_arrays(objectives=(2,), rows=(1, 12), broken=False),
    loss_arrays(objectives=(2,), rows=(0, 5), broken=False),
    st.integers(1, 6),
)
def test_every_pick_gains_the_most_hypervolume(losses, known, count):
    picked = pick_diverse(losses, known, count)
    assert len(picked) == len(set(picked.tolist())) == min(count, len(losses))
    for index, gains in steps(losses, known, picked):
        assert gains[index] == pytest.approx(gains.max(), abs=1e-12)


def test_gains_are_exact_on_a_real_front():
    rng = np.random.default_rng(3)
    losses, known = rng.random((200, 2)), rng.random((20, 2)) + 0.1
    for index, gains in steps(losses, known, pick_diverse(losses, known, 30)):
        assert gains[index] == pytest.approx(gains.max(), abs=1e-12)


def test_rows_that_gain_nothing_come_nearest_first():
    known = np.array([[0.0, 0.5], [0.5, 0.0]])
    behind = np.array([[0.9, 0.9], [0.6, 0.1], [0.2, 0.55], [1.0, 1.0]])
    assert pick_diverse(behind, known, 4).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("objectives", [1, 3])
def test_with_another_number_of_objectives_the_front_comes_first_then_distance(objectives):
    rng = np.random.default_rng(objectives)
    losses, known = rng.random((30, objectives)), rng.random((4, objectives))
    front = nondominated(losses)
    picked = pick_diverse(losses, known, 30)
    on_front = front[picked]
    assert on_front[: front.sum()].all()
    assert sorted(picked.tolist()) == list(range(30))
    scaled, taken = scaled_together(losses, known)
    distances = np.linalg.norm(scaled[front][:, None] - taken, axis=2).min(axis=1)
    assert picked[0] == np.flatnonzero(front)[distances.argmax()]


def test_with_three_objectives_and_nothing_known_the_best_sum_comes_first():
    losses = np.array([[0.0, 1.0, 1.0], [0.3, 0.3, 0.3], [1.0, 0.0, 1.0]])
    assert pick_diverse(losses, losses[:0], 1).tolist() == [1]


@pytest.mark.parametrize("objectives", [2, 3])
def test_units_do_not_change_what_is_picked(objectives):
    rng = np.random.default_rng(1)
    losses, known = rng.random((40, objectives)), rng.random((5, objectives))
    factors, offsets = np.array([8.0, 0.25, 64.0])[:objectives], np.array([2.0, -1.0, 0.5])
    turned = [each * factors + offsets[:objectives] for each in (losses, known)]
    assert np.array_equal(pick_diverse(*turned, 12), pick_diverse(losses, known, 12))


def test_rows_that_are_not_finite_are_neither_picked_nor_heeded():
    losses = np.array([[NAN, 0.0], [0.0, 1.0], [INF, INF], [1.0, 0.0]])
    known = np.array([[0.5, 0.5], [INF, 0.0], [0.1, NAN]])
    expected = pick_diverse(losses[[1, 3]], known[:1], 4)
    assert pick_diverse(losses, known, 4).tolist() == np.array([1, 3])[expected].tolist()


@pytest.mark.parametrize("losses", [np.zeros((0, 2)), np.full((3, 2), INF), np.zeros((0, 3))])
def test_nothing_to_pick_from_picks_nothing(losses):
    picked = pick_diverse(losses, losses[:0], 3)
    assert picked.shape == (0,)
    assert picked.dtype == np.int64


def test_a_count_of_none_picks_nothing():
    assert len(pick_diverse(np.zeros((3, 2)), np.zeros((0, 2)), 0)) == 0


def test_the_knee_lies_farthest_below_the_line_between_the_ends():
    rng = np.random.default_rng(0)
    for _ in range(20):
        losses = rng.random((30, 2)) * np.array([5.0, 0.01])
        front = losses[nondominated(losses)]
        front = front[np.argsort(front[:, 0])]
        x, y = ((front - front.min(axis=0)) / np.ptp(front, axis=0)).T
        below = [(1.0 - x[i] - y[i]) / np.sqrt(2.0) for i in range(len(front))]
        assert knee(front) == int(np.argmax(below))


def test_the_knee_of_three_objectives_is_nearest_to_the_ideal_point():
    losses = np.array([[0.0, 10.0, 1.0], [1.0, 0.0, 1.0], [0.5, 4.0, 0.0], [0.9, 9.0, 0.9]])
    assert knee(losses) == 2


def test_a_front_of_one_is_its_own_knee():
    assert knee(np.array([[3.0, 4.0]])) == 0


def test_losses_turn_what_is_to_be_large_and_missing_is_infinitely_bad():
    values = {"accuracy": np.array([0.9, NAN]), "latency_ms": np.array([2.0, NAN])}
    losses = losses_of(values, {"latency_ms": "min", "accuracy": "max"})
    assert losses.tolist() == [[2.0, -0.9], [INF, INF]]


def test_violations_add_relative_excesses():
    values = {
        "accuracy": np.array([0.9, 0.6, 0.8, NAN]),
        "size_kib": np.array([10.0, 15.0, 20.0, 1.0]),
    }
    found = violations_of(values, {"size_kib": 10.0, "accuracy": 0.8})
    np.testing.assert_allclose(found, [0.0, 0.5 + 0.25, 1.0, INF])


def test_without_limits_everybody_is_feasible():
    assert violations_of({"size_kib": np.array([1.0, NAN])}, {}).tolist() == [0.0, 0.0]


def test_a_limit_of_nothing_can_be_kept():
    found = violations_of({"spill_kib": np.array([0.0, 1.0])}, {"spill_kib": 0.0})
    assert found[0] == 0.0
    assert found[1] > 0.0

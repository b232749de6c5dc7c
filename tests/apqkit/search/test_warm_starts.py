from dataclasses import replace

import numpy as np
import pytest

from apqkit.cost.network import NetworkCost
from apqkit.search.problem import Problem, SearchSettings
from apqkit.search.warm_starts import allocated_starts, uniform_starts
from apqkit.spaces.draws import draw_uniform


class AdditiveScore:
    """Accuracy and costs that add up over the blocks of a toy space."""

    def __init__(self, space, seed=0):
        rng = np.random.default_rng(seed)
        self.space = space
        self.harm = np.sort(rng.random((space.blocks, 3)))[:, ::-1]
        self.bits = np.sort(rng.random((space.blocks, 3)) + 0.1)

    def __call__(self, picks):
        formats = picks[:, -self.space.blocks :]
        used = self.space.active(picks)[:, -self.space.blocks :]
        blocks = np.arange(self.space.blocks)
        return {
            "accuracy": 0.9 - 0.05 * (self.harm[blocks, formats] * used).sum(axis=1),
            "size_kib": 1.0 + (self.bits[blocks, formats] * used).sum(axis=1),
        }


@pytest.fixture
def additive(toy_problem):
    space = type(toy_problem.space)(blocks=5)
    return replace(toy_problem, space=space, score=AdditiveScore(space))


def every_format(space, architecture):
    picks = np.repeat(architecture[None], 3**space.blocks, axis=0)
    formats = np.indices((3,) * space.blocks).reshape(space.blocks, -1).T
    picks[:, -space.blocks :] = formats
    return np.unique(space.repair(picks), axis=0)


@pytest.mark.parametrize("limit", [2.2, 3.0, 4.0])
def test_where_sums_hold_an_allocation_is_the_best_of_all(additive, limit):
    space = additive.space
    problem = replace(additive, objectives={"accuracy": "max"}, limits={"size_kib": limit})
    for depth in (2, 4):
        architecture = np.array([depth] + 5 * [1] + 5 * [0])
        everyone = every_format(space, architecture)
        losses, violations = problem.judged(everyone)
        found = allocated_starts(problem, architecture[None])
        if not (violations <= 0).any():
            assert found.shape == (0, 11)
            continue
        own, excess = problem.judged(found)
        assert excess.max() <= 1e-9
        assert own.min() == pytest.approx(losses[violations <= 0].min())


def test_an_objective_is_met_at_several_points_of_its_front(additive):
    architecture = np.array([[4] + 5 * [1] + 5 * [0]])
    found = allocated_starts(additive, architecture, points=6)
    losses, _ = additive.judged(found)
    everyone, _ = additive.judged(every_format(additive.space, architecture[0]))
    assert len(found) >= 5
    for row in losses:
        assert not ((everyone <= row).all(axis=1) & (everyone < row).any(axis=1)).any()


def test_formats_of_the_architectures_that_are_given_do_not_count(additive):
    one = np.array([[4] + 5 * [1] + 5 * [0]])
    other = np.array([[4] + 5 * [1] + 5 * [2]])
    assert np.array_equal(allocated_starts(additive, one), allocated_starts(additive, other))


def test_a_format_that_cannot_run_is_not_allocated(additive):
    def score(picks):
        values = additive.score(picks)
        values["size_kib"] = np.where(picks[:, 6] == 1, np.nan, values["size_kib"])
        return values

    architecture = np.array([[4] + 5 * [1] + 5 * [0]])
    found = allocated_starts(replace(additive, score=score), architecture, points=10)
    assert len(found)
    assert not (found[:, 6] == 1).any()


def test_layers_of_a_real_space_are_allocated_with_both_formats(mobilenet):
    def score(picks):
        costs = NetworkCost().cost(mobilenet.network(picks))
        is_quant = [dim.role == "quant" for dim in mobilenet.dims]
        noise = (mobilenet.active(picks) / (1.0 + picks))[:, is_quant].sum(axis=1)
        return {**costs, "accuracy": 1.0 - noise / 100.0}

    architectures = draw_uniform(mobilenet, 3, np.random.default_rng(0))
    sizes = score(architectures)["size_kib"]
    problem = Problem(
        mobilenet,
        score,
        {"accuracy": "max", "bops": "min"},
        {"size_kib": float(sizes.min())},
        SearchSettings(),
    )
    found = allocated_starts(problem, architectures)
    assert np.array_equal(mobilenet.repair(found), found)
    assert (problem.judged(found)[1] <= 1e-9).all()
    assert len(found) >= 3


def test_a_space_without_formats_has_no_allocations(additive):
    class Plain:
        dims = additive.space.dims[:6]

        def repair(self, picks):
            return picks

    problem = replace(additive, space=Plain())
    assert allocated_starts(problem, np.zeros((2, 6), dtype=np.int64)).shape == (0, 6)


def test_uniform_starts_have_one_format_and_hold_the_smallest(toy_problem, toy_space):
    formats = [("int2", ""), ("int8", "")]
    found = uniform_starts(toy_problem, formats, 20, np.random.default_rng(0))
    assert 10 <= len(found) <= 20
    assert np.array_equal(toy_space.repair(found), found)
    used = toy_space.active(found)[:, 4:]
    for row, mask in zip(found[:, 4:], used, strict=True):
        assert len(set(row[mask])) == 1
        assert row[mask][0] in (0, 2)
    rows = found.tolist()
    assert [0] * 7 in rows
    assert [0, 0, 0, 0, 2, 0, 0] in rows


def test_no_format_gives_no_start(toy_problem):
    assert uniform_starts(toy_problem, [], 5, np.random.default_rng(0)).shape == (0, 7)

import time

import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.search.breeding import Breeder
from apqkit.search.problem import MutationRates
from apqkit.spaces.apq import ApqOptions, ApqSpace
from apqkit.spaces.draws import draw_uniform

STILL = MutationRates(arch=0.0, prune=0.0, quant=0.0, base_format=0.0)


def children_of(space, parents, rates, count=4000, seed=0):
    rng = np.random.default_rng(seed)
    mothers, fathers = rng.integers(0, len(parents), (2, count))
    return mothers, fathers, Breeder(space, rates).children(parents, mothers, fathers, rng)


def roles(space):
    return np.array([dim.role for dim in space.dims])


@pytest.mark.parametrize("role", ["arch", "prune", "quant"])
def test_only_dims_of_a_role_with_a_rate_change(wide_toy_space, role):
    rates = MutationRates(**{**vars(STILL), role: 1.5})
    parent = np.array([[9] + 20 * [1]])  # one parent: crossover changes nothing
    _, _, children = children_of(wide_toy_space, parent, rates)
    changed = children != parent
    assert not changed[:, roles(wide_toy_space) != role].any()
    mutable = roles(wide_toy_space) == role
    expected = min(1.5, mutable.sum()) if role != "arch" else 1.0
    # Strengths average 7/6; a mutation draws the value that was there in some of the cases.
    assert 0.4 * expected < changed.sum(axis=1).mean() < 1.2 * expected


def test_every_child_is_made_of_choices_that_exist(mobilenet):
    parents = draw_uniform(mobilenet, 30, np.random.default_rng(0))
    _, _, children = children_of(mobilenet, parents, MutationRates(5.0, 5.0, 9.0, 0.5))
    counts = np.array([len(dim.choices) for dim in mobilenet.dims])
    assert children.dtype == np.int64
    assert ((children >= 0) & (children < counts)).all()
    for column, count in enumerate(counts):
        assert len(np.unique(children[:, column])) == count


def test_without_mutation_a_used_dim_comes_from_a_parent_that_uses_it(wide_toy_space):
    parents = draw_uniform(wide_toy_space, 40, np.random.default_rng(1))
    mothers, fathers, children = children_of(wide_toy_space, parents, STILL)
    used = wide_toy_space.active(parents)
    by_mother = used[mothers] & (children == parents[mothers])
    by_father = used[fathers] & (children == parents[fathers])
    neither = ~used[mothers] & ~used[fathers]
    assert (by_mother | by_father | neither).all()
    assert by_mother.any(axis=0).all()
    assert by_father.any(axis=0).all()


def test_blocks_stages_and_roles_are_inherited_whole_more_often_than_by_chance(mobilenet):
    names = [dim.name.split(".") for dim in mobilenet.dims]
    counts = np.array([len(dim.choices) for dim in mobilenet.dims])
    parents = np.stack([np.zeros(len(counts), dtype=np.int64), counts - 1])
    parents[0, [dim.name.startswith("depth") for dim in mobilenet.dims]] = 1  # both use all
    rng = np.random.default_rng(0)
    ones, twos = np.zeros(4000, dtype=np.int64), np.ones(4000, dtype=np.int64)
    children = Breeder(mobilenet, STILL).children(parents, ones, twos, rng)
    takes = children == counts - 1
    differ = parents[0] != parents[1]
    for key in (lambda parts: parts[1], lambda parts: ".".join(parts[1:3])):
        labels = np.array([key(parts) for parts in names])
        largest = max(np.unique(labels[differ]), key=lambda label: (labels == label).sum())
        part = takes[:, differ & (labels == largest)]
        whole = part.all(axis=1) | ~part.any(axis=1)
        mixed_beside = takes[:, differ].any(axis=1) & ~takes[:, differ].all(axis=1)
        assert (whole & mixed_beside).mean() > 0.1
    is_quant = roles(mobilenet) == "quant"
    formats_alone = takes[:, is_quant].all(axis=1) & ~takes[:, differ & ~is_quant].any(axis=1)
    assert formats_alone.mean() > 0.01


def test_a_move_of_the_base_format_sets_a_stage_or_the_network(mobilenet):
    rates = MutationRates(0.0, 0.0, 0.0, 1.0)
    is_quant = roles(mobilenet) == "quant"
    largest = np.array([[len(dim.choices) - 1 for dim in mobilenet.dims]])
    parent = np.where(is_quant, 0, largest)
    _, _, children = children_of(mobilenet, parent, rates)
    assert (children[:, ~is_quant] == parent[:, ~is_quant]).all()
    changed = children != parent
    stages = np.array([dim.name.split(".")[1] for dim in mobilenet.dims])
    touched = np.array([len(set(stages[row])) for row in changed])
    assert set(touched) >= {0, 1}
    assert (touched > 1).mean() > 0.05
    for row, each in zip(children, changed, strict=True):
        values = {mobilenet.dims[column].choices[row[column]] for column in np.flatnonzero(each)}
        assert len(values) <= 1


def test_a_format_that_a_dim_does_not_offer_leaves_it_alone(mobilenet):
    rates = MutationRates(0.0, 0.0, 0.0, 1.0)
    stem = next(i for i, dim in enumerate(mobilenet.dims) if dim.name == "a_format.s0.b0.expand")
    offered = {dim.choices for dim in mobilenet.dims if dim.role == "quant"}
    assert offered  # every dim below keeps to its own choices
    parent = np.zeros((1, len(mobilenet.dims)), dtype=np.int64)
    _, _, children = children_of(mobilenet, parent, rates)
    assert set(children[:, stem]) == set(range(len(mobilenet.dims[stem].choices)))


def test_a_space_without_formats_breeds_too(wide_toy_space):
    class Plain:
        dims = tuple(dim for dim in wide_toy_space.dims if dim.role == "prune")

        def active(self, picks):
            return np.ones(picks.shape, dtype=bool)

    parents = np.zeros((2, 10), dtype=np.int64)
    _, _, children = children_of(Plain(), parents, MutationRates(base_format=1.0), 50)
    assert children.shape == (50, 10)
    assert children.any()


def test_the_same_generator_breeds_the_same(mobilenet):
    parents = draw_uniform(mobilenet, 10, np.random.default_rng(0))
    first, again = (children_of(mobilenet, parents, MutationRates(), 50, 7)[2] for _ in range(2))
    assert np.array_equal(first, again)


def test_a_block_that_appears_is_often_like_the_one_before_it(wide_toy_space):
    shallow = np.array([[3] + 10 * [2] + 10 * [1]])
    breeder = Breeder(wide_toy_space, STILL)
    pair = np.zeros(4000, dtype=np.int64)
    children = breeder.children(
        wide_toy_space.repair(shallow), pair, pair, np.random.default_rng(0)
    )
    alike = (children[:, [5, 15]] == [2, 1]).all(axis=1)  # both dims of the block after the last
    assert 0.5 < alike.mean() < 0.65  # half, and a ninth of the rest
    assert len(np.unique(children[:, 5])) == 3


def test_a_child_of_131_dims_takes_microseconds():
    formats = ("int4", "int6", "int8")
    config = SpaceConfig(
        weight_formats=formats, activation_formats=formats, first_last_formats=("int8",)
    )
    space = ApqSpace(config, ApqOptions(), (3, 224, 224), 1000)
    parents = draw_uniform(space, 1000, np.random.default_rng(0))
    breeder, rng = Breeder(space, MutationRates()), np.random.default_rng(0)
    mothers, fathers = rng.integers(0, 1000, (2, 1000))
    breeder.children(parents, mothers, fathers, rng)
    began = time.process_time()
    for _ in range(5):
        breeder.children(parents, mothers, fathers, rng)
    assert (time.process_time() - began) / 5000 < 50e-6

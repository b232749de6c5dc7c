from dataclasses import replace

import numpy as np
import pytest

from apqkit.cost.network import NetworkCost
from apqkit.search.problem import Problem, SearchSettings
from apqkit.search.strategies import STRATEGIES, Known, Proposal, seed_proposals
from apqkit.spaces.base import smallest_picks
from apqkit.spaces.draws import draw_uniform, with_format
from apqkit.testing import check_strategy

UNIFORM = [("int4", "int4"), ("int8", "int8")]


@pytest.fixture
def _quick_nsga2(monkeypatch):
    monkeypatch.setattr("apqkit.search.optuna_nsga2._GENERATIONS", 3)


@pytest.fixture(params=STRATEGIES)
def propose(request, _quick_nsga2):
    return STRATEGIES[request.param]


def known_of(problem, picks):
    if not len(picks):
        return Known(picks, np.zeros((0, len(problem.objectives))), np.zeros(0))
    return Known(picks, *problem.judged(picks))


def nothing_known(problem):
    return known_of(problem, np.zeros((0, len(problem.space.dims)), dtype=np.int64))


def as_rows(picks):
    return {tuple(row) for row in picks.tolist()}


@pytest.fixture
def problem(toy_problem):
    return replace(
        toy_problem,
        limits={"latency_ms": 50.0},
        settings=SearchSettings(population=30, generations=8),
    )


def test_every_strategy_conforms(propose, mobilenet):
    check_strategy(propose, mobilenet)


def test_what_is_asked_for_is_proposed_new_distinct_and_within_limits(propose, problem, toy_space):
    known = known_of(problem, toy_space.everyone()[::4])
    found = propose(problem, known, 20, np.random.default_rng(1))
    assert len(found.picks) == len(found.origins) == 20
    assert len(as_rows(found.picks)) == 20
    assert not as_rows(found.picks) & as_rows(known.picks)
    assert (problem.judged(found.picks)[1] <= 0).all()
    assert np.array_equal(toy_space.repair(found.picks), found.picks)


def test_it_starts_from_nothing(propose, problem):
    found = propose(problem, nothing_known(problem), 5, np.random.default_rng(0))
    assert len(found.picks) == 5


def test_nearly_everything_known_leaves_the_rest_and_everything_known_nothing(
    propose, problem, toy_space
):
    everyone = toy_space.everyone()
    left = [7, 300, 500]
    known = known_of(problem, np.delete(everyone, left, axis=0))
    found = propose(problem, known, 10, np.random.default_rng(0))
    assert as_rows(found.picks) <= as_rows(everyone[left])
    full = known_of(problem, everyone)
    assert propose(problem, full, 10, np.random.default_rng(0)).picks.shape == (0, 7)


def test_limits_that_no_candidate_meets_are_borne(propose, problem):
    """An accuracy limit that predictions think impossible is for measurements to decide."""
    hard = replace(problem, limits={"accuracy": 0.9999})
    found = propose(hard, nothing_known(hard), 6, np.random.default_rng(0))
    assert len(as_rows(found.picks)) == 6
    known = known_of(hard, found.picks)
    again = propose(hard, known, 6, np.random.default_rng(1))
    assert len(again.picks) == 6
    assert not as_rows(again.picks) & as_rows(found.picks)


def test_what_cannot_be_scored_is_not_proposed(propose, problem):
    def score(picks):
        values = problem.score(picks)
        values["size_kib"] = np.where(picks[:, 4] == 1, np.nan, values["size_kib"])
        return values

    partly = replace(problem, score=score)
    found = propose(partly, nothing_known(partly), 30, np.random.default_rng(0))
    assert len(found.picks) == 30
    assert not (found.picks[:, 4] == 1).any()


def test_evolution_proposes_what_improves_the_known_front(problem, toy_space):
    known = known_of(problem, draw_uniform(toy_space, 40, np.random.default_rng(0)))
    found = STRATEGIES["evolution"](problem, known, 5, np.random.default_rng(0))
    assert found.origins == ("evolution",) * 5
    feasible = known.feasible_losses
    for row in problem.judged(found.picks)[0]:
        assert not (feasible <= row).all(axis=1).any()


def test_evolution_fills_up_with_random_candidates_and_says_so(problem, toy_space):
    front_only = replace(problem, objectives={"size_kib": "min"})
    found = STRATEGIES["evolution"](
        front_only, nothing_known(front_only), 6, np.random.default_rng(0)
    )
    assert found.origins == ("evolution",) + ("random",) * 5
    assert found.picks[0].tolist() == [0] * 7


def test_random_candidates_ask_no_prediction(problem):
    def without_accuracy(picks):
        return {**problem.score(picks), "accuracy": np.full(len(picks), 0.5)}

    blind = replace(problem, score=without_accuracy)
    first, second = (
        STRATEGIES["random"](each, nothing_known(each), 12, np.random.default_rng(4)).picks
        for each in (problem, blind)
    )
    assert np.array_equal(first, second)


def test_random_candidates_come_nearest_to_limits_that_few_meet(problem, toy_space):
    tight = replace(problem, limits={"size_kib": 1.0})
    found = STRATEGIES["random"](tight, nothing_known(tight), 5, np.random.default_rng(0))
    violations = tight.judged(found.picks)[1]
    assert (np.diff(violations) >= 0).all()
    assert violations[0] == tight.judged(toy_space.everyone())[1].min()


def test_what_is_known_grows_by_picks_alone(problem, toy_space):
    known = known_of(problem, toy_space.everyone()[:9])
    more = known.with_picks(toy_space.everyone()[9:12])
    assert np.array_equal(more.picks, toy_space.everyone()[:12])
    assert more.losses is known.losses
    assert more.violations is known.violations
    inside = known.violations <= 0
    assert np.array_equal(known.feasible_losses, known.losses[inside])


def test_proposals_are_joined_in_order():
    joined = Proposal(np.array([[1, 2]]), ("one",)).joined(Proposal(np.array([[0, 3]]), ("two",)))
    assert joined.picks.tolist() == [[1, 2], [0, 3]]
    assert joined.origins == ("one", "two")


@pytest.fixture(scope="module")
def seeds(mobilenet):
    def score(picks):
        costs = NetworkCost().cost(mobilenet.network(picks))
        return {**costs, "accuracy": costs["bops"] / (costs["bops"] + 1e6)}

    def fp32_score(picks):
        macs = mobilenet.network(picks).macs.sum(axis=1).astype(np.float64)
        return {"accuracy": macs / (macs + 1e4), "macs": macs}

    settings = SearchSettings(population=30, generations=15)
    joint = Problem(
        mobilenet, score, {"accuracy": "max", "bops": "min"}, {"size_kib": 4.0}, settings
    )
    fp32 = Problem(mobilenet, fp32_score, {"accuracy": "max", "macs": "min"}, {}, settings)

    def propose(count, seed=0, limits=joint.limits):
        problem = replace(joint, limits=limits)
        return seed_proposals(problem, fp32, UNIFORM, count, np.random.default_rng(seed))

    propose.problem = joint
    return propose


def picks_from(proposal, origin):
    return proposal.picks[[each == origin for each in proposal.origins]]


def test_seeds_hold_every_uniform_format_and_start_with_the_smallest_networks(seeds, mobilenet):
    found = seeds(24)
    smallest = smallest_picks(mobilenet.dims)
    for index, (weights, activations) in enumerate(UNIFORM):
        expected = with_format(mobilenet, smallest, weights, activations)[0]
        assert np.array_equal(found.picks[index], expected)
        assert found.origins[index] == f"uniform {weights}/{activations}"
        assert len(picks_from(found, found.origins[index])) > 2


def test_a_uniform_seed_has_its_format_in_every_layer(seeds, mobilenet):
    """Layers that the smallest network lacks, too."""
    found = seeds(24)
    for weights, activations in UNIFORM:
        picks = picks_from(found, f"uniform {weights}/{activations}")
        assert np.array_equal(with_format(mobilenet, picks, weights, activations), picks)
        depths = [column for column, dim in enumerate(mobilenet.dims) if "depth" in dim.name]
        assert picks[:, depths].any()


def test_sequential_seeds_mix_formats_on_architectures_searched_in_fp32(seeds, mobilenet):
    picks = picks_from(seeds(24), "sequential")
    assert len(picks) > 2
    roles = np.array([dim.role for dim in mobilenet.dims])
    mixed = [row for row in picks if len(set(row[roles == "quant"].tolist())) > 1]
    assert mixed


def test_searched_seeds_keep_the_limits(seeds):
    found = seeds(24)
    violations = seeds.problem.judged(found.picks)[1]
    assert (violations[len(UNIFORM) :] <= 0).all()


def test_where_nothing_keeps_the_limits_only_the_smallest_networks_are_seeds(seeds):
    found = seeds(24, limits={"size_kib": 0.001})
    assert found.origins == ("uniform int4/int4", "uniform int8/int8")


def test_seeds_are_distinct_canonical_and_repeatable(seeds, mobilenet):
    found, again, other = seeds(24), seeds(24), seeds(24, seed=1)
    assert len(as_rows(found.picks)) == len(found.picks) == len(found.origins)
    assert np.array_equal(mobilenet.repair(found.picks), found.picks)
    assert np.array_equal(found.picks, again.picks)
    assert found.origins == again.origins
    assert as_rows(found.picks) != as_rows(other.picks)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_seeds_never_exceed_the_count(seeds, mobilenet, count):
    found = seeds(count)
    assert min(count, 4) <= len(found.picks) == len(found.origins) <= count
    first = with_format(mobilenet, smallest_picks(mobilenet.dims), "int4", "int4")
    assert np.array_equal(found.picks[:1], first)

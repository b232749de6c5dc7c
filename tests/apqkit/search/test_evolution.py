from dataclasses import fields, replace

import numpy as np
import pytest

from apqkit.errors import ConfigError, RunError
from apqkit.search import evolve
from apqkit.search.evolution import evolve_problem
from apqkit.search.pareto import hypervolume, hypervolume_2d, nondominated
from apqkit.search.problem import MutationRates, Problem, SearchSettings
from apqkit.search.state import EvolutionState, read_state, write_state
from apqkit.spaces.base import smallest_picks
from apqkit.spaces.draws import draw_hierarchical, draw_uniform, with_format


def none_of(space):
    return np.zeros((0, len(space.dims)), dtype=np.int64)


def evolved(problem, seed=0, initial=None, settle=None):
    start = none_of(problem.space) if initial is None else initial
    return evolve_problem(problem, start, seed, settle)


def as_set(losses):
    return set(map(tuple, losses.tolist()))


def true_front(problem):
    losses, violations = problem.judged(problem.space.everyone())
    losses = losses[violations <= 0]
    return as_set(losses[nondominated(losses)])


@pytest.mark.parametrize(
    ("objectives", "limits"),
    [
        ({"accuracy": "max", "size_kib": "min"}, {}),
        ({"accuracy": "max", "latency_ms": "min"}, {"size_kib": 40.0}),
        ({"accuracy": "max", "latency_ms": "min"}, {"size_kib": 60.0, "accuracy": 0.7}),
        ({"accuracy": "max", "latency_ms": "min", "size_kib": "min"}, {"latency_ms": 40.0}),
        ({"latency_ms": "min"}, {"accuracy": 0.75}),
    ],
)
def test_it_finds_the_true_front_of_a_small_space(toy_problem, objectives, limits):
    problem = replace(toy_problem, objectives=objectives, limits=limits)
    expected = true_front(problem)
    assert len(expected) >= (1 if len(objectives) == 1 else 5)
    for seed in range(3):
        found = evolved(problem, seed)
        assert found.violation == 0.0
        assert as_set(found.losses) == expected
        losses, violations = problem.judged(found.picks)
        assert np.array_equal(losses, found.losses)
        assert (violations == 0).all()


def test_a_fraction_of_a_larger_space_is_enough_to_get_near(toy_problem, score_of):
    space = type(toy_problem.space)(blocks=4)
    problem = replace(
        toy_problem,
        space=space,
        score=score_of(space),
        settings=SearchSettings(population=60, generations=60),
    )
    everyone, corner = space.everyone(), np.array([0.0, 200.0])
    best = hypervolume_2d(problem.judged(everyone)[0], corner)
    for seed in range(3):
        found = evolved(problem, seed)
        assert found.evaluations < len(everyone) / 3
        assert hypervolume_2d(found.losses, corner) > 0.99 * best


def test_a_generation_without_anything_new_does_not_end_the_search(toy_problem):
    """A handful of parents soon breeds nothing but what is known."""
    problem = replace(toy_problem, settings=SearchSettings(population=4, generations=1000))
    for seed in range(3):
        assert evolved(problem, seed).evaluations > 400


def test_it_stops_looking_for_new_candidates_when_there_are_none(toy_problem, score_of):
    space = type(toy_problem.space)(blocks=1)
    problem = replace(toy_problem, space=space, score=score_of(space))
    found = evolved(problem)
    assert found.evaluations == len(space.everyone()) == 9
    assert as_set(found.losses) == true_front(problem)


def test_no_candidate_is_scored_twice_and_all_are_canonical(toy_problem, toy_space):
    found = evolved(toy_problem)
    rows = toy_problem.score.rows
    assert len(np.unique(rows, axis=0)) == len(rows) == found.evaluations
    assert np.array_equal(toy_space.repair(rows), rows)
    assert (rows < [len(dim.choices) for dim in toy_space.dims]).all()
    assert (rows >= 0).all()


def test_initial_candidates_are_scored_repaired_and_once(toy_problem, toy_space):
    shallow = np.array([[0, 1, 2, 2, 1, 2, 2], [0, 1, 0, 0, 1, 0, 0], [2, 2, 2, 2, 2, 2, 2]])
    evolved(toy_problem, initial=shallow)
    first = toy_problem.score.asked[0]
    assert first[:2].tolist() == [[0, 1, 0, 0, 1, 0, 0], [2, 2, 2, 2, 2, 2, 2]]
    assert len(first) <= toy_problem.settings.population


def test_more_initial_candidates_than_the_population_are_all_scored(toy_problem, toy_space):
    initial = toy_space.everyone()[:100]
    evolved(toy_problem, initial=initial)
    assert np.array_equal(toy_problem.score.asked[0], initial)


def test_the_same_seed_finds_the_same_and_another_looks_elsewhere(toy_problem):
    first, again, other = (evolved(toy_problem, seed) for seed in (5, 5, 6))
    assert np.array_equal(first.picks, again.picks)
    assert np.array_equal(first.losses, again.losses)
    assert first.evaluations == again.evaluations
    asked = toy_problem.score.asked
    assert not np.array_equal(asked[0], asked[len(asked) // 3 * 2])
    assert other.violation == 0.0


def test_global_random_state_plays_no_part(toy_problem):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    evolved(toy_problem)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_from_an_infeasible_start_it_gets_within_the_limits(wide_toy_space, score_of):
    score = score_of(wide_toy_space)
    objectives = {"accuracy": "max", "latency_ms": "min"}
    problem = Problem(wide_toy_space, score, objectives, {"size_kib": 6.0}, SearchSettings(50, 60))
    drawn = draw_uniform(wide_toy_space, 500, np.random.default_rng(0))
    start = drawn[problem.judged(drawn)[1] > 5.0]
    assert len(start) > 200
    found = evolved(problem, initial=start)
    assert found.violation == 0.0
    assert (score(found.picks)["size_kib"] <= 6.0).all()


def test_under_an_impossible_limit_it_returns_the_least_infeasible(toy_problem, toy_space):
    problem = replace(toy_problem, limits={"size_kib": 12.0, "accuracy": 0.9})
    _, violations = problem.judged(toy_space.everyone())
    assert violations.min() > 0
    for seed in range(3):
        found = evolved(problem, seed)
        assert found.picks.shape == (1, 7)
        assert found.violation == pytest.approx(violations.min(), rel=1e-12)
        assert problem.judged(found.picks)[1] == pytest.approx(found.violation)


def test_candidates_that_cannot_be_scored_are_passed_over(toy_problem, toy_space):
    def score(picks):
        values = toy_problem.score(picks)
        values["size_kib"] = np.where((picks[:, 4:] == 1).any(axis=1), np.nan, values["size_kib"])
        return values

    problem = replace(toy_problem, score=score)
    found = evolved(problem)
    assert as_set(found.losses) == true_front(problem)
    assert not (found.picks[:, 4:] == 1).any()


def test_where_nothing_can_be_scored_it_says_so(toy_problem):
    def score(picks):
        return {name: np.full(len(picks), np.nan) for name in ("accuracy", "size_kib")}

    found = evolved(replace(toy_problem, score=score))
    assert found.violation == np.inf
    assert found.picks.shape == (1, 7)


def test_one_format_throughout_holds_in_layers_that_appear(toy_problem, toy_space):
    def settle(picks):
        return with_format(toy_space, picks, "int4", "")

    evolved(toy_problem, initial=smallest_picks(toy_space.dims), settle=settle)
    rows = toy_problem.score.rows
    assert set(rows[:, 0]) == {0, 1, 2}
    assert np.array_equal(settle(rows), rows)
    uniform = {row.tobytes() for row in settle(toy_space.everyone())}
    assert len({row.tobytes() for row in rows}) == len(uniform)


def first_children(problem, initial, rates=None):
    """Those of the first generation, bred from these parents alone."""
    rates = rates or MutationRates()
    settings = SearchSettings(population=len(initial), generations=1, rates=rates)
    rows = []
    for seed in range(60):
        evolved(replace(problem, settings=settings), seed, initial)
        rows.append(problem.score.asked[-1])  # the parents, if they bred nothing new
    return np.concatenate(rows)


def test_layers_that_appear_do_not_all_start_at_their_first_choices(toy_problem, toy_space):
    everyone = toy_space.everyone()
    children = first_children(toy_problem, everyone[everyone[:, 0] == 0])
    appeared = children[children[:, 0] > 0][:, [2, 5]]
    assert len(appeared) > 50
    shares = np.bincount(appeared.ravel(), minlength=3) / appeared.size
    assert (shares > 0.2).all()


def test_what_only_one_parent_uses_comes_from_that_parent(toy_problem):
    still = MutationRates(arch=0.0, prune=0.0, quant=0.0, base_format=0.0)
    parents = np.array([[0, 0, 0, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2, 2]])
    children = first_children(toy_problem, np.repeat(parents, 4, axis=0), still)
    bred = {tuple(row) for row in children.tolist()}
    assert bred - {tuple(row) for row in parents.tolist()} == {
        (0, 0, 0, 0, 2, 0, 0), (0, 2, 0, 0, 0, 0, 0), (0, 2, 0, 0, 2, 0, 0),
        (2, 0, 2, 2, 2, 2, 2), (2, 2, 2, 2, 0, 2, 2), (2, 0, 2, 2, 0, 2, 2),
    }  # fmt: skip


def test_the_front_of_a_part_of_the_space_is_found(toy_problem, toy_space):
    architecture = np.array([1, 2, 1, 0, 0, 0, 0])

    def settle(picks):
        return toy_space.repair(np.where(toy_problem.dims_of("quant"), picks, architecture))

    found = evolved(toy_problem, initial=architecture[None], settle=settle)
    part = np.unique(settle(toy_space.everyone()), axis=0)
    losses, _ = toy_problem.judged(part)
    assert as_set(found.losses) == as_set(losses[nondominated(losses)])
    assert (found.picks[:, :4] == architecture[:4]).all()


@pytest.mark.parametrize("draw", [draw_uniform, draw_hierarchical])
def test_it_beats_random_search_at_equal_evaluations_on_every_seed(wide_toy_space, score_of, draw):
    score = score_of(wide_toy_space)
    objectives = {"accuracy": "max", "size_kib": "min"}
    problem = Problem(
        wide_toy_space, score, objectives, {"latency_ms": 150.0}, SearchSettings(40, 25)
    )
    reference = np.array([-0.5, 200.0])
    for seed in range(10):
        found = evolved(problem, seed)
        drawn = draw(wide_toy_space, 2 * found.evaluations, np.random.default_rng(seed))
        distinct = drawn[np.sort(np.unique(drawn, axis=0, return_index=True)[1])]
        losses, violations = problem.judged(distinct[: found.evaluations])
        random = hypervolume_2d(losses[violations <= 0], reference)
        assert hypervolume_2d(found.losses, reference) > 1.03 * random


def test_many_thousand_candidates_take_a_moment(mobilenet):
    def score(picks):
        return {"accuracy": picks.sum(axis=1) / 100.0, "size_kib": (picks**2).sum(axis=1) + 1.0}

    problem = Problem(
        mobilenet, score, {"accuracy": "max", "size_kib": "min"}, {}, SearchSettings(100, 30)
    )
    found = evolved(problem, initial=smallest_picks(mobilenet.dims))
    assert found.evaluations > 1500
    assert np.array_equal(mobilenet.repair(found.picks), found.picks)


OBJECTIVES = {"accuracy": "max", "size_kib": "min"}


def parts_of(score):
    """A predictor and costs that come separately."""

    def costs(picks):
        values = score(picks)
        del values["accuracy"]
        return values

    return lambda picks: score(picks)["accuracy"], costs


def test_predictor_and_costs_may_come_separately(toy_space, score_of, toy_problem):
    predict, costs = parts_of(score_of(toy_space))
    found = evolve(
        toy_space,
        predict,
        costs,
        OBJECTIVES,
        {"latency_ms": 30.0},
        settings=toy_problem.settings,
        initial=smallest_picks(toy_space.dims),
        seed=1,
    )
    assert as_set(found.losses) == true_front(replace(toy_problem, limits={"latency_ms": 30.0}))
    plain = evolve(toy_space, predict, costs, OBJECTIVES, settings=toy_problem.settings)
    assert as_set(plain.losses) == true_front(toy_problem)


@pytest.mark.parametrize(
    ("objectives", "limits", "text"),
    [
        ({}, {}, "search.objectives must name at least one metric"),
        (
            {"accuracy": "up"},
            {},
            "search.objectives.accuracy must be 'max' or 'min', got 'up'",
        ),
        (
            {"accuracy": "max", "size": "min"},
            {},
            "search.objectives.size is no metric (did you mean 'size_kib'?); "
            "there are: accuracy, size_kib, latency_ms",
        ),
        (
            {"accuracy": "max"},
            {"energy_mj": 1.0},
            "search.limits.energy_mj is no metric; there are: accuracy, size_kib, latency_ms",
        ),
    ],
)
def test_objectives_and_limits_that_make_no_sense_are_named(
    toy_space, score_of, objectives, limits, text
):
    with pytest.raises(ConfigError) as caught:
        evolve(toy_space, *parts_of(score_of(toy_space)), objectives, limits)
    assert str(caught.value) == text


def test_a_prediction_that_is_not_finite_is_refused(toy_space, score_of):
    predict, costs = parts_of(score_of(toy_space))

    def broken(picks):
        return np.where(picks[:, 0] == 0, np.nan, predict(picks))

    with pytest.raises(ConfigError) as caught:
        evolve(toy_space, broken, costs, OBJECTIVES)
    assert str(caught.value) == (
        "the prediction must be finite, got NaN or infinity for 1 of 1 candidates"
    )


def test_a_prediction_or_a_cost_of_the_wrong_shape_is_refused(toy_space, score_of):
    predict, costs = parts_of(score_of(toy_space))
    with pytest.raises(ConfigError) as caught:
        evolve(toy_space, lambda picks: predict(picks)[:, None], costs, OBJECTIVES)
    assert str(caught.value) == "the prediction must have shape (1,), got (1, 1)"
    with pytest.raises(ConfigError) as caught:
        evolve(toy_space, predict, lambda picks: {"size_kib": np.zeros(3)}, OBJECTIVES)
    assert str(caught.value) == "cost 'size_kib' must have shape (1,), got (3,)"


@pytest.mark.parametrize("islands", [1, 3])
def test_going_on_from_a_written_state_finds_what_one_run_finds(
    toy_space, score_of, tmp_path, islands
):
    predict, costs = parts_of(score_of(toy_space))

    def run(generations, resume=None):
        settings = SearchSettings(20, generations, islands, migrate_every=4, patience=30)
        return evolve(
            toy_space, predict, costs, OBJECTIVES, settings=settings, seed=4, resume=resume
        )

    straight = run(25)
    write_state(tmp_path / "state.npz", run(9).state)
    resumed = run(25, read_state(tmp_path / "state.npz"))
    for field in fields(EvolutionState):
        one, other = (getattr(each.state, field.name) for each in (straight, resumed))
        assert np.array_equal(one, other, equal_nan=True), field.name
    assert straight.evaluations == resumed.evaluations


def test_the_state_is_shown_every_ten_generations(toy_space, score_of):
    seen = []
    found = evolve(
        toy_space,
        *parts_of(score_of(toy_space)),
        OBJECTIVES,
        settings=SearchSettings(16, 25),
        watch=seen.append,
    )
    assert [state.generation for state in seen] == [10, 20]
    assert found.state.generation == 25
    assert len(seen[0].seen) < len(found.state.seen) == found.evaluations


def test_a_state_of_another_search_is_refused(toy_problem, wide_toy_space, score_of):
    settings = SearchSettings(16, 2)
    small = evolve_problem(replace(toy_problem, settings=settings), None, 0).state
    other = replace(toy_problem, space=wide_toy_space, score=score_of(wide_toy_space))
    with pytest.raises(RunError) as caught:
        evolve_problem(replace(other, settings=SearchSettings(16, 4, 2)), None, 0, resume=small)
    assert str(caught.value) == (
        "the state to go on from has 7 dims, 2 objectives and 1 islands, the search 21, 2 and 2"
    )


def test_islands_find_the_true_front_and_exchange_their_best(toy_problem):
    settings = SearchSettings(population=60, generations=100, islands=4, migrate_every=5)
    found = evolved(replace(toy_problem, settings=settings))
    assert as_set(found.losses) == true_front(toy_problem)
    assert np.array_equal(np.unique(found.state.island), np.arange(4))
    assert np.bincount(found.state.island).tolist() == [15, 15, 15, 15]


def test_without_migration_islands_keep_to_themselves(wide_toy_space, score_of):
    settings = SearchSettings(population=40, generations=4, islands=2, migrate_every=5)
    problem = Problem(wide_toy_space, score_of(wide_toy_space), OBJECTIVES, {}, settings)

    def shared(generations):
        state = evolved(
            replace(problem, settings=replace(settings, generations=generations))
        ).state
        one, other = (set(map(bytes, state.picks[state.island == each])) for each in (0, 1))
        return len(one & other)

    assert shared(4) == 0
    assert shared(5) >= 2


@pytest.mark.parametrize(
    ("objectives", "limits"),
    [
        ({"latency_ms": "min"}, {}),
        (OBJECTIVES, {"latency_ms": 60.0}),
        ({**OBJECTIVES, "latency_ms": "min"}, {}),
        (OBJECTIVES, {"accuracy": 0.9999}),
    ],
)
def test_a_search_that_stands_still_stops_early_and_loses_nothing(toy_problem, objectives, limits):
    settings = replace(toy_problem.settings, generations=2000, patience=60)
    problem = replace(toy_problem, objectives=objectives, limits=limits, settings=settings)
    found = evolved(problem)
    assert 60 <= found.state.generation < 500
    if found.violation == 0:
        corner = problem.judged(problem.space.everyone())[0].max(axis=0) + 0.1
        everyone, violations = problem.judged(problem.space.everyone())
        best = hypervolume(everyone[violations <= 0], corner)
        assert hypervolume(found.losses, corner) > 0.999 * best


@pytest.mark.parametrize(
    ("fields_", "text"),
    [
        ({"population": 0}, "search population must be at least 1, got 0"),
        ({"islands": 0}, "search islands must be at least 1, got 0"),
        ({"migrate_every": 0}, "search migrate_every must be at least 1, got 0"),
        (
            {"population": 9, "islands": 5},
            "search population must be at least 2 on each of 5 islands, got 9",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(fields_, text):
    with pytest.raises(ConfigError) as caught:
        SearchSettings(**fields_)
    assert str(caught.value) == text


def test_every_candidate_of_four_objectives_that_none_beats_is_kept(toy_problem):
    def score(picks):
        values = toy_problem.score(picks)
        return {**values, "bops": values["size_kib"] * (1.0 + picks[:, 1])}

    objectives = {**OBJECTIVES, "latency_ms": "min", "bops": "min"}
    problem = replace(toy_problem, score=score, objectives=objectives)
    found = evolved(problem)
    assert as_set(found.losses) == true_front(problem)


@pytest.mark.parametrize(
    ("initial", "text"),
    [
        (np.zeros((2, 6), dtype=int), "initial candidates must have shape (i, 7), got (2, 6)"),
        (np.zeros(7, dtype=int), "initial candidates must have shape (i, 7), got (7,)"),
        (
            np.array([[0] * 7, [0, 3, 0, 0, 0, 0, 0]]),
            "initial candidates must pick 0 to 2 of width.s0.b0, got 3",
        ),
        (
            np.array([[0] * 7, [0, 0, 0, 0, 0, -1, 0]]),
            "initial candidates must pick 0 to 2 of w_format.s0.b1, got -1",
        ),
    ],
)
def test_initial_candidates_that_are_none_of_the_space_are_named(
    toy_space, score_of, initial, text
):
    with pytest.raises(ConfigError) as caught:
        evolve(toy_space, *parts_of(score_of(toy_space)), OBJECTIVES, initial=initial)
    assert str(caught.value) == text

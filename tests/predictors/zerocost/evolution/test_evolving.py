from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution import evolve, evolving, load_program, save_program
from predictors.zerocost.evolution.evolving import BASELINES, Member, after_selection
from predictors.zerocost.evolution.expressions import Binary, Input, Unary
from predictors.zerocost.evolution.fitness import Fitness, fitness


@pytest.fixture(scope="module")
def result(table, other_table):
    return evolve([table], held_out=[other_table], programs=2500, population=40, seed=1)


def member(value: float, origin: str = "fresh") -> Member:
    return Member(Input("bits"), Fitness(value, "up"), origin)


def test_ranks_unseen_settings_and_networks_better_than_rules_made_by_hand(result) -> None:
    """The tables are synthetic: accuracy falls with a planted formula that no rule has."""
    for side, name in (("held_out", "synthetic 1"), ("others", "synthetic 2")):
        found = getattr(result.ranking, side)[name]
        by_hand = {rule: getattr(each, side)[name] for rule, each in result.baselines.items()}
        assert set(by_hand) == set(BASELINES)
        assert found.low > max(each.high for each in by_hand.values())
        assert found.value > 0.95


def test_reports_how_much_of_the_fit_is_gone_elsewhere(result) -> None:
    train, held_out = result.ranking.train, result.ranking.held_out
    assert result.gap == train["synthetic 1"].value - held_out["synthetic 1"].value
    assert abs(result.gap) < 0.05


def test_records_what_it_looked_at(result) -> None:
    assert result.evaluated == 2500
    assert 0 < result.broken < 1500
    assert result.programs_per_minute == pytest.approx(2500 * 60 / result.seconds)
    counts, values = zip(*result.history, strict=True)
    assert list(counts) == sorted(counts)
    assert list(values) == sorted(set(values))
    assert values[-1] == result.fitness == result.population[0].fitness.value


def test_the_best_is_never_lost(result) -> None:
    values = [each.fitness.value for each in result.population]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values) == 40


def test_children_survive(result) -> None:
    origins = Counter(each.origin for each in result.population[:20])
    assert origins["crossover"] > 0
    assert origins["mutation"] > 0


def test_a_seed_decides_everything(table, result) -> None:
    def run(seed: int):
        found = evolve([table], programs=400, population=20, seed=seed)
        return found.program, found.history, [each.expression for each in found.population]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_tables_stay_as_they_are(table, other_table) -> None:
    def held(each) -> list:
        statistics = each.inputs.statistics.values()
        arrays = [each.settings, each.accuracy, each.held_out, each.inputs.errors]
        return [array.tobytes() for array in (*arrays, *(a for kind in statistics for a in kind))]

    before = held(table), held(other_table)
    evolve([table], held_out=[other_table], programs=200, population=10)
    assert (held(table), held(other_table)) == before


def test_held_out_settings_steer_nothing(table, other_table) -> None:
    rng = np.random.default_rng(0)
    accuracy = np.where(table.held_out, rng.random(len(table)), table.accuracy)
    shuffled = replace(table, accuracy=accuracy)
    other = replace(other_table, accuracy=other_table.accuracy[::-1])
    one = evolve([table], held_out=[other_table], programs=300, population=20)
    two = evolve([shuffled], held_out=[other], programs=300, population=20)
    assert (one.program, one.history) == (two.program, two.history)
    assert two.gap > one.gap


def test_equivalent_programs_are_evaluated_once(table, monkeypatch) -> None:
    keys = []

    def counted(expression, settings):
        keys.append(expression.key)
        return fitness(expression, settings)

    monkeypatch.setattr(evolving, "fitness", counted)
    evolve([table], programs=300, population=20)
    assert len(keys) == len(set(keys)) == 300


def test_what_the_better_half_is_made_of_is_drawn_more_often(table, monkeypatch) -> None:
    good_ones, plain = [], evolving.raised_odds

    def watched(first, good):
        good_ones.append(list(good))
        return plain(first, good_ones[-1])

    drawn_with, plain_draw = [], evolving.random_one

    def draw(rng, odds):
        drawn_with.append(odds)
        return plain_draw(rng, odds)

    monkeypatch.setattr(evolving, "raised_odds", watched)
    monkeypatch.setattr(evolving, "random_one", draw)
    evolve([table], programs=400, population=20)
    assert {len(each) for each in good_ones} == {10}
    last = plain(drawn_with[0], good_ones[-1])
    assert drawn_with[-1] == last
    assert last != drawn_with[0]


def test_several_networks_are_trained_on_together(table, other_table) -> None:
    found = evolve([table, other_table], programs=300, population=20)
    assert (
        set(found.ranking.train) == set(found.ranking.held_out) == {"synthetic 1", "synthetic 2"}
    )
    assert found.ranking.others == {}


def test_reads_only_what_all_networks_have(table, other_table) -> None:
    statistics = {"weights": other_table.inputs.statistics["weights"]}
    poorer = replace(other_table, inputs=replace(other_table.inputs, statistics=statistics))
    found = evolve([table], held_out=[poorer], programs=200, population=20)
    read = {name for each in found.population for name in reads(each.expression)}
    assert read <= {"weights", "errors", "parameters", "bits"}
    assert set(found.baselines) == {"sum of bits", "size", "errors"}
    assert np.isfinite(found.ranking.others["synthetic 2"].value)


def reads(expression) -> set[str]:
    if isinstance(expression, Input):
        return {expression.name}
    if isinstance(expression, Unary):
        return reads(expression.operand)
    return reads(expression.left) | reads(expression.right)


def test_without_held_out_settings_there_is_no_gap(table, other_table) -> None:
    seen = replace(table, held_out=np.zeros(len(table), dtype=bool))
    found = evolve([seen], held_out=[other_table], programs=50, population=10)
    assert np.isnan(found.gap)
    assert found.ranking.held_out == {}


def test_progress_adds_up(table) -> None:
    steps: list[int] = []
    evolve([table], programs=250, population=10, progress=steps.append)
    assert steps == [100, 100, 50]


def test_the_winner_ranks_the_same_from_its_file(tmp_path, result, other_table) -> None:
    save_program(tmp_path / "proxy.json", result.program)
    loaded = load_program(tmp_path / "proxy.json")
    assert loaded == result.program
    assert (loaded.score(other_table) == result.program.score(other_table)).all()


def test_the_better_newcomer_takes_the_place_of_the_worst() -> None:
    members = [member(0.9), member(0.5), member(0.1)]
    child, fresh = member(0.4, "crossover"), member(0.3)
    assert after_selection(members, child, fresh) == (members[0], members[1], child)
    assert after_selection(members, fresh, child) == (members[0], members[1], child)
    better = member(0.95)
    assert after_selection(members, child, better) == (better, members[0], members[1])


def test_the_worst_leaves_even_for_one_that_is_worse() -> None:
    members = [member(0.9), member(0.5)]
    assert after_selection(members, None, member(0.2)) == (members[0], member(0.2))


def test_one_that_ranks_as_a_member_is_no_newcomer() -> None:
    members = [member(0.9), member(0.5), member(0.1)]
    assert after_selection(members, member(0.9, "mutation"), None) == tuple(members)
    fresh = member(0.2)
    assert after_selection(members, member(0.9, "mutation"), fresh) == (*members[:2], fresh)
    assert after_selection(members, None, None) == tuple(members)


def test_the_rules_made_by_hand_are_what_they_say(table) -> None:
    bits, hessian = table.inputs.bits, table.inputs.statistics["hessian"]
    scores = {name: each.layer_scores(table.inputs) for name, each in BASELINES.items()}
    assert scores["sum of bits"] == pytest.approx(np.tile(bits, (8, 1)))
    assert scores["size"] == pytest.approx(np.outer(table.inputs.parameters, bits))
    traces = np.array([each.mean() for each in hessian], dtype=float)
    assert scores["errors x trace"] == pytest.approx(traces[:, None] * table.inputs.errors)
    directions = {name: each.direction for name, each in BASELINES.items()}
    assert directions == {
        "sum of bits": "up", "size": "up", "errors": "down", "errors x trace": "down"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: evolve([]), "evolution needs a table to train on, got none"),
        (
            lambda a, b: evolve([a], held_out=[a]),
            "tables must have different names, got 'synthetic 1' again",
        ),
        (
            lambda a, b: evolve([replace(a, held_out=np.arange(300) > 4)]),
            "'synthetic 1' must have at least 20 training settings, got 5",
        ),
        (
            lambda a, b: evolve([replace(a, held_out=np.zeros(300, bool))]),
            "nothing is held out: neither settings of a table nor a table",
        ),
        (lambda a, b: evolve([a], population=3), "population must be 4 or more, got 3"),
        (
            lambda a, b: evolve([a], programs=59),
            "programs must be 60 (population) or more, got 59",
        ),
        (
            lambda a, b: evolve([replace(a, settings=np.zeros((300, 8), int))], programs=60),
            "none of 60 programs was sound on the training settings",
        ),
        (
            lambda a, b: evolve([replace(a, accuracy=np.full(300, 0.1))]),
            "the training settings of 'synthetic 1' must differ in accuracy, all have 0.1",
        ),
    ],
)
def test_refuses_what_cannot_be_evolved(table, other_table, call, message) -> None:
    with pytest.raises(ProxyError) as caught:
        call(table, other_table)
    assert str(caught.value) == message


def test_ends_when_there_is_nothing_left_to_find(table, monkeypatch) -> None:
    only = Binary("product", Input("parameters"), Input("bits"))
    monkeypatch.setattr(evolving, "random_one", lambda rng, odds: only)
    monkeypatch.setattr(evolving, "mutation", lambda rng, odds, parent: parent)
    monkeypatch.setattr(evolving, "crossover", lambda rng, one, other: one)
    found = evolve([table], programs=100, population=10)
    assert found.evaluated == 1
    assert found.program.formula == "bits * parameters"

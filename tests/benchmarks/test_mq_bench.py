import json
import sys

import mq_bench
import numpy as np
import pytest
from mq_networks import NETWORKS
from mq_statistics import Scores, read_scores, write_scores
from scipy import stats

from predictors.zerocost.evolution import (
    LayerInputs,
    SettingTable,
    load_program,
    read_setting_table,
    write_setting_table,
)

FORMATS = ("int2", "int3", "int4", "int8")


def made_up_table(name, layers, seed):
    """Accuracy falls with errors, which one layer in three feels most."""
    rng = np.random.default_rng(seed)
    errors = rng.uniform(0.5, 2.0, (layers, 1)) * np.array([1.0, 0.3, 0.1, 0.001])
    weight = np.where(np.arange(layers) % 3 == 0, 5.0, 1.0)
    settings = np.unique(rng.integers(4, size=(160, layers)), axis=0)
    harm = (weight[:, None] * errors)[np.arange(layers), settings].sum(axis=1)
    inputs = LayerInputs(
        layers=tuple(f"conv{each}" for each in range(layers)),
        formats=FORMATS,
        bits=np.array([2.0, 3.0, 4.0, 8.0]),
        parameters=rng.integers(10, 100, layers),
        errors=errors,
        statistics={"hessian": tuple(np.full(5, each) for each in weight)},
    )
    return SettingTable(
        name=name,
        inputs=inputs,
        settings=settings,
        accuracy=1.0 / (1.0 + harm),
        held_out=np.arange(len(settings)) % 2 == 1,
        recipe={"fp32_accuracy": 0.99, "spearman_of_two_halves_of_the_images": 0.9},
    )


def write_made_up(folder):
    for seed, name in enumerate(NETWORKS):
        table = made_up_table(name, 6 + seed, seed)
        write_setting_table(folder / name, table)
        bits = np.outer(np.ones(6 + seed), [2.0, 3.0, 4.0, 8.0])
        scores = {"bit_sum": Scores(1, bits), "error": Scores(-1, table.inputs.errors)}
        path = folder / name / "sensitivities.csv"
        write_scores(path, table.inputs.layers, FORMATS, scores)


def test_scores_are_compared_without_data_or_training(tmp_path, monkeypatch, capsys):
    write_made_up(tmp_path)
    written = {}

    def keep(name, seeds, figures):
        written[name] = json.loads(json.dumps(figures))
        return tmp_path / f"{name}.json"

    monkeypatch.setattr(mq_bench, "write_result", keep)
    monkeypatch.setattr(mq_bench, "_DRAWS", 40)
    arguments = ["score", "--tables", str(tmp_path), "--programs", "150", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["mq_bench.py", *arguments])
    mq_bench.main()
    figures = written["mq_bench"]
    assert figures["best_by_hand_on_training_settings"] == "error"
    assert len(figures["evolved"]) == 2
    table = read_setting_table(tmp_path / "plain")
    chosen = table.inputs.errors[np.arange(6), table.settings[table.held_out]]
    expected = stats.spearmanr(-chosen.sum(axis=1), table.accuracy[table.held_out]).statistic
    assert figures["by_hand"]["error"]["plain: held out"]["rho"] == pytest.approx(expected)
    program = load_program(tmp_path / "evolved.json")
    assert program.formula == figures["winner"]["formula"]
    assert "evolved minus error" in capsys.readouterr().out


def test_a_missing_table_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mq_bench.py", "score", "--tables", str(tmp_path)])
    with pytest.raises(SystemExit) as refusal:
        mq_bench.main()
    assert str(refusal.value) == (f"there is no {tmp_path / 'plain'}: run mq_bench.py build first")


def test_building_without_data_says_where_to_get_them(monkeypatch):
    monkeypatch.delenv("APQKIT_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["mq_bench.py", "build"])
    with pytest.raises(SystemExit) as refusal:
        mq_bench.main()
    assert str(refusal.value) == (
        "mq_bench build needs --data DIR or APQKIT_DATA with fashion_mnist/fashion_mnist.npz "
        "(https://github.com/zalandoresearch/fashion-mnist)"
    )


def test_smaller_training_sets_leave_held_out_settings_alone():
    table = made_up_table("a", 6, 0)
    rows = np.flatnonzero(~table.held_out)[:30]
    part = mq_bench._with_training(table, rows)
    assert (~part.held_out).sum() == 30
    np.testing.assert_array_equal(part.settings[part.held_out], table.settings[table.held_out])
    np.testing.assert_array_equal(part.accuracy[~part.held_out], table.accuracy[rows])


def test_a_score_differs_from_itself_by_nothing_and_from_its_opposite_by_two(
    monkeypatch,
):
    monkeypatch.setattr(mq_bench, "_DRAWS", 40)
    truth = np.arange(30.0)
    same = mq_bench._difference(truth, truth, 2.0 * truth)
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}
    opposite = mq_bench._difference(truth, truth, -truth)
    assert opposite["value"] == pytest.approx(2.0)
    assert opposite["low"] == pytest.approx(2.0)


def test_top_shares_are_of_the_most_accurate_settings():
    truth = np.arange(10.0)
    score = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 8.0])
    parts = [score[8:], score[5:], score]
    expected = np.mean([stats.spearmanr(truth[-len(each) :], each).statistic for each in parts])
    assert mq_bench._top_rho(truth, score) == pytest.approx(expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tables_that_are_here_hold_what_the_benchmark_promises(name):
    folder = mq_bench._TABLES / name
    table = read_setting_table(folder)
    inputs = table.inputs
    assert len(table) >= 1000
    assert len(np.unique(table.settings, axis=0)) == len(table)
    assert inputs.formats == FORMATS
    assert table.accuracy.std() >= 0.05
    assert table.accuracy.max() <= table.recipe["fp32_accuracy"] + 0.02
    assert len(inputs.statistics) == 5
    scores = read_scores(folder / "sensitivities.csv", inputs.layers, inputs.formats)
    assert {"hawq_v1", "hawq_v2", "ompq", "qe", "fisher", "taylor", "kl", "bops"} <= set(scores)
    for each in scores.values():
        assert np.isfinite(each.values).all()
    np.testing.assert_allclose(
        scores["hawq_v2"].values / inputs.errors,
        np.repeat(scores["hawq_v2"].values[:, :1] / inputs.errors[:, :1], 4, axis=1),
    )
    assert sum(each.stat().st_size for each in folder.iterdir()) < 1_500_000

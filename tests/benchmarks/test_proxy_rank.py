import sys

import numpy as np
import pytest
from proxy_rank import compared, layer_logs, main, paired_gain
from scipy import stats


def test_a_paired_gain_has_the_interval_of_a_t_test():
    differences = np.random.default_rng(0).normal(0.1, 0.05, 20)
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    expected = {"mean": differences.mean(), "low": interval.low, "high": interval.high}
    assert paired_gain(differences) == pytest.approx(expected)


def test_all_that_are_compared_see_the_same_rows_and_never_those_they_learned_from():
    truth = np.random.default_rng(0).random(60)
    seen = {"right": [], "wrong": []}

    def fitter(name, sign):
        def fit(train, seed):
            def predict(test):
                seen[name].append((train.tolist(), test.tolist()))
                return sign * truth[test]

            return predict

        return fit

    fits = {"right": fitter("right", 1.0), "wrong": fitter("wrong", -1.0)}
    found = compared(fits, truth, 20, range(3), base="wrong", test_rows=30)
    assert seen["right"] == seen["wrong"]
    for train, test in seen["right"]:
        assert (len(train), len(test)) == (20, 30)
        assert not set(train) & set(test)
    assert seen["right"][0] != seen["right"][1]
    assert (found["right"]["tau"], found["wrong"]["tau"]) == (1.0, -1.0)
    assert found["right"]["gain"] == {"mean": 2.0, "low": 2.0, "high": 2.0}
    assert "gain" not in found["wrong"]


def test_logarithms_of_present_layers_lie_above_the_zero_of_absent_ones():
    rng = np.random.default_rng(0)
    present = rng.random((5, 4)) < 0.6
    values = np.exp(rng.normal(size=(5, 4, 3)) * 5)
    logs = layer_logs(("snip", "fisher", "synflow"), values, present)
    assert not logs[~present].any()
    assert logs[present].min() == pytest.approx(1.0)
    for column, expected in enumerate((np.log(values), np.log(values), values)):
        moved = logs[present, column] - expected[present, column]
        if column < 2:
            assert moved == pytest.approx(moved[0])
        else:
            shown = values[present, column]
            assert logs[present, column] == pytest.approx(shown - shown.min() + 1.0)


def test_without_data_one_line_says_what_is_needed(monkeypatch):
    monkeypatch.delenv("APQKIT_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["proxy_rank.py"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert str(raised.value).startswith("proxy_rank: needs --data DIR or APQKIT_DATA with ")

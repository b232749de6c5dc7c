from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.errors import ApqkitError, UnknownNameError
from apqkit.front import Evaluated, ParetoSet, read_evaluated, write_evaluated

FIGURES = ("accuracy", "predicted", "predicted_low", "predicted_high", "test_accuracy")
NAN = float("nan")


def evaluated(keys, accuracy, latency, **changed):
    columns = {
        "keys": tuple(keys),
        "origins": ("joint",) * len(keys),
        "candidates": tuple({"depth.s0": i, "w_format.head": "int4"} for i in range(len(keys))),
        "accuracy": np.array(accuracy),
        "predicted": np.array(accuracy) - 0.01,
        "predicted_low": np.array(accuracy) - 0.05,
        "predicted_high": np.array(accuracy) + 0.05,
        "test_accuracy": np.full(len(keys), NAN),
        "parts": {"validation_plain": np.array(accuracy) + 0.1},
        "costs": {"latency_ms": np.array(latency), "size_kib": np.array(latency) * 10},
    }
    return Evaluated(**{**columns, **changed})


@pytest.fixture
def members():
    return evaluated(["aa11", "bb22", "cc33"], [0.9, 0.8, 0.6], [3.0, 2.0, NAN])


@pytest.fixture
def front(members):
    objectives = {"accuracy": "max", "latency_ms": "min"}
    return ParetoSet(members, members.take([0]), objectives, "bb22", Path("runs/x"))


def assert_equal(one, other):
    assert (one.keys, one.origins) == (other.keys, other.origins)
    assert [dict(each) for each in one.candidates] == [dict(each) for each in other.candidates]
    for name in FIGURES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == np.float64
    for group in ("parts", "costs"):
        found, expected = getattr(one, group), getattr(other, group)
        assert list(found) == list(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_figures_are_accuracy_and_costs(members):
    assert list(members.figures) == ["accuracy", "latency_ms", "size_kib"]
    assert members.figures["accuracy"] is members.accuracy


@pytest.mark.parametrize("index", [[2, 0], (2, 0), np.array([2, 0])], ids=str)
def test_take_keeps_every_column_in_step(members, index):
    taken = members.take(index)
    assert len(taken) == 2
    assert taken.keys == ("cc33", "aa11")
    assert [each["depth.s0"] for each in taken.candidates] == [2, 0]
    assert taken.accuracy.tolist() == [0.6, 0.9]
    assert taken.predicted_low.tolist() == pytest.approx([0.55, 0.85])
    assert taken.parts["validation_plain"].tolist() == pytest.approx([0.7, 1.0])
    np.testing.assert_array_equal(taken.costs["latency_ms"], [NAN, 3.0])


def test_taking_nothing_leaves_nothing(members):
    assert len(members.take([])) == 0
    assert members.take([]).costs["size_kib"].shape == (0,)


def test_a_table_has_one_row_a_candidate(front):
    frame = front.to_frame()
    assert list(frame) == [
        "key", "origin", *FIGURES, "part:validation_plain", "latency_ms", "size_kib", "candidate",
    ]  # fmt: skip
    assert frame["key"].tolist() == ["aa11", "bb22", "cc33"]
    assert frame["candidate"][1] == '{"depth.s0": 1, "w_format.head": "int4"}'


figure = st.floats(allow_nan=True, allow_infinity=False)
text = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1)
word = text | st.sampled_from(["NA", "null", "nan", "None", "1e5", "007", "-inf", "True"])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), count=st.integers(0, 4))
def test_csv_keeps_every_digit_and_every_text(tmp_path_factory, data, count):
    def column():
        return np.array(data.draw(st.lists(figure, min_size=count, max_size=count)), dtype=float)

    def words():
        return tuple(data.draw(st.lists(word, min_size=count, max_size=count)))

    candidates = st.dictionaries(text, st.integers() | text, max_size=3)
    before = Evaluated(
        keys=words(),
        origins=words(),
        candidates=tuple(data.draw(st.lists(candidates, min_size=count, max_size=count))),
        **{name: column() for name in FIGURES},
        parts={"validation_plain": column(), "test_plain": column()},
        costs={"latency_ms": column(), "macs": np.round(column() % 1000)},
    )
    path = tmp_path_factory.mktemp("front") / "front.csv"
    path.write_bytes(write_evaluated(before).encode())
    after = read_evaluated(path)
    assert_equal(after, before)
    assert write_evaluated(after) == write_evaluated(before)


def test_a_file_that_is_missing_is_named(tmp_path):
    path = tmp_path / "pareto.csv"
    with pytest.raises(ApqkitError) as caught:
        read_evaluated(path)
    assert str(caught.value) == (
        f"{path} is missing or damaged: [Errno 2] No such file or directory: '{path}'"
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: "", "No columns to parse from file"),
        (lambda text: text.replace("predicted_low", "low"), "'predicted_low'"),
        (lambda text: text.replace("key,", "id,"), "'key'"),
        (lambda text: text.replace("0.9,", "high,"), "could not convert string to float: 'high'"),
        (
            lambda text: text.replace('"{""depth', '"{depth'),
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            lambda text: text.replace('"{""depth.s0"": 0, ""w_format.head"": ""int4""}"', "5"),
            "'int' object is not iterable",
        ),
        (
            lambda text: text[:-8],
            "Error tokenizing data. C error: EOF inside string starting at row 3",
        ),
    ],
    ids=["empty", "column", "key", "figure", "json", "no mapping", "cut"],
)
def test_a_file_that_is_damaged_is_named(tmp_path, members, damage, reason):
    path = tmp_path / "pareto.csv"
    text = write_evaluated(members)
    assert damage(text) != text
    path.write_text(damage(text), encoding="utf-8")
    with pytest.raises(ApqkitError) as caught:
        read_evaluated(path)
    assert str(caught.value) == f"{path} is missing or damaged: {reason}"


def test_a_member_is_picked_by_key_or_as_the_knee(front):
    assert len(front) == 3
    assert front.pick("cc33").keys == ("cc33",)
    assert front.pick("knee").keys == front.knee().keys == ("bb22",)
    assert front.knee().accuracy.tolist() == [0.8]


def test_an_unknown_key_lists_those_there_are(front):
    with pytest.raises(UnknownNameError) as caught:
        front.pick("aa12")
    assert str(caught.value) == (
        "no member of the front has the key 'aa12' (did you mean 'aa11'?); "
        "there are: knee, aa11, bb22, cc33"
    )


@pytest.mark.parametrize(
    ("limits", "keys"),
    [
        ({}, ("aa11", "bb22", "cc33")),
        ({"latency_ms": 3.0}, ("aa11", "bb22")),  # a cost that is not a number is within no limit
        ({"latency_ms": 2.5}, ("bb22",)),
        ({"latency_ms": 3.0, "size_kib": 20.0}, ("bb22",)),
        ({"latency_ms": 0.0}, ()),
    ],
)
def test_members_under_further_limits(front, limits, keys):
    assert front.under(limits).keys == keys


def test_an_unknown_limit_lists_the_costs_there_are(front):
    with pytest.raises(UnknownNameError) as caught:
        front.under({"latency": 1.0})
    assert str(caught.value) == (
        "no cost named 'latency' (did you mean 'latency_ms'?); there are: latency_ms, size_kib"
    )

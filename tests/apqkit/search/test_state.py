import re
from dataclasses import fields, replace

import numpy as np
import pytest

from apqkit.errors import RunError
from apqkit.search.evolution import evolve_problem
from apqkit.search.problem import SearchSettings
from apqkit.search.state import EvolutionState, read_state, write_state


@pytest.fixture
def state(toy_problem) -> EvolutionState:
    settings = SearchSettings(population=12, generations=5, islands=2, patience=40)
    return evolve_problem(replace(toy_problem, settings=settings), None, 3).state


def test_a_state_comes_back_as_it_was(state, tmp_path):
    write_state(tmp_path / "state.npz", state)
    again = read_state(tmp_path / "state.npz")
    for field in fields(EvolutionState):
        before, after = getattr(state, field.name), getattr(again, field.name)
        assert np.array_equal(before, after, equal_nan=True)
        assert type(before) is type(after)


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "state.npz"
    with pytest.raises(RunError, match=re.escape(f"{path} does not exist") + "$"):
        read_state(path)


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04 cut"])
def test_a_foreign_or_truncated_file_is_named(tmp_path, content):
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        read_state(path)
    assert str(caught.value) == f"{path} holds no state of an evolution: start the search anew"


def test_a_cut_state_is_named(state, tmp_path):
    path = tmp_path / "state.npz"
    write_state(path, state)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RunError) as caught:
        read_state(path)
    assert str(caught.value) == f"{path} holds no state of an evolution: start the search anew"


def test_objects_that_could_run_code_are_refused(tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, schema=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RunError) as caught:
        read_state(path)
    assert str(caught.value) == f"{path} holds no state of an evolution: start the search anew"


def test_another_version_is_named(state, tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    monkeypatch.setattr("apqkit.search.state._SCHEMA", 99)
    write_state(path, state)
    monkeypatch.undo()
    with pytest.raises(RunError) as caught:
        read_state(path)
    assert str(caught.value) == f"{path} has schema 99, this version reads 1"

import re

import numpy as np
import pytest

from apqkit.cli import _run
from predictors.zerocost.evolution import (
    LayerInputs,
    SettingTable,
    load_program,
    write_setting_table,
)


def synthetic_table(name: str, seed: int) -> SettingTable:
    """Accuracy falls with the errors times the gradients' norm; it comes from no network."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.0, 4.0, 8.0])
    gradients = [rng.normal(0.0, scale, 30) for scale in np.exp(rng.normal(0.0, 1.0, 5))]
    parameters = rng.integers(50, 500, 5).astype(float)
    errors = parameters[:, None] * 4.0**-bits
    inputs = LayerInputs(
        tuple("abcde"), ("int2", "int4", "int8"), bits, parameters, errors,
        {"gradients": tuple(gradients)},
    )  # fmt: skip
    settings = rng.integers(0, 3, (120, 5))
    norms = np.array([np.linalg.norm(each) for each in gradients])
    damage = (norms[:, None] * errors)[np.arange(5), settings].sum(axis=1)
    accuracy = 0.9 - 0.8 * damage.argsort().argsort() / 120
    return SettingTable(name, inputs, settings, accuracy, np.arange(120) % 3 == 0, {})


@pytest.fixture
def folders(tmp_path):
    for name, seed in (("first", 1), ("second", 2)):
        write_setting_table(tmp_path / name, synthetic_table(name, seed))
    return tmp_path / "first", tmp_path / "second"


def test_a_proxy_is_evolved_shown_and_written(folders, tmp_path, capsys) -> None:
    first, second = folders
    out = tmp_path / "made" / "proxy.json"
    asked = ["--held-out", str(second), "--programs", "300", "--seed", "5", "--out", str(out)]
    assert _run(["evolve-proxy", str(first), *asked]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    program = load_program(out)
    better = {"up": "larger", "down": "smaller"}[program.direction]
    assert lines[0] == f"{program.formula}, summed over layers: {better} is better"
    assert lines[1].startswith("300 programs, ")
    assert lines[-1] == str(out)
    header = next(line for line in lines if line.strip().startswith("settings"))
    assert header.split() == ["settings", "evolved", "sum", "of", "bits", "size", "errors"]
    rows = [re.match(r" *(.*?)  *[01]\.", line)[1] for line in lines if line.count("..") == 4]
    assert rows == ["train: first", "held out: first", "other: second"]
    assert "programs: 300 in" in shown.err


def test_the_same_seed_writes_the_same_program(folders, tmp_path) -> None:
    written = []
    for name in ("one", "two"):
        out = tmp_path / name
        asked = ["--programs", "200", "--seed", "3", "--out", str(out)]
        assert _run(["evolve-proxy", *map(str, folders), *asked]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_without_a_table_it_says_so(capsys) -> None:
    assert _run(["evolve-proxy"]) == 2
    assert capsys.readouterr().err == "apqkit: Missing argument 'TABLE'.\n"


def test_a_folder_that_is_no_table_is_named(tmp_path, capsys) -> None:
    assert _run(["evolve-proxy", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"apqkit: {tmp_path / 'recipe.json'} is missing or damaged (No such file or directory): "
        "make the table anew\n"
    )


def test_too_few_programs_are_refused(folders, capsys) -> None:
    assert _run(["evolve-proxy", str(folders[0]), "--programs", "3"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "apqkit: programs must be 60 (population) or more, got 3"
    )


def test_one_table_twice_is_refused(folders, capsys) -> None:
    assert _run(["evolve-proxy", str(folders[0]), "--held-out", str(folders[0])]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "apqkit: tables must have different names, got 'first' again"
    )

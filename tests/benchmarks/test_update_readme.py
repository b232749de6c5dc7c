import json
from pathlib import Path

import pytest
from recording import RESULTS
from update_readme import SECTIONS, filled

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_quotes_the_recorded_figures_and_no_others():
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_names_its_command_and_its_file(name):
    lines = SECTIONS[name]().splitlines()
    assert lines[-1].count("python benchmarks/") == 1
    assert "benchmarks/results/" in lines[-1]


def test_a_section_that_is_missing_is_named():
    with pytest.raises(ValueError, match="the README has no section figures:digits"):
        filled("# apqkit\n")


def test_every_result_says_where_it_came_from():
    paths = sorted(RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["benchmark"] == path.stem
        assert record["seeds"]
        assert record["machine"]["cores"] > 0
        assert record["versions"]["torch"]
        assert not record["commit"].endswith("+"), "measured with changes that are in no commit"

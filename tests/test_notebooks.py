from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_name_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not [each for each in ("/tmp/", "/home/", "site-packages") if each in text]

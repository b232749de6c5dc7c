import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.setting_table import (
    SettingTable,
    read_setting_table,
    write_setting_table,
)


@pytest.fixture
def folder(tmp_path, table):
    write_setting_table(tmp_path / "table", table)
    return tmp_path / "table"


def refusal(folder) -> str:
    with pytest.raises(ProxyError) as caught:
        read_setting_table(folder)
    return str(caught.value)


def test_reads_what_it_wrote_to_the_bit(folder, table: SettingTable) -> None:
    found = read_setting_table(folder)
    assert (found.name, found.recipe) == (table.name, table.recipe)
    for name in ("settings", "accuracy", "held_out"):
        assert (getattr(found, name) == getattr(table, name)).all()
        assert getattr(found, name).dtype == getattr(table, name).dtype
    for name in ("bits", "parameters", "errors"):
        assert (getattr(found.inputs, name) == getattr(table.inputs, name)).all()
    assert (found.inputs.layers, found.inputs.formats) == (
        table.inputs.layers,
        table.inputs.formats,
    )
    assert found.inputs.kinds == table.inputs.kinds
    for kind, arrays in table.inputs.statistics.items():
        for one, other in zip(arrays, found.inputs.statistics[kind], strict=True):
            assert one.tolist() == other.tolist()


def test_a_setting_is_a_short_word_of_the_places_of_formats(folder, table: SettingTable) -> None:
    header, first, *_ = (folder / "settings.csv").read_text().splitlines()
    assert header == "setting,accuracy,split"
    word = "f" + "".join(str(each) for each in table.settings[0])
    assert first == f"{word},{float(table.accuracy[0])!r},held-out"


def test_a_thousand_settings_of_twenty_layers_are_small(tmp_path, make_table) -> None:
    write_setting_table(tmp_path, make_table(3, 1000, layers=20))
    assert (tmp_path / "settings.csv").stat().st_size < 64_000


def test_keeps_copies_that_nobody_can_change(table: SettingTable) -> None:
    settings, accuracy = table.settings.copy(), table.accuracy.copy()
    held_out = table.held_out.copy()
    mine = SettingTable("mine", table.inputs, settings, accuracy, held_out, {})
    settings[:] = 0
    accuracy[:] = 0.0
    held_out[:] = True
    for name in ("settings", "accuracy", "held_out"):
        assert (getattr(mine, name) == getattr(table, name)).all()
        with pytest.raises(ValueError, match="read-only"):
            getattr(mine, name)[0] = 0


@pytest.mark.parametrize("name", ["recipe.json", "settings.csv", "statistics.npz"])
def test_a_missing_file_is_named(folder, name) -> None:
    (folder / name).unlink()
    assert refusal(folder) == (
        f"{folder / name} is missing or damaged (No such file or directory): make the table anew"
    )


@pytest.mark.parametrize("name", ["settings.csv", "statistics.npz"])
def test_a_truncated_file_is_named(folder, name) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert refusal(folder) == (
        f"{folder / name} is not what recipe.json was written with: make the table anew"
    )


def test_a_truncated_recipe_is_named(folder) -> None:
    text = (folder / "recipe.json").read_text()
    (folder / "recipe.json").write_text(text[: len(text) // 2])
    message = refusal(folder)
    assert message.startswith(f"{folder / 'recipe.json'} is missing or damaged (JSONDecodeError: ")
    assert message.endswith("): make the table anew")


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "setting table 0"}'])
def test_a_foreign_recipe_is_refused(folder, text) -> None:
    (folder / "recipe.json").write_text(text)
    assert refusal(folder) == (
        f"{folder / 'recipe.json'} is no recipe of a setting table ('setting table 1'): "
        "make the table anew"
    )


@pytest.mark.parametrize("key", ["name", "layers", "formats", "sha256", "recipe"])
def test_a_recipe_must_be_whole(folder, key) -> None:
    header = json.loads((folder / "recipe.json").read_text())
    header[key] = 3
    (folder / "recipe.json").write_text(json.dumps(header))
    assert refusal(folder) == f"{folder / 'recipe.json'} lacks {key!r}: make the table anew"


def rewritten(folder, name: str, content: bytes) -> None:
    """Replaces a file and its digest, as somebody would who edits with care."""
    (folder / name).write_bytes(content)
    header = json.loads((folder / "recipe.json").read_text())
    header["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "recipe.json").write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "setting,",
            "bits,",
            "ValueError: columns must be setting, accuracy, split, got bits, accuracy, split",
        ),
        ("f00", "00", "ValueError: no setting: 00,0.5,train"),
        (",0.5,train", ",0.5,test", "ValueError: no setting: f00,0.5,test"),
        (",0.5,train", ",0.5", "ValueError: no setting: f00,0.5"),
        ("0.5", "half", "ValueError: could not convert string to float: 'half'"),
        ("0.5", "5", "ProxyError: accuracy must be in 0..1, got 5.0"),
        ("f00", "f09", "ProxyError: settings[0, 1] must be in 0..3, got 9"),
        ("f00", "f000", "ProxyError: settings must have shape (settings, 2), got (1, 3)"),
    ],
)
def test_edited_settings_are_refused(tmp_path, table: SettingTable, old, new, reason) -> None:
    inputs = replace(
        table.inputs, layers=("a", "b"), parameters=[1, 2], errors=np.ones((2, 4)), statistics={}
    )
    small = SettingTable("small", inputs, np.zeros((1, 2), int), [0.5], np.zeros(1, bool), {})
    write_setting_table(tmp_path, small)
    text = (tmp_path / "settings.csv").read_text()
    assert old in text
    rewritten(tmp_path, "settings.csv", text.replace(old, new, 1).encode())
    assert refusal(tmp_path) == (
        f"{tmp_path / 'settings.csv'} is missing or damaged ({reason}): make the table anew"
    )


def test_pickles_are_never_read(folder) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, bits=np.array([{}], dtype=object))
    rewritten(folder, "statistics.npz", buffer.getvalue())
    message = refusal(folder)
    assert message.startswith(f"{folder / 'statistics.npz'} is missing or damaged (ValueError: ")
    assert "allow_pickle=False" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"settings": np.zeros((3, 2), int)},
            "settings must have shape (settings, 8), got (3, 2)",
        ),
        (
            {"settings": np.zeros((0, 8), int)},
            "settings must have shape (settings, 8), got (0, 8)",
        ),
        ({"settings": np.zeros((300, 8))}, "settings must hold integers, got float64"),
        (
            {"settings": np.full((300, 8), 4)},
            "settings[0, 0] must be in 0..3, got 4",
        ),
        ({"accuracy": np.zeros(2)}, "accuracy must have shape (300,), got (2,)"),
        ({"accuracy": np.full(300, 61.5)}, "accuracy must be in 0..1, got 61.5"),
        ({"accuracy": np.full(300, np.nan)}, "accuracy must be in 0..1, got nan"),
        (
            {"held_out": np.zeros(300)},
            "held_out must be bool of shape (300,), got float64 of shape (300,)",
        ),
    ],
)
def test_refuses_rows_that_make_no_sense(table: SettingTable, change, message) -> None:
    with pytest.raises(ProxyError) as caught:
        replace(table, **change)
    assert str(caught.value) == message


def test_formats_must_have_a_digit_each(table: SettingTable) -> None:
    many = replace(
        table.inputs,
        formats=tuple(f"f{each}" for each in range(37)),
        bits=np.ones(37),
        errors=np.ones((8, 37)),
    )
    with pytest.raises(ProxyError) as caught:
        replace(table, inputs=many)
    assert str(caught.value) == "formats must be at most 36, got 37"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.float32(0.5), "Object of type float32 is not JSON serializable"),
        (float("nan"), "Out of range float values are not JSON compliant: nan"),
    ],
)
def test_a_recipe_that_is_no_json_writes_nothing(tmp_path, table, value, reason) -> None:
    with pytest.raises(ProxyError) as caught:
        write_setting_table(tmp_path / "new", replace(table, recipe={"rate": value}))
    assert str(caught.value).startswith(f"the recipe of 'synthetic 1' must be JSON: {reason[:44]}")
    assert not (tmp_path / "new").exists()

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.frozen import FrozenEstimator

from predictors import (
    AutoPredictor,
    BlendPredictor,
    BoostedTreesPredictor,
    ExtraTreesPredictor,
    RidgePredictor,
    TransferPredictor,
    load_predictor,
    save_predictor,
)
from predictors.transfer import ColumnReader, FewRowsPredictor

FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def rows_of(count=40, columns=6, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, columns))
    return X, 1.0 / (1.0 + np.exp(-X @ np.arange(columns) / 5.0)), np.arange(count) // 2


@pytest.fixture
def saved(tmp_path):
    """A transferred predictor on disk; what it is in memory."""
    base_rows = rows_of(30, 4, seed=1)
    base = RidgePredictor(alphas=(0.5, 5.0)).fit(*base_rows)
    rows = rows_of()
    predictor = TransferPredictor(base, BlendPredictor(n_estimators=5, random_state=7))
    predictor.fit(*rows)
    folder = tmp_path / "mixed"
    save_predictor(folder, predictor, *rows, base_rows=base_rows)
    return folder, predictor


def edited(folder, **changes):
    path = folder / "predictor.json"
    header = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(header | changes), encoding="utf-8")


def message_of(folder):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        load_predictor(folder)
    assert type(caught.value) is ValueError
    return str(caught.value)


CURE = "fit and save it again"


@pytest.mark.parametrize(
    "predictor",
    [
        RidgePredictor(alphas=(0.2, 3.0)),
        ExtraTreesPredictor(n_estimators=7, min_samples_leaf=1, random_state=3),
        BlendPredictor(n_estimators=7, random_state=4),
        BoostedTreesPredictor(n_estimators=9, max_depth=2, random_state=5),
        AutoPredictor(folds=3, n_estimators=5, random_state=6),
        TransferPredictor(None, BoostedTreesPredictor(n_estimators=9, random_state=8), folds=4),
        TransferPredictor(random_state=9),
    ],
    ids=["ridge", "extra_trees", "blend", "boosted_trees", "auto", "learner", "default learner"],
)
def test_what_is_loaded_is_what_was_saved(tmp_path, predictor):
    X, y, groups = rows_of()
    predictor.fit(X, y, groups=groups)
    save_predictor(tmp_path / "new" / "folder", predictor, X, y, groups)
    loaded = load_predictor(tmp_path / "new" / "folder")
    assert type(loaded) is type(predictor)
    assert repr(loaded.get_params()) == repr(predictor.get_params())
    unseen = rows_of(seed=5)[0]
    for found, expected in zip(
        loaded.predict(unseen, return_std=True), predictor.predict(unseen, return_std=True),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_transfer_comes_back_with_its_base_and_its_learner(saved):
    folder, predictor = saved
    loaded = load_predictor(folder)
    assert loaded.base.alphas == (0.5, 5.0)
    assert loaded.base.n_features_in_ == 4
    assert (loaded.learner.n_estimators, loaded.learner.random_state) == (5, 7)
    assert loaded.uses_residual_ == predictor.uses_residual_
    unseen = rows_of(seed=5)[0]
    np.testing.assert_allclose(loaded.predict(unseen), predictor.predict(unseen), rtol=1e-9)


def test_a_transfer_comes_back_with_the_rows_of_its_base(tmp_path):
    X, y, groups = rows_of()
    base_rows = rows_of(30, 4, seed=1)
    base = FrozenEstimator(FewRowsPredictor((2,), n_estimators=5).fit(*base_rows))
    predictor = TransferPredictor(base, mode="multitask", base_rows=base_rows[:2], folds=3)
    predictor.fit(X, y, groups)
    save_predictor(tmp_path, predictor, X, y, groups, base_rows=base_rows)
    loaded = load_predictor(tmp_path)
    assert (loaded.mode, loaded.folds, loaded.base.ends) == ("multitask", 3, (2,))
    for found, expected in zip(loaded.base_rows, base_rows[:2], strict=True):
        assert np.array_equal(found, expected)
    unseen = rows_of(seed=5)[0]
    np.testing.assert_allclose(loaded.predict(unseen), predictor.predict(unseen), rtol=1e-9)


def test_a_column_reader_needs_no_rows_to_be_saved(tmp_path):
    X, y, groups = rows_of()
    predictor = TransferPredictor(ColumnReader(-2), RidgePredictor()).fit(X, y, groups)
    save_predictor(tmp_path, predictor, X, y, groups)
    loaded = load_predictor(tmp_path)
    assert type(loaded.base) is ColumnReader
    assert loaded.base.column == -2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictor.json", "rows.npz"]


def test_targets_of_any_scale_come_back(tmp_path):
    X, y, groups = rows_of()
    ridge = RidgePredictor().fit(X, 1e9 * y)
    save_predictor(tmp_path, ridge, X, 1e9 * y, groups)
    np.testing.assert_allclose(load_predictor(tmp_path).predict(X), ridge.predict(X))


def test_groups_and_none_are_both_kept(tmp_path):
    X, y, _ = rows_of()
    groups = np.array([f"net{index // 4}" for index in range(40)])
    for name, each in (("some", groups), ("none", None)):
        auto = AutoPredictor(n_estimators=4).fit(X, y, groups=each)
        save_predictor(tmp_path / name, auto, X, y, each)
        assert load_predictor(tmp_path / name).scores_ == pytest.approx(auto.scores_)


def test_parameters_may_be_numpy_scalars(tmp_path):
    X, y, _ = rows_of()
    trees = ExtraTreesPredictor(np.int64(5), max_features=np.float64(0.9)).fit(X, y)
    save_predictor(tmp_path, trees, X, y)
    assert load_predictor(tmp_path).n_estimators == 5


def test_the_files_hold_numbers_and_text_alone(saved):
    folder, _ = saved
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert files == ["base/predictor.json", "base/rows.npz", "predictor.json", "rows.npz"]
    header = json.loads((folder / "predictor.json").read_text(encoding="utf-8"))
    assert header["name"] == "transfer"
    assert header["params"] == {
        "mode": "auto",
        "folds": 5,
        "random_state": 0,
        "learner": {"name": "blend", "params": {"n_estimators": 5, "random_state": 7}},
    }
    assert set(header["versions"]) == {"python", "numpy", "scipy", "scikit-learn", "xgboost"}
    assert len(header["check"]) == 16
    with np.load(folder / "rows.npz", allow_pickle=False) as archive:
        assert {name: archive[name].dtype.kind for name in archive} == {
            "X": "f", "y": "f", "groups": "i",
        }  # fmt: skip


def test_the_same_predictor_makes_the_same_bytes(tmp_path):
    X, y, groups = rows_of()
    for name in ("one", "two"):
        save_predictor(tmp_path / name, RidgePredictor().fit(X, y), X, y, groups)
    for file in ("predictor.json", "rows.npz"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_predictor_replaces_the_one_before_it(saved):
    folder, _ = saved
    X, y, groups = rows_of()
    save_predictor(folder, RidgePredictor().fit(X, y), X, y, groups)
    assert type(load_predictor(folder)) is RidgePredictor


def test_a_class_outside_the_table_is_refused_before_anything_is_written(tmp_path):
    class Own(RidgePredictor):
        pass

    X, y, _ = rows_of()
    with pytest.raises(ValueError, match="Own") as caught:
        save_predictor(tmp_path / "own", Own().fit(X, y), X, y)
    assert str(caught.value) == "Own is not in PREDICTORS, so it cannot be saved"
    assert not (tmp_path / "own").exists()


def test_a_learner_outside_the_table_is_refused(tmp_path):
    class Own(RidgePredictor):
        pass

    X, y, _ = rows_of()
    with pytest.raises(ValueError, match="Own") as caught:
        save_predictor(tmp_path, TransferPredictor(None, Own()).fit(X, y), X, y)
    assert str(caught.value) == "Own is not in PREDICTORS, so it cannot be saved"


def test_a_base_needs_its_rows(saved, tmp_path):
    with pytest.raises(ValueError, match="base_rows") as caught:
        save_predictor(tmp_path / "other", saved[1], *rows_of())
    assert str(caught.value) == "a transfer predictor with a base needs base_rows to be saved"


def test_a_missing_folder_or_file_is_named(saved, tmp_path):
    folder, _ = saved
    nowhere = tmp_path / "nowhere"
    assert message_of(nowhere) == (
        f"{nowhere / 'predictor.json'} is missing or damaged (No such file or directory): {CURE}"
    )
    (folder / "rows.npz").unlink()
    assert message_of(folder) == (
        f"{folder / 'rows.npz'} is missing or damaged (No such file or directory): {CURE}"
    )


def test_damage_to_the_base_names_its_file(saved):
    folder, _ = saved
    (folder / "base" / "predictor.json").write_text("[1, 2", encoding="utf-8")
    assert message_of(folder) == (
        f"{folder / 'base' / 'predictor.json'} is missing or damaged (JSONDecodeError: "
        f"Expecting ',' delimiter: line 1 column 6 (char 5)): {CURE}"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("{}", "KeyError: 'rows_sha256'"),
        ("[]", "TypeError: list indices must be integers or slices, not str"),
    ],
)
def test_a_foreign_header_is_named(saved, content, reason):
    folder, _ = saved
    (folder / "predictor.json").write_text(content, encoding="utf-8")
    path = folder / "predictor.json"
    assert message_of(folder) == f"{path} is missing or damaged ({reason}): {CURE}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"name": "oracle"},
            "ValueError: no predictor named 'oracle'; there are: auto, ridge, extra_trees, "
            "blend, bayesian_ridge, gaussian_process, random_forest, rank_average, "
            "boosted_trees, mlp, parzc, transfer",
        ),
        ({"params": {}}, "KeyError: 'learner'"),
        (
            {"params": {"learner": None, "fold": 3}},
            "TypeError: TransferPredictor.__init__() got an unexpected keyword argument 'fold'",
        ),
        ({"check": ["high"]}, "ValueError: could not convert string to float: 'high'"),
    ],
)
def test_an_edited_header_is_named(saved, changes, reason):
    folder, _ = saved
    edited(folder, **changes)
    path = folder / "predictor.json"
    assert message_of(folder) == f"{path} is missing or damaged ({reason}): {CURE}"


def test_other_rows_than_those_saved_are_refused(saved):
    folder, _ = saved
    X, y, groups = rows_of()
    y[39] += 1e-9  # a change that predictions would hardly show
    with (folder / "rows.npz").open("wb") as file:
        np.savez_compressed(file, X=X, y=y, groups=groups)
    assert message_of(folder) == (
        f"{folder / 'rows.npz'} is not what predictor.json was saved with: {CURE}"
    )


def test_predictions_that_differ_name_both_sets_of_versions(saved):
    folder, _ = saved
    header = json.loads((folder / "predictor.json").read_text(encoding="utf-8"))
    now = header["versions"]
    old = now | {"scikit-learn": "1.2.3"}
    header["check"][3] += 1e-4
    edited(folder, versions=old, check=header["check"])
    assert message_of(folder) == (
        f"{folder} predicts differently when fitted again: saved under {old}, now {now}; {CURE}"
    )


@pytest.mark.parametrize("check", [[], [0.5], [[0.5] * 16]])
def test_predictions_of_another_shape_are_refused(saved, check):
    folder, _ = saved
    edited(folder, check=check)
    assert "predicts differently when fitted again" in message_of(folder)


def test_other_parameters_are_noticed(saved):
    folder, _ = saved
    edited(folder / "base", params={"alphas": [1e4]})
    assert message_of(folder).startswith(f"{folder / 'base'} predicts differently")


class Trap:
    """Would run when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_no_file_can_run_code(saved):
    """Even with a header that vouches for it."""
    folder, _ = saved
    buffer = io.BytesIO()
    rows = np.empty(1, dtype=object)
    rows[0] = Trap()
    np.savez(buffer, X=rows, y=np.ones(1), groups=np.ones(1))
    (folder / "rows.npz").write_bytes(buffer.getvalue())
    edited(folder, rows_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    assert message_of(folder) == (
        f"{folder / 'rows.npz'} is missing or damaged (ValueError: Object arrays cannot be "
        f"loaded when allow_pickle=False): {CURE}"
    )
    assert not Trap.sprung


@pytest.fixture(scope="module")
def ridge_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ridge")
    X, y, groups = rows_of(20, 3)
    save_predictor(folder, RidgePredictor().fit(X, y), X, y, groups)
    return folder


@FUZZ
@given(st.sampled_from(["predictor.json", "rows.npz"]), st.floats(0.0, 0.999))
def test_a_file_cut_anywhere_gives_one_clear_error(ridge_folder, tmp_path, name, share):
    folder = Path(shutil.copytree(ridge_folder, tmp_path / "copy", dirs_exist_ok=True))
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * (len(content) - 1))])
    text = message_of(folder)
    assert text.startswith(f"{path} is ")
    assert text.endswith(CURE)
    assert "\n" not in text


@FUZZ
@given(st.sampled_from(["predictor.json", "rows.npz"]), st.floats(0.0, 0.999), st.integers(1, 255))
def test_a_changed_byte_gives_one_clear_error_or_changes_nothing(
    ridge_folder, tmp_path, name, share, change
):
    folder = Path(shutil.copytree(ridge_folder, tmp_path / "copy", dirs_exist_ok=True))
    path = folder / name
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= change
    path.write_bytes(bytes(content))
    X = rows_of(20, 3)[0]
    fault = ""
    try:
        loaded = load_predictor(folder)
    except ValueError as caught:
        fault = str(caught)
    if fault:
        assert str(folder) in fault
        assert fault.endswith(CURE)
    else:
        assert name == "predictor.json"
        expected = load_predictor(ridge_folder).predict(X)
        np.testing.assert_allclose(loaded.predict(X), expected, atol=1e-5)


def test_an_archive_without_the_rows_is_named(saved):
    folder, _ = saved
    with zipfile.ZipFile(folder / "rows.npz", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    content = (folder / "rows.npz").read_bytes()
    edited(folder, rows_sha256=hashlib.sha256(content).hexdigest())
    assert message_of(folder) == (
        f"{folder / 'rows.npz'} is missing or damaged "
        f"(KeyError: 'X is not a file in the archive'): {CURE}"
    )

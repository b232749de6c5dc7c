import json
import shutil

import numpy as np
import onnx
import optuna
import pandas as pd
import pytest

import apqkit
from apqkit.config import load_config
from apqkit.errors import ConfigError, ExportError, LimitError, RunError, UnknownNameError
from apqkit.pipeline import STAGES, run_stages, supernet_stage

STAGE_FILES = {
    "cost": {"lut.csv", "coverage.json", "totals.csv"},
    "supernet": {"weights.safetensors", "history.csv", "check.json"},
    "samples": {"fp32.jsonl", "mixed.jsonl", "noise.json"},
    "predictor": {
        "scores.json",
        "learning_curve.json",
        "proxies.json",
        "budget.json",
        "sensitivities.json",
    },
    "search": {"journal.log", "evaluated.csv", "pareto.csv", "references.csv", "rounds.json"},
    "export": {"timing.csv"},
    "report": {"index.html"},
}


@pytest.fixture(scope="module")
def front(smoke_run):
    return apqkit.read_front(smoke_run[0])


@pytest.fixture
def copied_run(smoke_run, tmp_path):
    """A copy of the finished run that a test may spoil."""
    return shutil.copytree(smoke_run[0], tmp_path / "run")


def pareto_bytes(path):
    return (path / "search" / "pareto.csv").read_bytes()


def test_the_command_prints_the_front_and_ends_with_the_run_directory(smoke_run):
    path, done = smoke_run
    lines = done.stdout.strip().splitlines()
    assert lines[-1] == str(path)
    for name in ("largest, fp32", "largest, int8", "smallest, int8", "best uniform int4"):
        assert any(name in line for line in lines), name


def test_every_stage_leaves_its_files(smoke_run):
    path, _ = smoke_run
    assert {each.name for each in STAGES} == set(STAGE_FILES)
    for stage, names in STAGE_FILES.items():
        assert names <= {each.name for each in (path / stage).iterdir()}, stage
    assert {"config.toml", "resolved.json", "manifest.json", "log.txt"} <= {
        each.name for each in path.iterdir()
    }


def test_no_file_of_a_run_can_hold_code(smoke_run):
    suffixes = {each.suffix for each in smoke_run[0].rglob("*") if each.is_file()}
    allowed = {".json", ".jsonl", ".csv", ".toml", ".txt", ".log", ".npz", ".safetensors"}
    assert suffixes - allowed <= {".onnx", ".png", ".html", ".lock", ""}


def test_samples_hold_one_line_each_with_picks_by_value(smoke_run):
    config = load_config("smoke")
    for kind, count in (("fp32", config.samples.fp32), ("mixed", config.samples.mixed)):
        lines = (smoke_run[0] / "samples" / f"{kind}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == count
        assert all(row["kind"] == kind and 0 <= row["accuracy"] <= 1 for row in rows)
        has_formats = ["w_format.head" in row["picks"] for row in rows]
        assert all(has_formats) if kind == "mixed" else not any(has_formats)
        assert {"depth.s1", "keep.s0.b0"} <= set(rows[0]["picks"])


def test_the_front_is_measured_within_limits_and_undominated(front):
    members = front.members
    assert len(front) >= 3
    assert (members.costs["size_kib"] <= 6.0).all()
    assert np.isfinite(members.test_accuracy).all()
    assert (np.diff(members.accuracy) < 0).all()
    assert (np.diff(members.costs["latency_ms"]) < 0).all()


def test_members_come_from_measured_candidates(front, smoke_run):
    evaluated = pd.read_csv(smoke_run[0] / "search" / "evaluated.csv", dtype={"key": str})
    assert len(evaluated) == load_config("smoke").search.verify
    assert set(front.members.keys) <= set(evaluated["key"])
    assert evaluated["candidate"].is_unique


def test_no_member_is_beaten_by_a_reference_of_the_space(front):
    """The search measures the smallest int8 network and uniform int4 ones itself."""
    references, members = front.references, front.members
    for name in ("smallest, int8", "best uniform int4"):
        row = references.origins.index(name)
        better = (members.accuracy >= references.accuracy[row] - 1e-9) & (
            members.costs["latency_ms"] <= references.costs["latency_ms"][row] + 1e-12
        )
        assert better.any(), name


def test_test_images_are_read_by_members_and_references_only(smoke_run):
    evaluated = pd.read_csv(smoke_run[0] / "search" / "evaluated.csv")
    assert evaluated["test_accuracy"].isna().all()


def test_the_exported_knee_computes_what_was_measured(front, smoke_run):
    check = json.loads((smoke_run[0] / "export" / front.knee_key / "check.json").read_text())
    assert check["torch_accuracy"] == pytest.approx(front.knee().test_accuracy[0])
    for mode in ("unoptimised", "optimised"):
        assert check[mode]["images_with_other_class"] <= 0.02 * check["images"]
        assert check[mode]["accuracy"] == pytest.approx(check["torch_accuracy"], abs=0.01)


def test_finalists_are_timed_beside_their_price(front, smoke_run):
    timing = pd.read_csv(smoke_run[0] / "export" / "timing.csv", dtype={"key": str})
    assert list(timing["key"]) == [*front.members.keys, *front.references.keys]
    assert (timing["measured_ms"] > 0).all()
    priced = timing["latency_ms"][: len(front)]
    assert np.allclose(priced, front.members.costs["latency_ms"], atol=1e-5)


def test_scores_stand_beside_their_baselines_with_intervals(smoke_run):
    scores = json.loads((smoke_run[0] / "predictor" / "scores.json").read_text())
    assert {"predictor", "macs", "params"} <= set(scores["fp32"]["scores"])
    mixed = scores["mixed"]["scores"]
    columns = {"transferred", "from scratch", "fp32 predictor alone", "bops", "macs", "params"}
    assert columns <= set(mixed)
    tau = mixed["transferred"]["tau"]
    assert tau["low"] <= tau["value"] <= tau["high"]
    assert set(mixed["bops"]) == {"tau", "spearman", "top_quartile_tau", "rmse"}


def test_saved_predictors_load_and_agree(smoke_run):
    from predictors import load_predictor

    folder = smoke_run[0] / "predictor"
    assert type(load_predictor(folder / "fp32")).__name__ == "RidgePredictor"
    assert load_predictor(folder / "mixed").base is not None


def test_each_proxy_is_kept_or_dropped_with_a_reason(smoke_run):
    decision = json.loads((smoke_run[0] / "predictor" / "proxies.json").read_text())
    log = (smoke_run[0] / "log.txt").read_text()
    assert set(decision["tried"]) == {"snip", "sqnr"}
    for name, each in decision["tried"].items():
        helps = each["gain"] > each["standard_error"]
        assert each["used"] == (name in decision["used"]) == helps
        assert f"proxy {name} is {'kept' if each['used'] else 'dropped'}: " in log


def test_a_front_is_shown_as_a_line(front, smoke_run):
    assert repr(front) == (
        f"ParetoSet({len(front)} members, knee {front.knee_key}, {smoke_run[0]})"
    )
    assert repr(front.knee()) == f"Evaluated(1 candidates: {front.knee_key})"


def test_a_finished_run_prints_its_table_again_and_changes_nothing(copied_run, run_apqkit):
    before = pareto_bytes(copied_run)
    done = run_apqkit("run-search", "smoke", "--out", copied_run)
    assert "members on the front" in done.stdout
    assert done.stderr.count("is done already") == len(STAGES)
    assert pareto_bytes(copied_run) == before


def test_two_runs_of_one_seed_are_byte_identical(smoke_run, tmp_path):
    apqkit.run_search("smoke", tmp_path / "again")
    for name in ("pareto.csv", "evaluated.csv", "references.csv"):
        first, second = (each / "search" / name for each in (smoke_run[0], tmp_path / "again"))
        assert first.read_bytes() == second.read_bytes(), name


def test_until_stops_after_a_stage_and_the_next_call_goes_on(tmp_path):
    config = load_config("smoke", ["supernet.epochs=1", "supernet.quantized_epochs=1"])
    assert run_stages(config, tmp_path / "run", until="supernet") == ["cost", "supernet"]
    assert not (tmp_path / "run" / "samples").exists()
    assert run_stages(config, tmp_path / "run", until="samples") == ["samples"]


def test_a_kill_after_the_training_does_not_cost_the_training(tmp_path, monkeypatch):
    config = load_config("smoke", ["supernet.epochs=1", "supernet.quantized_epochs=1"])

    def killed(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(supernet_stage, "check_subnets", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stages(config, tmp_path / "run", until="supernet")
    monkeypatch.setattr(supernet_stage, "train_supernet", killed)
    assert run_stages(config, tmp_path / "run", until="supernet") == ["supernet"]
    assert (tmp_path / "run" / "supernet" / "check.json").exists()


def test_few_samples_are_scored_over_fewer_folds(copied_run):
    config = load_config("smoke", ["samples.mixed=8"])
    run_stages(config, copied_run, redo="samples", until="predictor")
    scores = json.loads((copied_run / "predictor" / "scores.json").read_text())
    assert scores["mixed"]["rows"] == 8
    assert np.isfinite(scores["mixed"]["half_width"])


def test_the_two_kinds_of_sample_share_no_architecture(smoke_run):
    seen = {}
    for kind in ("fp32", "mixed"):
        lines = (smoke_run[0] / "samples" / f"{kind}.jsonl").read_text().splitlines()
        formats = ("w_format.", "a_format.")
        seen[kind] = {
            json.dumps({n: v for n, v in json.loads(x)["picks"].items() if n[:9] not in formats})
            for x in lines
        }
    assert len(seen["fp32"]) == 24
    assert not seen["fp32"] & seen["mixed"]


def test_redo_makes_a_stage_and_what_follows_again(copied_run):
    ran = run_stages(load_config("smoke"), copied_run, redo="export")
    assert ran == ["export", "report"]


@pytest.mark.parametrize(("flag", "argument"), [("--until", "until"), ("--redo", "redo")])
def test_an_unknown_stage_is_named(flag, argument, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_stages(load_config("smoke"), tmp_path / "run", **{argument: "serch"})
    assert str(caught.value) == (
        f"{flag} 'serch' is no stage (did you mean 'search'?); there are: "
        "cost, supernet, samples, predictor, search, export, report"
    )
    assert not (tmp_path / "run").exists()


def test_a_changed_configuration_is_refused_and_nothing_is_overwritten(copied_run):
    before = {each: each.read_bytes() for each in copied_run.rglob("*") if each.is_file()}
    with pytest.raises(RunError) as caught:
        run_stages(load_config("smoke", ["samples.mixed=30"]), copied_run)
    assert str(caught.value) == (
        f"{copied_run} was made with samples.mixed = 24, now 30 (stage samples): "
        "use --redo samples to make it and what follows again, or another --out"
    )
    after = {each: each.read_bytes() for each in copied_run.rglob("*") if each.is_file()}
    assert {k: v for k, v in after.items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


def test_a_changed_limit_costs_a_new_search_but_no_new_samples(copied_run):
    config = load_config("smoke", ["search.limits.size_kib=5.0"])
    with pytest.raises(RunError, match="use --redo search to make it"):
        run_stages(config, copied_run)
    assert run_stages(config, copied_run, redo="search") == ["search", "export", "report"]
    assert (apqkit.read_front(copied_run).members.costs["size_kib"] <= 5.0).all()


def test_a_changed_limit_is_checked_before_the_old_search_is_lost(copied_run):
    before = pareto_bytes(copied_run)
    config = load_config("smoke", ["search.limits.size_kib=0.1"])
    with pytest.raises(LimitError, match="size_kib"):
        run_stages(config, copied_run, redo="search")
    assert pareto_bytes(copied_run) == before


def test_a_change_together_with_its_redo_is_accepted(copied_run):
    ran = run_stages(load_config("smoke", ["export.picks=[]"]), copied_run, redo="export")
    assert ran == ["export", "report"]


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("samples/mixed.jsonl", "samples"),
        ("supernet/weights.safetensors", "supernet"),
        ("search/pareto.csv", "search"),
        ("predictor/fp32/rows.npz", "predictor"),
    ],
)
def test_a_truncated_file_of_a_done_stage_is_named_with_its_cure(copied_run, name, stage):
    path = copied_run / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError) as caught:
        run_stages(load_config("smoke"), copied_run)
    assert str(caught.value) == (
        f"{path} is missing, truncated or edited since stage {stage} wrote it; "
        f"use --redo {stage} to make it again"
    )


def test_any_member_can_be_exported_later(copied_run, front):
    key = front.members.keys[0]
    path = apqkit.export_pick(copied_run, key)
    assert path == copied_run / "export" / key / "model.onnx"
    assert json.loads((path.parent / "check.json").read_text())["images"] == 240


def test_a_packed_export_stands_beside_the_fast_one_and_computes_the_same(copied_run, front):
    fast = apqkit.export_pick(copied_run, "knee")
    small = apqkit.export_pick(copied_run, "knee", carrier="packed")
    assert small == copied_run / "export" / front.knee_key / "model_packed.onnx"
    checks = [
        json.loads((small.parent / name).read_text())
        for name in ("check.json", "check_packed.json")
    ]
    assert [each["carrier"] for each in checks] == ["int8", "packed"]
    assert checks[0]["unoptimised"] == checks[1]["unoptimised"]
    assert fast.exists()
    with pytest.raises(ExportError) as caught:
        apqkit.export_pick(copied_run, "knee", carrier="int4")
    assert str(caught.value) == "carrier must be int8 or packed, got 'int4'"


def test_an_exported_file_says_what_it_holds(front, smoke_run):
    model = onnx.load(smoke_run[0] / "export" / front.knee_key / "model.onnx")
    held = {each.key: each.value for each in model.metadata_props}
    assert json.loads(held["candidate"]) == front.knee().candidates[0]
    assert json.loads(held["class_names"]) == [str(digit) for digit in range(10)]
    assert json.loads(held["versions"])["apqkit"] == apqkit.__version__
    assert {"torch", "onnx", "python"} <= set(json.loads(held["versions"]))
    assert held["carrier"] == "int8"
    assert held["input"] == "fp32 pixels in 0..1, (batch, 1, 8, 8)"
    assert held["normalisation"] == "none beyond 0..1: the first layer takes pixels as they are"
    assert set(json.loads(held["formats"])) >= {"stem", "classifier"}


def test_an_export_is_timed_in_turn_with_its_fp32_twin(front, smoke_run):
    check = json.loads((smoke_run[0] / "export" / front.knee_key / "check.json").read_text())
    for name in ("latency", "reference_latency"):
        assert 0 < check[name]["p10_ms"] <= check[name]["median_ms"] <= check[name]["p90_ms"]
        assert check[name]["batch"] == load_config("smoke").cost.batch


def test_adding_to_a_finished_run_does_not_spoil_it(copied_run):
    apqkit.export_pick(copied_run, "knee")
    apqkit.make_report(copied_run)
    assert run_stages(load_config("smoke"), copied_run) == []


def test_a_key_that_is_on_no_front_is_refused(copied_run, front):
    with pytest.raises(UnknownNameError) as caught:
        apqkit.export_pick(copied_run, "zzzzzzzz")
    assert str(caught.value) == (
        "no member of the front has the key 'zzzzzzzz'; there are: knee, "
        + ", ".join(front.members.keys)
    )


def test_finetuning_reports_before_and_after_and_leaves_a_model(copied_run, front):
    result = apqkit.finetune_pick(copied_run, "knee")
    folder = copied_run / "finetune" / front.knee_key
    assert {"model.onnx", "check.json", "result.json", "weights.safetensors"} == {
        each.name for each in folder.iterdir()
    }
    assert result["before"]["test"] == pytest.approx(front.knee().test_accuracy[0])
    assert result["after"]["validation"] != result["before"]["validation"]
    assert result["onnx_accuracy"] == pytest.approx(result["after"]["test"], abs=0.01)
    page = apqkit.make_report(copied_run)
    assert f"{result['after']['test']:.4f}" in page.read_text()


def test_finetuning_starts_anew_when_the_member_was_made_anew(copied_run, front):
    folder = copied_run / "finetune" / front.knee_key
    folder.mkdir(parents=True)
    stale = folder / "checkpoint_0123456789ab.safetensors"
    stale.write_bytes(b"of another search")
    result = apqkit.finetune_pick(copied_run, "knee", overrides=["finetune.epochs=1"])
    assert result["epochs"] == 1
    assert not stale.exists()


def test_only_finetuning_can_be_changed_in_a_finished_run(copied_run):
    with pytest.raises(ConfigError) as caught:
        apqkit.finetune_pick(copied_run, "knee", overrides=["seed=1"])
    assert str(caught.value) == "a finished run takes --set finetune.KEY=VALUE only, got 'seed=1'"


@pytest.mark.parametrize("call", [apqkit.read_front, apqkit.make_report])
def test_a_directory_that_is_no_run_is_refused(call, tmp_path):
    with pytest.raises(RunError) as caught:
        call(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds no run of apqkit: it has no resolved.json"


def test_an_unfinished_search_has_no_front(tmp_path):
    path = tmp_path / "run"
    run_stages(load_config("smoke"), path, until="cost")
    with pytest.raises(RunError) as caught:
        apqkit.read_front(path)
    assert str(caught.value) == (
        f"{path} holds no finished search: run apqkit run-search with --out {path} first"
    )


def test_the_written_configuration_repeats_the_run(smoke_run):
    path = smoke_run[0]
    again = load_config(path / "config.toml")
    assert run_stages(again, path) == []


@pytest.mark.parametrize("strategy", ["nsga2", "random"])
def test_other_strategies_run_to_a_front(copied_run, strategy):
    settings = [f"search.strategy={strategy}", "search.verify=12", "search.rounds=2"]
    run_stages(load_config("smoke", settings), copied_run, redo="search", until="search")
    assert len(apqkit.read_front(copied_run)) >= 1


def test_the_study_can_live_in_a_database(copied_run, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    settings = [f'search.storage="{url}"', "search.verify=8", "search.rounds=2"]
    run_stages(load_config("smoke", settings), copied_run, redo="search", until="search")
    assert not (copied_run / "search" / "journal.log").exists()
    assert len(pd.read_csv(copied_run / "search" / "evaluated.csv")) == 8
    before = (copied_run / "search" / "evaluated.csv").read_bytes()
    run_stages(load_config("smoke", settings), copied_run, redo="search", until="search")
    assert (copied_run / "search" / "evaluated.csv").read_bytes() == before
    studies = optuna.get_all_study_summaries(url)
    assert [each.n_trials for each in studies] == [8, 8]  # made again, not read back

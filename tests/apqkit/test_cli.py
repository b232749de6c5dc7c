import json
import re
import tomllib

import pytest
import typer
from typer.testing import CliRunner

import apqkit.pipeline
from apqkit.cli import _run, app, main
from apqkit.config import load_config
from apqkit.cost import read_lut
from apqkit.errors import RunError
from apqkit.pipeline import BuiltTable, config_toml, resolved

COMMANDS = {
    "run-search", "finetune", "export", "report", "build-lut", "check-lut", "import-lut", "list",
    "show-config", "evolve-proxy",
}  # fmt: skip


@pytest.fixture
def told(monkeypatch):
    """Replaces the library functions behind the shell; remembers how they were called."""
    calls = []

    def stand_in(name, answer):
        def function(*arguments, **options):
            options.pop("progress", None)
            calls.append((name, arguments, options))
            return answer

        monkeypatch.setattr(apqkit.pipeline, name, function)

    stand_in("run_stages", [])
    stand_in("export_pick", "runs/a/export/k/model.onnx")
    stand_in("make_report", "runs/a/report/index.html")
    accuracy = {"validation": 0.5, "test": 0.25}
    better = {"validation": 0.75, "test": 0.625}
    stand_in("finetune_pick", {"key": "k", "epochs": 3, "before": accuracy, "after": better})
    return calls


def test_without_arguments_it_shows_help(capsys):
    assert _run([]) == 0
    shown = capsys.readouterr().out
    listed = re.search(r"Commands:\n(.*)", shown, re.DOTALL).group(1)
    assert {line.split()[0] for line in listed.splitlines() if line.startswith("  ")} >= COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command, capsys):
    assert _run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage:")
    assert "Traceback" not in shown


def test_every_command_is_listed_here():
    assert {each.name or each.callback.__name__ for each in app.registered_commands} == COMMANDS


def test_the_shown_configuration_reads_back_as_itself(capsys):
    assert _run(["show-config", "smoke", "--set", "samples.fp32=31"]) == 0
    shown = capsys.readouterr().out
    expected = resolved(load_config("smoke", ["samples.fp32=31"]))
    assert shown.rpartition("# not set")[0] == config_toml(expected)
    assert resolved(load_config(tomllib.loads(shown))) == expected
    assert expected.samples.fp32 == 31


def test_listing_prints_one_name_a_line(capsys):
    assert _run(["list", "strategies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["evolution", "nsga2", "random"]
    assert all(len(line.split()) > 1 for line in lines)


def test_a_search_is_one_call_with_what_was_asked(told, capsys, tmp_path):
    arguments = [
        "run-search",
        "smoke",
        "--out",
        str(tmp_path),
        "--until",
        "cost",
        "--redo",
        "cost",
    ]
    assert _run([*arguments, "--set", "seed=7", "--set", "samples.fp32=9"]) == 0
    settings = load_config("smoke", ["seed=7", "samples.fp32=9"])
    assert told == [("run_stages", (settings, tmp_path), {"until": "cost", "redo": "cost"})]
    assert capsys.readouterr().out == f"{tmp_path}\n"


def test_a_search_lands_in_runs_by_default(told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("seed = 3\n")
    assert _run(["run-search", str(tmp_path / "mine.toml"), "--until", "cost"]) == 0
    assert told[0][1][0].seed == 3
    assert capsys.readouterr().out == "runs/mine\n"


def test_an_export_prints_the_path_of_the_model(told, capsys, tmp_path):
    assert _run(["export", str(tmp_path), "--pick", "k"]) == 0
    assert told == [("export_pick", (tmp_path, "k"), {"carrier": None})]
    assert capsys.readouterr().out == "runs/a/export/k/model.onnx\n"
    assert _run(["export", str(tmp_path), "--carrier", "packed"]) == 0
    assert told[1:] == [("export_pick", (tmp_path, "knee"), {"carrier": "packed"})]


def test_a_report_prints_the_path_of_the_page(told, capsys, tmp_path):
    assert _run(["report", str(tmp_path)]) == 0
    assert told == [("make_report", (tmp_path,), {})]
    assert capsys.readouterr().out == "runs/a/report/index.html\n"


def test_finetuning_prints_before_and_after_and_renews_the_report(told, capsys, tmp_path):
    assert _run(["finetune", str(tmp_path)]) == 0
    assert told == [
        ("finetune_pick", (tmp_path, "knee"), {"overrides": []}),
        ("make_report", (tmp_path,), {}),
    ]
    assert capsys.readouterr().out == (
        "validation accuracy: 0.5000 before, 0.7500 after 3 epochs\n"
        "test accuracy: 0.2500 before, 0.6250 after 3 epochs\n"
        f"{tmp_path}/finetune/k\n"
    )


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (RunError("two\n  lines"), 2, "apqkit: two lines\n"),
        (OSError(28, "Disk full", "a.csv"), 2, "apqkit: a.csv: Disk full\n"),
        (OSError(28, "Disk full"), 2, "apqkit: input or output: Disk full\n"),
        (KeyboardInterrupt(), 130, "apqkit: interrupted; the same command goes on from here\n"),
        (typer.Abort(), 130, "apqkit: interrupted; the same command goes on from here\n"),
    ],
)
def test_faults_become_one_line_and_a_code(fault, code, said, monkeypatch, capsys, tmp_path):
    def failing(*arguments, **options):
        raise fault

    monkeypatch.setattr(apqkit.pipeline, "make_report", failing)
    assert _run(["report", str(tmp_path)]) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", said)


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    def failing(*arguments, **options):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(apqkit.pipeline, "make_report", failing)
    with pytest.raises(ZeroDivisionError, match="bug"):
        _run(["report", str(tmp_path)])


@pytest.mark.parametrize(("arguments", "code"), [(["list", "spaces"], 0), (["list", "x"], 2)])
def test_main_exits_with_the_code(arguments, code):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == code


def test_arguments_come_from_the_shell(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["apqkit", "list", "spaces"])
    assert _run(None) == 0
    assert capsys.readouterr().out.startswith("apq ")


def test_the_app_runs_under_typer_too():
    assert CliRunner().invoke(app, ["list", "spaces"]).output.startswith("apq ")


def test_the_front_is_printed_with_its_knee_and_references(smoke_run):
    path, done = smoke_run
    front = apqkit.read_front(path)
    lines = done.stdout.splitlines()
    assert (
        f"{len(front)} members on the front, most accurate first; knee {front.knee_key}" in lines
    )
    for key in (*front.members.keys, *front.references.keys):
        assert any(line.split()[:1] == [key] for line in lines), key
    assert lines[-2:] == [f"report: {path / 'report' / 'index.html'}", str(path)]


def test_a_table_is_built_and_what_it_estimates_is_said(monkeypatch, capsys, tmp_path):
    calls = []

    def build(config, out, *, progress):
        calls.append((config.cost, out))
        estimates = {"conv kernel 3": {"latency_ms": 0.5, "relative_error": 0.25}}
        return BuiltTable(None, "a device", 20, 3, estimates, 0.125)

    monkeypatch.setattr(apqkit.pipeline, "build_space_table", build)
    out = tmp_path / "lut.csv"
    arguments = ["build-lut", "smoke", "--budget", "5", "--set", "cost.batch=8", "--out", str(out)]
    assert _run(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a device: 20 layers, 3 conversions between layers",
        "1 rows that networks of the space need are estimated, 12.5% of their latency",
        "  conv kernel 3: 0.5 ms, give or take 25%",
        str(out),
    ]
    assert calls[0][1] == out
    assert (calls[0][0].device, calls[0][0].batch, calls[0][0].budget_s) == ("host", 8, 5.0)


def test_a_prepared_folder_is_explained(told, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(apqkit.pipeline, "prepare_space_table", lambda config, folder: 7)
    assert _run(["build-lut", "smoke", "--prepare", str(tmp_path / "box")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "7 rows to measure: copy the folder to the device and run there",
        "  python measure.py --device NAME",
        f"then bring it back and use it: --set cost.device={tmp_path / 'box'}",
        str(tmp_path / "box"),
    ]


def test_a_checked_table_prints_its_figures(monkeypatch, capsys, tmp_path):
    class Check:
        def figures(self):
            return {"with edges": {"mape": 0.05, "tau": 0.9}, "repeat": {"mape": 0.01, "tau": 1.0}}

    monkeypatch.setattr(apqkit.pipeline, "check_space_table", lambda *a, **b: Check())
    assert _run(["check-lut", "lut.csv", "smoke", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "with edges     mape 0.050, tau 0.900",
        "repeat         mape 0.010, tau 1.000",
        str(tmp_path),
    ]


def test_a_published_table_is_read_into_the_one_schema(capsys, tmp_path):
    rows = {"(16, 64, 112, 1, 1, 0, 1)-W4A4": {"latency": 0.5, "energy": 0.9}}
    ends = {name: {"latency": 0.1, "energy": 0.2} for name in ("head", "tail")}
    (tmp_path / "apq.json").write_text(json.dumps({**rows, **ends}))
    out = tmp_path / "lut.csv"
    assert _run(["import-lut", "apq", str(tmp_path / "apq.json"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["3 rows", str(out)]
    assert "units: ms" in printed
    assert len(read_lut(out)) == 3


def test_list_without_a_kind_lists_the_kinds(capsys):
    from apqkit.listing import KINDS

    assert _run(["list"]) == 0
    assert capsys.readouterr().out.split() == list(KINDS)


def test_show_config_ends_with_the_keys_that_are_not_set(capsys):
    assert _run(["show-config", "digits"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "# not set: data.path, data.limit, data.image_size, search.storage"

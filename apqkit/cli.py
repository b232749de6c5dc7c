"""The command line: each subcommand is one library call. Imports lazily, prints, exits.

Exit codes: 0 done, 2 something that the user can mend (one line on stderr), 1 a bug, 130 Ctrl-C.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apqkit.errors import ApqkitError

if TYPE_CHECKING:
    import pandas as pd

    from apqkit.front import ParetoSet
    from apqkit.pipeline import BuiltTable
    from predictors.zerocost.evolution import EvolutionResult, Ranking

__all__ = ["app", "main"]

app = typer.Typer(
    name="apqkit",
    help="Joint search of network architecture, pruning and number formats: "
    "measured, explained, exported.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_Config = Annotated[
    str, typer.Argument(help="A TOML file, or a shipped configuration (apqkit list configs).")
]
_Run = Annotated[Path, typer.Argument(help="A run directory.", metavar="DIR")]
_Pick = Annotated[str, typer.Option("--pick", help='Key of a member of the front, or "knee".')]


@app.command("run-search")
def run_search(
    config: _Config = "digits",
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory; default runs/CONFIG.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, dotted, TOML value."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
    redo: Annotated[
        str | None, typer.Option("--redo", help="Make this stage and what follows again.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option("--storage", help="Optuna storage URL instead of a journal.")
    ] = None,
) -> None:
    """Searches from data to a measured, exported front. The same command resumes a killed run."""
    from apqkit.config import load_config
    from apqkit.pipeline import read_front, run_stages
    from apqkit.progress import RichProgress

    path = out or Path("runs") / Path(config).stem
    stored = [f"search.storage={json.dumps(storage)}"] if storage else []
    settings = load_config(config, [*(overrides or []), *stored])
    with RichProgress() as progress:
        run_stages(settings, path, until=until, redo=redo, progress=progress)
    if until is None or until in ("search", "export", "report"):
        _print_front(read_front(path))
        print(f"report: {path / 'report' / 'index.html'}" if until is None else "")
    print(path)


@app.command()
def finetune(
    run: _Run,
    pick: _Pick = "knee",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as finetune.epochs=50."),
    ] = None,
) -> None:
    """Trains a member of the front with its formats and reports before and after."""
    from apqkit.pipeline import finetune_pick, make_report
    from apqkit.progress import RichProgress

    with RichProgress() as progress:
        result = finetune_pick(run, pick, overrides=overrides or [], progress=progress)
        make_report(run, progress=progress)
    for split in ("validation", "test"):
        before, after = result["before"][split], result["after"][split]
        print(
            f"{split} accuracy: {before:.4f} before, {after:.4f} after {result['epochs']} epochs"
        )
    print(run / "finetune" / result["key"])


@app.command()
def export(
    run: _Run,
    pick: _Pick = "knee",
    carrier: Annotated[
        str | None,
        typer.Option(
            "--carrier",
            metavar="int8|packed",
            help="How weights under 8 bits are stored: fast, or small; the same numbers.",
        ),
    ] = None,
) -> None:
    """Writes a member of the front as ONNX, checks it in ONNX Runtime and times it."""
    from apqkit.pipeline import export_pick
    from apqkit.progress import RichProgress

    with RichProgress() as progress:
        print(export_pick(run, pick, carrier=carrier, progress=progress))  # type: ignore[arg-type]


@app.command()
def report(run: _Run) -> None:
    """Writes the report of a finished run anew."""
    from apqkit.pipeline import make_report
    from apqkit.progress import RichProgress

    with RichProgress() as progress:
        print(make_report(run, progress=progress))


@app.command("build-lut")
def build_lut(
    config: _Config = "digits",
    out: Annotated[
        Path | None, typer.Option("--out", help="The table; default lut_CONFIG.csv.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="host, or a folder that a device measured.")
    ] = "host",
    prepare: Annotated[
        Path | None,
        typer.Option("--prepare", help="Write a folder for another machine to measure instead."),
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", help="Seconds to time layers for, about.")
    ] = 180.0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as cost.batch=8."),
    ] = None,
) -> None:
    """Builds a look-up table of the layers that a configuration's space can produce."""
    from apqkit.config import load_config
    from apqkit.pipeline import build_space_table, prepare_space_table, resolved
    from apqkit.progress import RichProgress

    asked = [f"cost.device={json.dumps(device)}", f"cost.budget_s={budget}"]
    settings = resolved(load_config(config, [*(overrides or []), *asked]))
    if prepare is not None:
        rows = prepare_space_table(settings, prepare)
        print(f"{rows} rows to measure: copy the folder to the device and run there")
        print("  python measure.py --device NAME")
        print(f"then bring it back and use it: --set cost.device={prepare}")
        print(prepare)
        return
    path = out or Path(f"lut_{Path(config).stem}.csv")
    with RichProgress() as progress:
        built = build_space_table(settings, path, progress=progress)
    _print_built(built)
    print(path)


@app.command("check-lut")
def check_lut(
    table: Annotated[Path, typer.Argument(help="A look-up table of this machine (CSV).")],
    config: _Config = "digits",
    out: Annotated[Path, typer.Option("--out", help="Folder of figures and picture.")] = Path(
        "lut_check"
    ),
    networks: Annotated[int, typer.Option("--networks", help="How many to time whole.")] = 40,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, dotted, TOML value."),
    ] = None,
) -> None:
    """Times whole exported networks and compares them with a table's prices."""
    from apqkit.config import load_config
    from apqkit.pipeline import check_space_table, resolved
    from apqkit.progress import RichProgress

    settings = resolved(load_config(config, overrides or []))
    with RichProgress() as progress:
        check = check_space_table(settings, table, out, networks=networks, progress=progress)
    for name, figures in check.figures().items():
        said = (f"{figure} {value:.3f}" for figure, value in figures.items())
        print(f"{name:15}{', '.join(said)}")
    print(out)


@app.command("import-lut")
def import_lut(
    dialect: Annotated[str, typer.Argument(help="Whose (apqkit list tables).")],
    file: Annotated[Path, typer.Argument(help="The published file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default lut_DIALECT.csv.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What the file leaves open."),
    ] = None,
) -> None:
    """Reads a look-up table that others published into the one schema."""
    from apqkit.config import tree_of
    from apqkit.cost import write_lut
    from apqkit.cost.importers import import_table

    table = import_table(dialect, file, tree_of(overrides or []))
    path = out or Path(f"lut_{dialect}.csv")
    write_lut(path, table)
    for name, value in table.header.items():
        print(f"{name}: {value}")
    print(f"{len(table)} rows")
    print(path)


@app.command("evolve-proxy")
def evolve_proxy(
    tables: Annotated[
        list[Path],
        typer.Argument(help="Folders of measured bit settings to train on.", metavar="TABLE"),
    ],
    others: Annotated[
        list[Path] | None,
        typer.Option("--held-out", metavar="TABLE", help="Another network, for the report only."),
    ] = None,
    programs: Annotated[int, typer.Option("--programs", help="How many to evaluate.")] = 20_000,
    seed: Annotated[int, typer.Option("--seed", help="Of all draws.", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", help="The program.")] = Path("proxy.json"),
) -> None:
    """Evolves a formula that ranks bit settings, and reports it where it was not trained."""
    from apqkit.progress import RichProgress
    from predictors.zerocost import ProxyError
    from predictors.zerocost.evolution import evolve, read_setting_table, save_program

    try:
        train = [read_setting_table(each) for each in tables]
        held_out = [read_setting_table(each) for each in others or []]
        with RichProgress() as progress, progress.task("programs", programs) as advance:
            result = evolve(
                train, held_out=held_out, programs=programs, seed=seed, progress=advance
            )
    except ProxyError as fault:
        raise ApqkitError(str(fault)) from None
    save_program(out, result.program)
    _print_evolution(result)
    print(out)


@app.command("list")
def list_names(
    kind: Annotated[
        str | None, typer.Argument(help="spaces, formats, proxies, ...; all kinds without one")
    ] = None,
) -> None:
    """Lists what can be named in a configuration, one name a line."""
    from apqkit.listing import KINDS
    from apqkit.registry import lookup

    if kind is None:
        print("\n".join(KINDS))
        return
    for name, says in lookup(KINDS, kind, "kind of thing to list")().items():
        print(f"{name:22}{says}".rstrip())


@app.command("show-config")
def show_config(
    config: _Config = "digits",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, dotted, TOML value."),
    ] = None,
) -> None:
    """Prints a configuration as TOML with every default filled in."""
    from apqkit.config import load_config
    from apqkit.pipeline import config_toml, resolved, unset_keys

    settings = resolved(load_config(config, overrides or []))
    print(config_toml(settings), end="")
    print(f"# not set: {', '.join(unset_keys(settings))}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    sys.exit(_run(arguments))


# typer exports no base of its usage errors; BadParameter is one of them, two steps below it.
_UsageFault: Any = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130


def _run(arguments: Sequence[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(given or ["--help"], standalone_mode=False)
    except ApqkitError as fault:
        print(f"apqkit: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    except _UsageFault as fault:
        print(f"apqkit: {' '.join(fault.format_message().split())}", file=sys.stderr)
        return 2
    except OSError as fault:  # a full disk, a file in the way
        print(f"apqkit: {fault.filename or 'input or output'}: {fault.strerror}", file=sys.stderr)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # typer returns it on Ctrl-C
        print("apqkit: interrupted; the same command goes on from here", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _print_front(front: "ParetoSet") -> None:
    from apqkit.report.page import front_table

    print(f"\n{len(front)} members on the front, most accurate first; knee {front.knee_key}\n")
    _print_table(front_table(front.members))
    print("\nfor scale\n")
    _print_table(front_table(front.references))
    print()


def _print_built(built: "BuiltTable") -> None:
    print(f"{built.device}: {built.nodes} layers, {built.edges} conversions between layers")
    print(
        f"{len(built.estimated)} rows that networks of the space need are estimated, "
        f"{built.share_estimated:.1%} of their latency"
    )
    for layer, each in list(built.estimated.items())[:5]:
        error = each["relative_error"]
        print(f"  {layer}: {each['latency_ms']:.4g} ms, give or take {error:.0%}")


def _print_evolution(result: "EvolutionResult") -> None:
    import pandas as pd

    better = {"up": "larger", "down": "smaller"}[result.program.direction]
    print(f"{result.program.formula}, summed over layers: {better} is better")
    print(
        f"{result.evaluated} programs, {result.broken} of them broken, "
        f"{result.programs_per_minute:.0f} a minute; training less held-out rho {result.gap:.3f}"
    )
    print("\nSpearman's rho with accuracy, 95 % interval\n")
    rankings = {"evolved": result.ranking, **result.baselines}
    columns = {name: _ranking_cells(each) for name, each in rankings.items()}
    frame = pd.DataFrame(columns).rename_axis("settings").reset_index()
    _print_table(frame)
    print()


def _ranking_cells(ranking: "Ranking") -> dict[str, str]:
    sides = {"train": ranking.train, "held out": ranking.held_out, "other": ranking.others}
    return {
        f"{side}: {table}": f"{rho.value:.3f} ({rho.low:.3f}..{rho.high:.3f})"
        for side, rhos in sides.items()
        for table, rho in rhos.items()
    }


def _print_table(frame: "pd.DataFrame") -> None:
    print(frame.to_string(index=False))

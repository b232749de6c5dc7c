"""What a user calls: run a search, export or finetune a member, make the report."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from apqkit.config import Config, load_config, validate_model
from apqkit.cost import native_space
from apqkit.data import load_splits
from apqkit.errors import ConfigError, RunError
from apqkit.front import ParetoSet
from apqkit.pipeline.checks import check_machine, check_names
from apqkit.pipeline.context import RunContext, flattened, load_plugins
from apqkit.pipeline.cost_stage import check_goals
from apqkit.pipeline.export_stage import export_member
from apqkit.pipeline.finetune import finetune_member
from apqkit.pipeline.search_stage import read_pareto_set
from apqkit.pipeline.stages import STAGES, Stage, stage_inputs, with_followers
from apqkit.quant.qdq import Carrier, check_carrier
from apqkit.registry import did_you_mean
from apqkit.run import RunDirectory, write_atomically, write_json
from apqkit.spaces import build_space, space_options
from apqkit.types import Progress, SilentProgress

__all__ = [
    "STAGES",
    "config_toml",
    "export_pick",
    "finetune_pick",
    "make_report",
    "read_front",
    "resolved",
    "run_search",
    "run_stages",
    "unset_keys",
]

_RESOLVED = "resolved.json"
_CONFIG = "config.toml"


def run_search(
    config: Config | str | Path | Mapping[str, Any] = "digits",
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    redo: str | None = None,
    progress: Progress | None = None,
) -> ParetoSet:
    """Runs a joint search from data to report, or goes on with one, and returns the front.

    What is done already is not done again: a killed run goes on where it was.

    Args:
        config: A configuration, the name of one that ships, the path of a TOML file, or nested
            mappings.
        out: The run directory; by default ``runs/NAME``.
        overrides: ``key=value`` texts with dotted keys.
        redo: A stage to make again, with all that build on it.
        progress: Shows how far it is.

    Raises:
        ApqkitError: Anything that a user can mend; the text is one line.
    """
    settings, path = _settings(config, out, overrides)
    run_stages(settings, path, redo=redo, progress=progress)
    return read_front(path)


def run_stages(
    config: Config,
    path: Path,
    *,
    until: str | None = None,
    redo: str | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Runs the stages of a run up to one of them; returns the names of those that were run now.

    Args:
        config: The configuration.
        path: The run directory.
        until: Last stage; None for all.
        redo: A stage to make again, with all that build on it.
        progress: Shows how far it is.

    Raises:
        ApqkitError: Anything that a user can mend; the text is one line.
    """
    names = [stage.name for stage in STAGES]
    wanted = STAGES[: _index(names, until, "--until") + 1] if until else STAGES
    forgotten = with_followers(names[_index(names, redo, "--redo")]) if redo else []
    config = resolved(config)
    check_names(config)
    splits = load_splits(config.data, config.seed)
    space = build_space(config.space, splits.image_shape, splits.classes)
    with _opened(config, path, create=True, progress=progress) as context:
        context.splits, context.space = splits, space
        done = _done_stages(context, forgotten)
        check_machine(config, {stage.name for stage in wanted} - done)
        if "cost" in done and "search" not in done:
            check_goals(context)
        context.run.redo(forgotten)
        _write_config(context)
        ran = []
        for stage in wanted:
            if stage.name in done:
                context.say(f"stage {stage.name} is done already")
                continue
            _run(context, stage)
            ran.append(stage.name)
            if stage.name == "cost":
                check_goals(context)
        return ran


def read_front(path: str | Path) -> ParetoSet:
    """Returns the front of a finished search.

    Raises:
        RunError: The directory holds no finished search.
    """
    with _reopened(Path(path), None) as context:
        return _front(context)


def export_pick(
    path: str | Path,
    pick: str,
    *,
    carrier: Carrier | None = None,
    progress: Progress | None = None,
) -> Path:
    """Exports a member of the front as ONNX and checks it; returns the model's path.

    Args:
        path: The run directory.
        pick: A member's key, or "knee".
        carrier: ``int8`` for speed or ``packed`` for a small file with 2- and 4-bit weights, whose
            name says so; None takes what the run's configuration says.
        progress: Shows how far it is.
    """
    with _reopened(Path(path), progress) as context:
        chosen = carrier or context.config.export.carrier
        check_carrier(chosen)
        member = _front(context).pick(pick)
        model, _ = export_member(context, member, context.run.path / "export", chosen)
        context.run.refresh("export")
        return model


def finetune_pick(
    path: str | Path,
    pick: str,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a member of the front with its formats; returns accuracies before and after.

    The weights, the exported model and the result go into ``finetune/KEY/``.

    Args:
        path: The run directory.
        pick: A member's key, or "knee".
        overrides: ``finetune.KEY=VALUE`` texts; the rest of the configuration is the run's.
        progress: Shows how far it is.
    """
    for each in overrides:
        if not each.startswith("finetune."):
            raise ConfigError(f"a finished run takes --set finetune.KEY=VALUE only, got {each!r}")
    with _reopened(Path(path), progress) as context:
        member = _front(context).pick(pick)
        tree = context.config.model_dump(mode="json", exclude_none=True)
        context.config = load_config(tree, overrides)
        return finetune_member(context, member)


def make_report(path: str | Path, *, progress: Progress | None = None) -> Path:
    """Writes the report of a finished search anew; returns the page's path."""
    from apqkit.pipeline.report_stage import run_report_stage

    with _reopened(Path(path), progress) as context:
        _front(context)
        run_report_stage(context, context.run.path / "report")
        context.run.refresh("report")
        return context.run.path / "report" / "index.html"


def resolved(config: Config) -> Config:
    """Returns the configuration with the options of its space filled in, and formats confined.

    Raises:
        UnknownNameError: No space of that name.
        ConfigError: An option is wrong.
        CostError: With ``cost.native_only``: nothing of what is offered is native to the device.
    """
    load_plugins(config)
    options = space_options(config.space).model_dump()
    space = config.space.model_copy(update={"options": options})
    if config.cost.native_only:
        space = native_space(space, config.cost.device)
    return config.model_copy(update={"space": space})


def config_toml(config: Config) -> str:
    """Returns a configuration as TOML that :func:`apqkit.config.load_config` reads back."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def unset_keys(config: Config) -> list[str]:
    """Returns the dotted names of keys that have no value."""
    tree = flattened(config.model_dump(mode="json"), "")
    return [name for name, value in tree.items() if value is None]


def _settings(
    config: Config | str | Path | Mapping[str, Any],
    out: str | Path | None,
    overrides: Sequence[str],
) -> tuple[Config, Path]:
    if isinstance(config, Config):
        if overrides:
            raise ConfigError("overrides need a configuration by name, path or mappings")
        settings, name = config, config.data.name
    else:
        settings = load_config(config, overrides)
        name = Path(config).stem if isinstance(config, str | Path) else settings.data.name
    return settings, Path(out) if out is not None else Path("runs") / name


def _index(names: list[str], name: str, flag: str) -> int:
    if name not in names:
        hint = did_you_mean(name, names)
        raise ConfigError(f"{flag} {name!r} is no stage{hint}; there are: {', '.join(names)}")
    return names.index(name)


def _run(context: RunContext, stage: Stage) -> None:
    folder = context.run.begin(stage.name, stage_inputs(context, stage))
    context.run.log(f"stage {stage.name} begins")
    stage.run(context, folder)
    context.run.finish(stage.name)
    context.run.log(f"stage {stage.name} done")


@contextmanager
def _opened(
    config: Config, path: Path, *, create: bool, progress: Progress | None
) -> Iterator[RunContext]:
    _more_compiled_kernels()
    with RunDirectory.opened(path, create=create) as run, _torch_threads(config.threads):
        yield RunContext(config, run, progress or SilentProgress())


@contextmanager
def _reopened(path: Path, progress: Progress | None) -> Iterator[RunContext]:
    """Opens a run with the configuration that it was made with."""
    file = path / _RESOLVED
    damaged = RunError(f"{file} is damaged; run the search again with the same --out")
    if not file.is_file():
        raise RunError(f"{path} holds no run of apqkit: it has no {_RESOLVED}")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        config = validate_model(Config, _without_none(dict(tree)))
    except (ValueError, TypeError, ConfigError):
        raise damaged from None
    load_plugins(config)
    with _opened(config, path, create=False, progress=progress) as context:
        settings = flattened(config.model_dump(mode="json"), "")
        for name, record in context.run.stages.items():
            if any(settings.get(key, value) != value for key, value in record.inputs.items()):
                raise damaged
            if name != "report":  # which is written anew and never read
                context.run.is_done(name, record.inputs)
        yield context


def _front(context: RunContext) -> ParetoSet:
    record = context.run.stages.get("search")
    if record is None or record.status != "done":
        raise RunError(
            f"{context.run.path} holds no finished search: run apqkit run-search with "
            f"--out {context.run.path} first"
        )
    return read_pareto_set(context)


def _done_stages(context: RunContext, forgotten: Sequence[str]) -> set[str]:
    """Returns the stages that need no work; refuses changes in all that are not made again."""
    kept = [each for each in STAGES if each.name in context.run.stages]
    return {
        stage.name
        for stage in kept
        if stage.name not in forgotten
        and context.run.is_done(stage.name, stage_inputs(context, stage))
    }


def _write_config(context: RunContext) -> None:
    """Keeps the configuration that the run was begun with."""
    run = context.run
    for name, (before, now) in run.changed_versions().items():
        context.say(f"this run was begun with {name} {before}, now {now}: figures may differ")
    write_atomically(run.path / _CONFIG, config_toml(context.config))
    write_json(run.path / _RESOLVED, context.config.model_dump(mode="json"))
    run.describe({"seed": context.config.seed, "device": context.config.cost.device})


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_without_none(each) for each in value]
    return value


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _more_compiled_kernels() -> None:
    """Lets torch keep more compiled kernels: a supernet runs thousands of shapes."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

"""The run's configuration: TOML in, typed and validated models out.

Shapes and ranges are checked here; names (formats, spaces, data sets, ...) are resolved by the
pipeline, so that plug-ins can bring their own.
"""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from apqkit.errors import ConfigError
from apqkit.registry import did_you_mean

__all__ = [
    "Config",
    "Corruptions",
    "CostConfig",
    "DataConfig",
    "ExportConfig",
    "FinetuneConfig",
    "PredictorConfig",
    "SamplesConfig",
    "SearchConfig",
    "SpaceConfig",
    "SupernetConfig",
    "TransferConfig",
    "load_config",
    "shipped_configs",
    "tree_of",
    "validate_model",
]

Model = TypeVar("Model", bound=BaseModel)


def _share(value: object) -> float | int:
    if isinstance(value, float) and 0.0 < value < 1.0:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise PydanticCustomError("share", "a fraction between 0 and 1 or a number of at least 1")


def _sample_count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and (value == 0 or value >= 8):
        return value
    raise PydanticCustomError("sample_count", "0 or an integer of at least 8")


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
SampleCount = Annotated[int, PlainValidator(_sample_count)]
Share = Annotated[float | int, PlainValidator(_share)]
Direction = Literal["max", "min"]


def _default_objectives() -> dict[str, Direction]:
    return {"accuracy": "max", "latency_ms": "min"}


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )


class Corruptions(Section):
    """Fixed, seeded, corrupted copies of every validation and test image."""

    shift: Count = 1  # largest shift in pixels, each axis
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2  # sd of Gaussian noise, pixels in 0..1
    copies: Count = 2  # corrupted copies an image; 0 turns corruption off


class DataConfig(Section):
    """Which images, how they are split, and how the training images are varied."""

    name: str = "digits"
    path: str | None = None  # a file for npz and fashion-mnist, a directory for folder
    validation: Share = 0.25  # share or number of training images kept back
    test: Share = 0.25  # the same for testing, where the data bring no test images
    limit: Positive | None = None  # at most so many training images (quick runs)
    image_size: Positive | None = None  # folder: side length that images are resized to
    corruptions: Corruptions | None = None
    augment_shift: Count = 1  # training images move by up to so many pixels, each axis
    augment_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # largest sd of added noise
    augment_flip: bool = False  # mirror half of the training images left to right


class SpaceConfig(Section):
    """The search space; ``options`` belong to the space and are checked by it."""

    name: str = "mobilenet"
    weight_formats: Annotated[tuple[str, ...], Field(min_length=1)] = ("int4", "int8")
    activation_formats: Annotated[tuple[str, ...], Field(min_length=1)] = ("int4", "int8")
    first_last_formats: Annotated[tuple[str, ...], Field(min_length=1)] = ("int8",)
    options: dict[str, Any] = Field(default_factory=dict)


class SupernetConfig(Section):
    """How the supernet is trained: an fp32 phase, then a phase with random formats."""

    epochs: Positive = 60
    quantized_epochs: Count = 20
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Rate = 5e-3
    quantized_learning_rate: Rate = 2e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    random_subnets: Positive = 2  # beside the largest and the smallest, each step
    smallest_every: Positive = 1  # the smallest subnet joins every so many steps
    warmup_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # steps with the largest alone
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    clip_norm: Annotated[float, Field(gt=0.0)] = 2.0
    torch_device: str = "cpu"  # or cuda, where there is one


class SamplesConfig(Section):
    """How many subnets are measured before the search, and on how many calibration images.

    Without any, proxies alone propose the candidates of the first round.
    """

    fp32: SampleCount = 200
    mixed: SampleCount = 100
    calibration_images: Positive = 256
    final_calibration_images: Positive = 512  # for the members of the front


class PredictorConfig(Section):
    """Which accuracy predictor, and which proxies stand beside it.

    As columns, those proxies are read that lower the error out of fold; by ranks, all of them have
    a say like the predictor's, measured samples or not.
    """

    name: str = "auto"
    proxies: tuple[str, ...] = ()
    combine: Literal["columns", "ranks"] = "columns"
    coverage: Fraction = 0.9  # of the prediction intervals


class TransferConfig(Section):
    """How the predictor of mixed accuracy builds on the fp32 one."""

    mode: str = "auto"  # auto, residual, feature, warm, multitask


class CostConfig(Section):
    """Where latency comes from."""

    device: str = "host"  # a simulator, "host", or a table: a CSV or a folder that was measured
    batch: Positive = 1
    native_only: bool = False  # offer only formats that the device computes natively
    budget_s: Annotated[float, Field(gt=0.0)] = 180.0  # for timing layers on this machine


class SearchConfig(Section):
    """What is searched for, under which limits, and how many candidates are measured."""

    strategy: str = "evolution"
    objectives: Annotated[dict[str, Direction], Field(min_length=1)] = Field(
        default_factory=_default_objectives
    )
    limits: dict[str, float] = Field(default_factory=dict)
    verify: Annotated[int, Field(ge=4)] = 100  # candidates measured on the supernet
    rounds: Positive = 5  # the predictor is refitted after each
    population: Annotated[int, Field(ge=8)] = 200
    generations: Positive = 60
    storage: str | None = None  # an Optuna storage URL instead of the journal in the run


class FinetuneConfig(Section):
    """How ``apqkit finetune`` trains a picked candidate with its formats."""

    epochs: Positive = 20
    learning_rate: Rate = 1e-3
    # Statistics of batch norms: those of each batch; those of calibration, which stand still; or
    # these folded into the weights, which train alone then.
    batch_norm: Literal["batch", "freeze", "fold"] = "batch"


class ExportConfig(Section):
    """Which members of the front are exported, and how weights under 8 bits are stored."""

    picks: tuple[str, ...] = ("knee",)  # keys, or "knee"
    carrier: Literal["int8", "packed"] = "int8"  # fast, or small


class Config(Section):
    """The whole configuration of a run."""

    seed: Seed = 0
    threads: Positive = 2  # of torch; part of what makes a run repeatable
    plugins: tuple[str, ...] = ()  # modules imported first; they add to the plug-in tables
    data: DataConfig = Field(default_factory=DataConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)
    supernet: SupernetConfig = Field(default_factory=SupernetConfig)
    samples: SamplesConfig = Field(default_factory=SamplesConfig)
    predictor: PredictorConfig = Field(default_factory=PredictorConfig)
    transfer: TransferConfig = Field(default_factory=TransferConfig)
    cost: CostConfig = Field(default_factory=CostConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)


def shipped_configs() -> dict[str, str]:
    """Returns the TOML text of every configuration that ships, by name."""
    folder = resources.files("apqkit").joinpath("configs")
    files = sorted((each for each in folder.iterdir()), key=lambda each: each.name)
    return {
        each.name.removesuffix(".toml"): each.read_text(encoding="utf-8")
        for each in files
        if each.name.endswith(".toml")
    }


def load_config(
    source: str | Path | Mapping[str, Any] = "digits", overrides: Sequence[str] = ()
) -> Config:
    """Reads and validates a configuration.

    Args:
        source: The name of a shipped configuration, the path of a TOML file, or nested mappings.
            A key ``base`` names another configuration, whose keys hold where none is given.
        overrides: ``key=value`` texts with dotted keys and values in TOML syntax; a value that is
            no TOML is taken as a string.

    Raises:
        ConfigError: No such configuration, broken TOML, unknown key, wrong type, out of range.
    """
    tree = dict(source) if isinstance(source, Mapping) else _read_toml(str(source))
    tree = _on_base(tree)
    for override in overrides:
        tree = _override(tree, override)
    return validate_model(Config, tree)


def tree_of(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns ``key=value`` texts with dotted keys and TOML values as nested mappings.

    >>> tree_of(["a.b=1", "a.c=x"])
    {'a': {'b': 1, 'c': 'x'}}

    Raises:
        ConfigError: A text is no ``key=value``.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        tree = _override(tree, override)
    return tree


def validate_model(model: type[Model], tree: Mapping[str, Any], prefix: str = "") -> Model:
    """Validates nested mappings; the first fault becomes one line with a dotted path.

    Args:
        model: The pydantic model to fill.
        tree: Nested mappings, as read from TOML or JSON.
        prefix: Dotted path of ``tree`` inside the configuration, for the message.

    Raises:
        ConfigError: A key is unknown, a type is wrong or a value is out of range.
    """
    try:
        return model.model_validate(_lists_to_tuples(dict(tree)))
    except ValidationError as fault:
        first = fault.errors()[0]
        raise ConfigError(_explain(model, dict(first), prefix)) from None


def _read_toml(source: str) -> dict[str, Any]:
    shipped = shipped_configs()
    path = Path(source)
    if source in shipped:
        return tomllib.loads(shipped[source])
    if not path.is_file():
        hint = did_you_mean(source, shipped)
        raise ConfigError(
            f"no configuration {source!r}{hint}: neither a file nor one of {', '.join(shipped)}"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path} is not valid TOML: {fault}") from None
    except OSError as fault:
        raise ConfigError(f"{path} cannot be read: {fault.strerror}") from None


def _on_base(tree: dict[str, Any], *, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns a configuration with the keys of its ``base``, and of that one's, filled in."""
    if "base" not in tree:
        return tree
    base = tree["base"]
    if not isinstance(base, str):
        raise ConfigError(f"base must be the name or path of a configuration, got {base!r}")
    if base in seen:
        raise ConfigError(f"base {base!r} builds on itself")
    own = {name: value for name, value in tree.items() if name != "base"}
    return _merged(_on_base(_read_toml(base), seen=(*seen, base)), own)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested mappings laid over others; objectives and limits replace, not add."""
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        both = isinstance(below[name], Mapping) and isinstance(above[name], Mapping)
        if both and name not in ("objectives", "limits"):
            merged[name] = _merged(below[name], above[name])
    return merged


def _override(tree: dict[str, Any], text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    keys = [part.strip() for part in key.split(".")]
    if not separator or not all(keys):
        raise ConfigError(f"--set takes key=value with a dotted key, got {text!r}")
    return _set_nested(tree, keys, _toml_value(value.strip()), key.strip())


def _toml_value(text: str) -> Any:
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tree["value"] if len(tree) == 1 else text


def _set_nested(tree: dict[str, Any], keys: list[str], value: Any, path: str) -> dict[str, Any]:
    head, *rest = keys
    if not rest:
        return {**tree, head: value}
    inner = tree.get(head, {})
    if not isinstance(inner, Mapping):
        raise ConfigError(f"--set {path}: {head!r} is a value, not a table of keys")
    return {**tree, head: _set_nested(dict(inner), rest, value, path)}


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists_to_tuples(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_lists_to_tuples(inner) for inner in value)
    return value


_ALLOWED = {
    "tuple_type": "a list",
    "dict_type": "a table of keys",
    "model_type": "a table of keys",
    "too_short": "given at least one entry",
}
"""What is allowed, where pydantic would say it in words of Python; by type of fault."""


def _explain(model: type[BaseModel], fault: dict[str, Any], prefix: str) -> str:
    location = [str(part) for part in fault["loc"]]
    path = ".".join([prefix, *location] if prefix else location)
    if fault["type"] == "extra_forbidden":
        known = _field_names(model, location[:-1])
        hint = did_you_mean(location[-1], known, prefix=path.removesuffix(location[-1]))
        return f"unknown key {path!r}{hint}; allowed: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"{path} is required"
    value = fault["input"]
    got = f"{type(value).__name__} {value!r}"
    if isinstance(value, tuple):  # as TOML and JSON say it
        got = f"list {list(value)!r}"
    if fault["type"] == "invalid_key" or location[-1] == "[key]":
        return f"keys of the configuration must be texts, got {got}"
    allowed = _ALLOWED.get(fault["type"]) or str(fault["msg"]).removeprefix("Input should be ")
    return f"{path} must be {allowed.removeprefix('a valid ')}, got {got}"


def _field_names(model: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        for option in getattr(inner, "__args__", (inner,)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                model = option
    return list(model.model_fields)

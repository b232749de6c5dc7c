import json
import tomllib
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from apqkit.config import (
    Config,
    DataConfig,
    Section,
    load_config,
    shipped_configs,
    validate_model,
)
from apqkit.errors import ConfigError
from apqkit.pipeline import config_toml, resolved

SHIPPED = tuple(shipped_configs())
SECTIONS = (
    "seed, threads, plugins, data, space, supernet, samples, predictor, transfer, cost, search, "
    "finetune, export"
)
SHARE = "a fraction between 0 and 1 or a number of at least 1"


def message(source, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def test_nothing_given_means_the_defaults():
    assert load_config({}) == Config()


def test_the_digits_are_loaded_by_default():
    assert load_config() == load_config("digits")
    assert {"digits", "smoke", "fashion-mnist"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_loads_and_says_what_it_is(name):
    text = shipped_configs()[name]
    assert text.startswith("# ")
    assert load_config(name) == load_config(tomllib.loads(text))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("fill", [lambda config: config, resolved], ids=["given", "resolved"])
def test_a_configuration_survives_toml(tmp_path, name, fill):
    config = fill(load_config(name))
    path = tmp_path / "config.toml"
    path.write_text(config_toml(config), encoding="utf-8")
    assert resolved(load_config(path)) == resolved(config)
    assert load_config(str(path)) == load_config(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_configuration_survives_json(name):
    tree = resolved(load_config(name)).model_dump(mode="json")
    assert json.loads(json.dumps(tree)) == tree
    assert validate_model(Config, tree).model_dump(mode="json") == tree


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"))


@settings(max_examples=25, deadline=None)
@given(
    path=st.none() | texts,
    limits=st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), finite),
    share=st.floats(0, 1, exclude_min=True, exclude_max=True) | st.integers(1, 10**6),
    proxies=st.lists(texts),
)
def test_any_value_survives_toml(path, limits, share, proxies):
    tree = {
        "data": {"validation": share} | ({} if path is None else {"path": path}),
        "search": {"limits": limits},
        "predictor": {"proxies": proxies},
    }
    config = load_config(tree)
    assert config.search.limits == limits
    assert config.predictor.proxies == tuple(proxies)
    assert type(config.data.validation) is type(share)
    again = load_config(tomllib.loads(config_toml(config)))
    assert again == config
    assert again.model_dump(mode="json") == config.model_dump(mode="json")


def test_a_share_and_a_number_of_images_are_told_apart():
    config = load_config({"data": {"validation": 0.5, "test": 1}})
    assert (config.data.validation, config.data.test) == (0.5, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert config.model_dump(mode="json")["data"]["test"] == 1


@pytest.mark.parametrize("value", ["0", "0.0", "1.0", "1.5", "-3", "-0.5", "nan", "true", '"x"'])
@pytest.mark.parametrize("key", ["validation", "test"])
def test_what_is_neither_a_share_nor_a_number_is_refused(key, value):
    kind = type(tomllib.loads(f"v = {value}")["v"]).__name__
    shown = {"true": "True", '"x"': "'x'"}.get(value, value)
    assert message({}, [f"data.{key}={value}"]) == (
        f"data.{key} must be {SHARE}, got {kind} {shown}"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1.0", "seed must be integer, got float 1.0"),
        ("seed=true", "seed must be integer, got bool True"),
        ("seed=-1", "seed must be greater than or equal to 0, got int -1"),
        ("seed=4294967296", "seed must be less than 4294967296, got int 4294967296"),
        ("data.name=3", "data.name must be string, got int 3"),
        ("data.augment_flip=1", "data.augment_flip must be boolean, got int 1"),
        (
            "data.path=2024-01-01",
            "data.path must be string, got date datetime.date(2024, 1, 1)",
        ),
        ("data=3", "data must be a table of keys, got int 3"),
        ("data.corruptions=3", "data.corruptions must be a table of keys, got int 3"),
        (
            "data.corruptions.noise=3",
            "data.corruptions.noise must be less than or equal to 1, got int 3",
        ),
        ("samples.fp32=7", "samples.fp32 must be 0 or an integer of at least 8, got int 7"),
        (
            "supernet.learning_rate=0",
            "supernet.learning_rate must be greater than 0, got int 0",
        ),
        ("supernet.warmup_share=1", "supernet.warmup_share must be less than 1, got int 1"),
        ("supernet.clip_norm=inf", "supernet.clip_norm must be a finite number, got float inf"),
        ("supernet.epochs=x", "supernet.epochs must be integer, got str 'x'"),
        (
            "search.limits.size_kib=nan",
            "search.limits.size_kib must be a finite number, got float nan",
        ),
        ("search.limits.size_kib=x", "search.limits.size_kib must be number, got str 'x'"),
        (
            "search.objectives.accuracy=up",
            "search.objectives.accuracy must be 'max' or 'min', got str 'up'",
        ),
        (
            "search.objectives={}",
            "search.objectives must be given at least one entry, got dict {}",
        ),
        ("space.options=[1]", "space.options must be a table of keys, got list [1]"),
        (
            "space.weight_formats=[]",
            "space.weight_formats must be given at least one entry, got list []",
        ),
        ("space.weight_formats=int4", "space.weight_formats must be a list, got str 'int4'"),
        ('space.weight_formats=["int4", 8]', "space.weight_formats.1 must be string, got int 8"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(override, expected):
    assert message({}, [override]) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sede=3", f"unknown key 'sede' (did you mean 'seed'?); allowed: {SECTIONS}"),
        ("zzz.x=3", f"unknown key 'zzz'; allowed: {SECTIONS}"),
        (
            "finetune.epoch=3",
            "unknown key 'finetune.epoch' (did you mean 'finetune.epochs'?); "
            "allowed: epochs, learning_rate, batch_norm",
        ),
        (
            "data.corruptions.nois=0.5",
            "unknown key 'data.corruptions.nois' (did you mean 'data.corruptions.noise'?); "
            "allowed: shift, noise, copies",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_those_allowed(override, expected):
    assert message({}, [override]) == expected


class Stage(Section):
    width: int
    kernels: tuple[int, ...] = (3,)


class Options(Section):
    stages: tuple[Stage, ...] = ()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {"stages": [{"width": 4}, {"widht": 4, "width": 8}]},
            "unknown key 'space.options.stages.1.widht' (did you mean "
            "'space.options.stages.1.width'?); allowed: width, kernels",
        ),
        ({"stages": [{}]}, "space.options.stages.0.width is required"),
        (
            {"stages": [{"width": 4, "kernels": [3, "5"]}]},
            "space.options.stages.0.kernels.1 must be integer, got str '5'",
        ),
        ({"stages": {"width": 4}}, "space.options.stages must be a list, got dict {'width': 4}"),
        ({"stage": 1}, "unknown key 'space.options.stage' (did you mean 'space.options.stages'?); "
         "allowed: stages"),
    ],
)  # fmt: skip
def test_faults_inside_lists_of_tables_carry_the_whole_path(tree, expected):
    with pytest.raises(ConfigError) as caught:
        validate_model(Options, tree, "space.options")
    assert str(caught.value) == expected


def test_a_model_without_prefix_starts_at_its_own_keys():
    with pytest.raises(ConfigError) as caught:
        validate_model(DataConfig, {"limit": 0})
    assert str(caught.value) == "limit must be greater than or equal to 1, got int 0"


@pytest.mark.parametrize("tree", [{1: 2}, {"data": {1: 2}}, {"space": {"options": {1: 2}}}])
def test_keys_that_are_no_texts_are_refused(tree):
    assert message(tree) == "keys of the configuration must be texts, got int 1"


def test_one_fault_is_told_at_a_time():
    text = message({}, ["threads=0", "seed=-1"])
    assert text == "seed must be greater than or equal to 0, got int -1"


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("seed=3", ("seed",), 3),
        (" seed = 3 ", ("seed",), 3),
        ("data.augment_noise=1e-2", ("data", "augment_noise"), 0.01),
        ("data.augment_flip=true", ("data", "augment_flip"), True),
        ("data.name=npz", ("data", "name"), "npz"),
        ('data.name="npz"', ("data", "name"), "npz"),
        ("data.path=/a b/c=d.npz", ("data", "path"), "/a b/c=d.npz"),
        ("data.path=C:\\x", ("data", "path"), "C:\\x"),
        ('data.path="2024-01-01"', ("data", "path"), "2024-01-01"),
        ("data.path=", ("data", "path"), ""),
        ('data.path="x', ("data", "path"), '"x'),
        ("data.path=1\nb = 2", ("data", "path"), "1\nb = 2"),
        ("data . validation = 100", ("data", "validation"), 100),
        ('space.weight_formats=["int2"]', ("space", "weight_formats"), ("int2",)),
        ("search.limits={size_kib = 6}", ("search", "limits"), {"size_kib": 6.0}),
        ("search.limits.size_kib=6", ("search", "limits", "size_kib"), 6.0),
        ("data.corruptions.copies=3", ("data", "corruptions", "copies"), 3),
        ("space.options.a.b=1", ("space", "options", "a", "b"), 1),
    ],
)
def test_set_takes_dotted_keys_and_values_of_toml(override, path, expected):
    value = load_config({}, [override])
    for key in path:
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    assert value == expected
    assert type(value) is type(expected)


def test_set_changes_one_key_and_leaves_its_neighbours():
    before = load_config("smoke")
    after = load_config("smoke", ["search.limits.bops=1000", "samples.fp32=9", "samples.fp32=10"])
    assert after.search.limits == {**before.search.limits, "bops": 1000.0}
    assert after.samples == before.samples.model_copy(update={"fp32": 10})
    assert after.data == before.data


def test_set_leaves_the_mappings_it_was_given_alone():
    tree = {"data": {"name": "npz"}}
    assert load_config(tree, ["data.name=folder"]).data.name == "folder"
    assert tree == {"data": {"name": "npz"}}


@pytest.mark.parametrize("text", ["seed", "", "=3", "a..b=3", ".seed=3", " = "])
def test_set_needs_a_key_and_a_value(text):
    assert message({}, [text]) == f"--set takes key=value with a dotted key, got {text!r}"


def test_set_cannot_reach_into_a_value():
    assert message("digits", ["space.options.stages.0.width=4"]) == (
        "--set space.options.stages.0.width: 'stages' is a value, not a table of keys"
    )
    assert message({"seed": 1}, ["seed.x=3"]) == (
        "--set seed.x: 'seed' is a value, not a table of keys"
    )


@pytest.mark.parametrize(("source", "hint"), [("digit", " (did you mean 'digits'?)"), ("", "")])
def test_a_configuration_that_is_not_there_lists_those_that_are(source, hint):
    assert message(source) == (
        f"no configuration {source!r}{hint}: neither a file nor one of {', '.join(SHIPPED)}"
    )


def test_a_directory_is_no_configuration(tmp_path):
    assert message(tmp_path) == (
        f"no configuration {str(tmp_path)!r}: neither a file nor one of {', '.join(SHIPPED)}"
    )


def test_broken_toml_is_refused_with_the_place(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("seed = 1\nthreads = \n", encoding="utf-8")
    assert message(path) == f"{path} is not valid TOML: Invalid value (at line 2, column 11)"


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\x00")
    assert message(path) == (
        f"{path} is not valid TOML: 'utf-8' codec can't decode byte 0xff in position 0: "
        f"invalid start byte"
    )


def test_a_file_that_cannot_be_read_is_refused():
    assert message("/proc/self/mem") == "/proc/self/mem cannot be read: Input/output error"


def test_a_shipped_name_wins_over_a_file_and_a_path_over_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("seed = 7\n", encoding="utf-8")
    assert load_config("digits").seed == 0
    assert load_config("./digits").seed == 7


def test_a_configuration_cannot_be_changed():
    config = load_config({})
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.data.name = "npz"


def test_a_configuration_can_build_on_another(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "digits"\nseed = 3\n[data]\nname = "npz"\n[search.limits]\nbops = 1e6\n'
    )
    config, digits = load_config(path), load_config("digits")
    assert (config.seed, config.data.name) == (3, "npz")
    assert config.data.corruptions == digits.data.corruptions
    assert config.search.limits == {"bops": 1e6}  # limits replace, they do not add up
    assert config.search.objectives == digits.search.objectives
    assert config.supernet == digits.supernet
    above = tmp_path / "above.toml"
    above.write_text(f'base = "{path}"\nseed = 4\n')
    assert load_config(above).data == config.data
    assert load_config(above, ["seed=5"]).seed == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = 3", "base must be the name or path of a configuration, got 3"),
        (
            'base = "digit"',
            "no configuration 'digit' (did you mean 'digits'?): neither a file nor one of "
            "digits, fashion-mnist, smoke",
        ),
    ],
)
def test_a_wrong_base_is_named(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == message


def test_a_configuration_that_builds_on_itself_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'base = "{path}"')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"base '{path}' builds on itself"

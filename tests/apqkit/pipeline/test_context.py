import hashlib
import sys

import numpy as np
import pytest

from apqkit.config import load_config
from apqkit.cost import NetworkCost
from apqkit.errors import ConfigError, RunError
from apqkit.formats import FORMATS
from apqkit.pipeline import run_stages
from apqkit.pipeline.context import RunContext, candidate_key, flattened, load_plugins
from apqkit.run import RunDirectory
from apqkit.spaces.draws import draw_uniform
from apqkit.types import SilentProgress


def test_keys_are_short_and_do_not_depend_on_the_order_of_dims():
    key = candidate_key({"width.s0": 8, "a_format.head": "int4"})
    assert key == candidate_key({"a_format.head": "int4", "width.s0": 8})
    text = b'{"a_format.head": "int4", "width.s0": 8}'
    assert key == hashlib.sha256(text).hexdigest()[:8]
    assert key != candidate_key({"width.s0": 4, "a_format.head": "int4"})


def test_nested_settings_become_dotted_names():
    tree = {"a": {"b": 1, "c": {"d": [2]}, "empty": {}}, "e": None}
    assert flattened(tree, "") == {"a.b": 1, "a.c.d": [2], "a.empty": {}, "e": None}
    assert flattened({"b": 1}, "a") == {"a.b": 1}


def test_a_plug_in_adds_to_the_tables(tmp_path, monkeypatch):
    (tmp_path / "lab_formats.py").write_text(
        "from apqkit.formats import FORMATS\nFORMATS['lab4'] = FORMATS['int4']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    try:
        load_plugins(load_config("smoke", ['plugins=["lab_formats"]']))
        assert FORMATS["lab4"] is FORMATS["int4"]
    finally:
        FORMATS.pop("lab4", None)


def test_costs_are_those_of_the_device_and_of_the_network(context):
    picks = draw_uniform(context.space, 20, np.random.default_rng(0))
    costs = context.costs(picks)
    table = context.space.network(picks)
    assert tuple(costs) == context.metrics
    assert np.array_equal(costs["latency_ms"], context.device.cost(table)["latency_ms"])
    for name, values in NetworkCost().cost(table).items():
        assert np.array_equal(costs[name], values)


def test_members_of_the_front_get_more_calibration_images(context):
    few, many = context.calibration_images(), context.calibration_images(final=True)
    samples = context.config.samples
    assert (len(few), len(many)) == (samples.calibration_images, samples.final_calibration_images)
    assert np.array_equal(many[: len(few)], few)
    assert context.measurer(context.splits.validation).calibration_images.equal(few)


def test_the_supernet_is_the_trained_one(context):
    fresh = context.space.supernet(context.config.seed).state_dict()
    trained = context.supernet.state_dict()
    assert set(fresh) == set(trained)
    assert not all(fresh[name].equal(trained[name]) for name in fresh)


def test_a_run_without_weights_says_how_to_get_them(context, tmp_path):
    with RunDirectory.opened(tmp_path / "run", create=True) as run:
        empty = RunContext(context.config, run, SilentProgress())
        with pytest.raises(RunError) as caught:
            empty.supernet  # noqa: B018
    assert str(caught.value) == (
        f"{tmp_path}/run/supernet/weights.safetensors cannot be read: No such file or directory; "
        "use --redo supernet"
    )


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("weight_formats", 'space.weight_formats=["int4", "fp32"]'),
        ("activation_formats", 'space.activation_formats=["int4", "fp32"]'),
        ("first_last_formats", 'space.first_last_formats=["fp32"]'),
    ],
)
def test_a_format_that_the_device_cannot_run_is_refused(key, settings, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_stages(load_config("smoke", [settings]), tmp_path / "run", until="cost")
    assert str(caught.value) == (
        f"space.{key} offers 'fp32', which device 'bitfusion-2x4' cannot run: leave it out or "
        "choose another cost.device"
    )


def test_a_format_without_a_price_is_welcome_where_no_price_is_asked_for(tmp_path):
    config = load_config(
        "smoke",
        [
            'space.weight_formats=["int4", "fp32"]',
            'search.objectives={accuracy="max", size_kib="min"}',
        ],
    )
    assert run_stages(config, tmp_path / "run", until="cost") == ["cost"]


def test_what_is_said_is_logged_and_shown(context):
    class Listening(SilentProgress):
        def note(self, text):
            heard.append(text)

    heard = []
    RunContext(context.config, context.run, Listening()).say("halfway there")
    assert heard == ["halfway there"]
    assert (context.run.path / "log.txt").read_text().endswith(" halfway there\n")

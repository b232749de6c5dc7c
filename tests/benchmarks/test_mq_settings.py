import json

import mq_settings
import numpy as np
import pytest
import torch
from mq_networks import build_network, folded
from mq_settings import Trained, draw_settings, measured, quantizers
from torch import nn

from apqkit.config import load_config
from apqkit.data import RawImages
from apqkit.data.splits import make_splits
from apqkit.quant import LayerFormats, calibrate, prepare
from apqkit.quant.weights import quantize_weight
from apqkit.training.evaluate import evaluate
from apqkit.types import SilentProgress


def test_settings_differ_and_the_first_are_the_same_however_many_are_drawn():
    settings = draw_settings(300, 12, 0)
    assert len(np.unique(settings, axis=0)) == 300
    assert settings.min() == 0
    assert settings.max() == 3
    np.testing.assert_array_equal(draw_settings(50, 12, 0), settings[:50])
    assert not np.array_equal(draw_settings(50, 12, 1), settings[:50])


def test_every_setting_of_a_small_network_can_be_drawn():
    assert len(draw_settings(16, 2, 0)) == 16


def test_mean_bits_vary_more_than_those_of_layers_drawn_one_by_one():
    means = draw_settings(1000, 18, 0).mean(axis=1)
    alone = np.random.default_rng(0).integers(4, size=(1000, 18)).mean(axis=1)
    assert means.std() > 2 * alone.std()


def test_each_format_has_its_own_function():
    weight = torch.linspace(-1.0, 1.0, 64).view(4, 16)
    levels = [len(np.unique(each(weight)[0].numpy())) for each in quantizers().values()]
    assert levels == sorted(levels)
    assert levels[0] <= 3
    expected = quantize_weight(weight, mq_settings.format_named("int3"), mq_settings.SCHEME)
    assert torch.equal(quantizers()["int3"](weight), expected)


def test_a_line_that_was_cut_short_is_measured_again(tmp_path):
    path = tmp_path / "settings.jsonl"
    assert mq_settings._read_rows(path, "a") == {}
    row = {"setting": "0123", "correct": [1, 2]}
    whole = path.read_text(encoding="utf-8") + json.dumps(row) + "\n"
    path.write_text(whole + '{"setting": "01', encoding="utf-8")
    assert mq_settings._read_rows(path, "a") == {"0123": (1, 2)}
    assert path.read_text(encoding="utf-8") == whole


def test_a_header_that_was_cut_short_is_begun_anew(tmp_path):
    path = tmp_path / "settings.jsonl"
    path.write_text('{"netw', encoding="utf-8")
    assert mq_settings._read_rows(path, "a") == {}
    assert path.read_text(encoding="utf-8") == '{"network": "a"}\n'


def test_rows_of_another_network_are_refused(tmp_path):
    path = tmp_path / "settings.jsonl"
    mq_settings._read_rows(path, "a")
    with pytest.raises(SystemExit) as refusal:
        mq_settings._read_rows(path, "b")
    assert str(refusal.value) == (
        f"{path} is of other weights or images: delete it and build anew"
    )


@pytest.fixture(scope="module")
def untrained():
    rng = np.random.default_rng(0)
    raw = RawImages(
        rng.integers(256, size=(900, 1, 28, 28)).astype(np.uint8),
        np.arange(900) % 10,
        tuple("0123456789"),
    )
    config = load_config("fashion-mnist", ["data.validation=601"])
    splits = make_splits(raw, config.data, 0)
    return Trained("plain", folded(build_network("plain", 0)), splits, config)


def test_what_is_kept_from_setting_to_setting_changes_no_result(untrained):
    measurer = mq_settings._Measurer(untrained)
    settings = draw_settings(6, 12, 0)
    settings[3] = settings[2]
    settings[5, :9] = settings[4, :9]
    results = [measurer.correct(each.tolist()) for each in settings]
    for setting, result in zip(settings, results, strict=True):
        prepared = prepare(
            untrained.model,
            {
                name: LayerFormats(mq_settings.FORMATS[each], "int8")
                for name, each in zip(names_of_layers(untrained.model), setting, strict=True)
            },
        )
        images = untrained.splits.calibration_images(512).images()
        calibrate(prepared, images)
        ranges = prepare(untrained.model, LayerFormats("int8", "int8"))
        calibrate(ranges, images)
        for name in names_of_layers(untrained.model):
            weight = prepared.get_submodule(name).frozen_weight
            ranges.get_submodule(name).frozen_weight.copy_(weight)
        hits = evaluate(ranges, untrained.splits.validation)
        assert result == (int(hits[::2].sum()), int(hits[1::2].sum()))


def names_of_layers(model):
    kinds = nn.Conv2d | nn.Linear
    return [name for name, each in model.named_modules() if isinstance(each, kinds)]


def test_measuring_goes_on_where_it_stopped(untrained, tmp_path):
    settings, correct = measured(untrained, 4, 0, tmp_path, SilentProgress())
    path = tmp_path / "settings.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    marked = json.dumps({**json.loads(lines[1]), "correct": [1000, 1000]}) + "\n"
    path.write_text("".join([lines[0], marked, lines[2][:9]]), encoding="utf-8")
    again, resumed = measured(untrained, 5, 0, tmp_path, SilentProgress())
    np.testing.assert_array_equal(again[:4], settings)
    kept = resumed[:4, 0] == 1000
    assert kept.sum() == 1
    np.testing.assert_array_equal(resumed[:4][~kept], correct[~kept])
    assert len(path.read_text(encoding="utf-8").splitlines()) == 6

import json

import numpy as np
import pytest

from apqkit.front import read_evaluated
from apqkit.pipeline.report_stage import gather, run_report_stage


@pytest.fixture(scope="module")
def data(context):
    return gather(context)


def read(context, name):
    return json.loads((context.run.path / name).read_text())


def test_the_knee_is_shown_first_and_few_members_follow(context, data):
    keys = [view.key for view in data.views]
    members = data.front.members.keys
    assert keys[0] == data.front.knee_key
    assert len(keys) == len(set(keys)) == min(5, len(members))
    assert set(keys) <= set(members)
    assert {members[0], members[-1]} <= set(keys)


def test_layers_of_a_view_add_up_to_the_price_of_its_candidate(data):
    members = data.front.members
    for view in data.views:
        price = members.costs["latency_ms"][members.keys.index(view.key)]
        assert np.nansum(view.latency_ms) == pytest.approx(price, rel=1e-9)
        lengths = {len(each) for each in (view.layers, view.formats, view.shapes, view.latency_ms)}
        assert len(lengths) == 1


def test_layers_are_described_in_words(data):
    view = data.views[0]
    shapes = dict(zip(view.layers, view.shapes, strict=True))
    formats = dict(zip(view.layers, view.formats, strict=True))
    assert shapes["stem"] == "conv 3x3, 1 to 8, 8x8, stride 1"
    assert shapes["s0.b0.depthwise"].startswith("depthwise 3x3, ")
    assert shapes["classifier"] == "linear, 24 channels, 1x1"
    assert formats["stem"] == formats["classifier"] == "int8 x uint8"
    assert "input" not in view.layers


def test_formats_of_a_view_are_those_of_its_candidate(data):
    members = data.front.members
    for view in data.views:
        candidate = members.candidates[members.keys.index(view.key)]
        for layer, text in zip(view.layers, view.formats, strict=True):
            if f"w_format.{layer}" in candidate:
                assert text.partition(" x ")[0] == candidate[f"w_format.{layer}"]
            if f"a_format.{layer}" in candidate:
                source = text.rpartition(" x ")[2]
                assert source.removeprefix("u") == candidate[f"a_format.{layer}"]


def test_the_rest_is_what_the_stages_wrote(context, data):
    evaluated = read_evaluated(context.run.path / "search" / "evaluated.csv")
    assert data.evaluated.keys == evaluated.keys
    assert data.scores == read(context, "predictor/scores.json")
    assert list(data.learning_curve) == read(context, "predictor/learning_curve.json")
    assert data.budget == read(context, "predictor/budget.json")
    assert data.noise == read(context, "samples/noise.json")
    assert data.check == read(context, "supernet/check.json")
    for kind in ("fp32", "mixed"):
        lines = (context.run.path / "samples" / f"{kind}.jsonl").read_text().splitlines()
        assert data.samples[kind].tolist() == [json.loads(line)["accuracy"] for line in lines]
    knee = read(context, f"export/{data.front.knee_key}/check.json")
    assert list(data.exports) == [{"key": data.front.knee_key, **knee}]
    assert set(data.stage_seconds) >= {"cost", "supernet", "samples", "predictor", "search"}
    epochs = context.config.supernet.epochs + context.config.supernet.quantized_epochs
    assert len(data.history) == epochs


def test_each_measured_candidate_has_its_round(data):
    assert len(data.round_of) == len(data.evaluated)
    assert list(data.round_of) == sorted(data.round_of)
    for each in data.rounds:
        assert data.round_of.count(each["round"]) == each["measured"]


def test_facts_hold_seed_versions_machine_and_limits(context, data):
    manifest = read(context, "manifest.json")
    assert data.facts["seed"] == context.config.seed
    assert data.facts["limit size_kib"] == 6.0
    for part in ("versions", "machine"):
        assert manifest[part].items() <= data.facts.items()
    assert data.title == "apqkit: digits on bitfusion-2x4"


def test_notes_say_what_the_figures_rest_on(context, data):
    used = read(context, "predictor/proxies.json")["used"]
    assert list(data.notes) == [
        "latency_ms comes from simulated systolic array bitfusion-2x4: fp8 is priced as int8, "
        "fp4 as int4; depthwise layers run as dense groups; adds and pools are free; batch 1",
        "0 distinct layers were missing there and estimated",
        f"proxies that help the predictor: {', '.join(used) or 'none'}",
        "bit operations are MACs x weight bits x input bits, first and last layers included",
        "accuracy is over plain images and their fixed corrupted copies together; evaluated.csv "
        "and pareto.csv show both apart",
    ]


def test_the_stage_writes_the_page(context, tmp_path):
    run_report_stage(context, tmp_path)
    assert (tmp_path / "index.html").stat().st_size > 50_000
    assert len(list((tmp_path / "figures").iterdir())) == 10

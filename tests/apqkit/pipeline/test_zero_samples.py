import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from apqkit.formats import format_code
from apqkit.pipeline.zero_samples import SENSITIVITIES_FILE, ProxyRanking
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_hierarchical, draw_uniform
from apqkit.training.evaluate import calibrated_subnet
from predictors import mean_rank


@pytest.fixture(scope="module")
def sensitivities(context):
    path = context.run.path / "predictor" / SENSITIVITIES_FILE
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def some(context):
    return draw_uniform(context.space, 40, np.random.default_rng(5))


def probabilities(context, table):
    images = context.splits.calibration_images(128).images()
    logits = calibrated_subnet(context.supernet, table.layers(), images)(images)
    logits = logits.detach().double().numpy()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def largest(context):
    return context.space.network(largest_picks(context.space.dims)).in_fp32()


@pytest.mark.parametrize(
    ("kind", "column", "name"),
    [("weights", "weight_format", "int2"), ("inputs", "activation_format", "int4")],
)
def test_a_sensitivity_is_the_divergence_that_one_format_in_one_layer_causes(
    kind, column, name, context, sensitivities
):
    table = largest(context)
    layer = table.names[np.flatnonzero(table.weight_format[0] >= 0)[2]]
    codes = getattr(table, column).copy()
    codes[0, table.names.index(layer)] = format_code(name)
    before = probabilities(context, table)
    after = probabilities(context, replace(table, **{column: codes}))
    expected = np.mean([np.sum(p * np.log(p / q)) for p, q in zip(before, after, strict=True)])
    assert sensitivities[kind][layer][name] == pytest.approx(expected, rel=1e-4)


def test_every_layer_with_weights_has_every_offered_format(context, sensitivities):
    table, space = largest(context), context.config.space
    weighted = [table.names[row] for row in np.flatnonzero(table.weight_format[0] >= 0)]
    for kind, offered in (
        ("weights", space.weight_formats),
        ("inputs", space.activation_formats),
    ):
        assert list(sensitivities[kind]) == weighted
        for found in sensitivities[kind].values():
            assert set(found) == {*offered, *space.first_last_formats}
            assert min(found.values()) >= 0.0


def test_fewer_bits_in_all_layers_diverge_more(sensitivities):
    sums = {
        name: sum(each[name] for each in sensitivities["weights"].values())
        for name in ("int2", "int4", "int8")
    }
    assert sums["int2"] > sums["int4"] > sums["int8"]


def test_the_quick_score_is_the_mean_rank_of_multiplications_and_divergences(
    context, sensitivities, some
):
    ranking = ProxyRanking(context, ())

    def columns(picks):
        rows = []
        for candidate in range(len(picks)):
            layers = context.space.network(picks).layers(candidate)
            loss = 0.0
            for each in (layer for layer in layers if layer.weight_format is not None):
                loss += sensitivities["weights"][each.name][each.weight_format]
                loss += sensitivities["inputs"][each.name][each.activation_format]
            rows.append((np.log(context.costs(picks[[candidate]])["macs"][0]), -loss))
        return np.array(rows)

    ends = [smallest_picks(context.space.dims), largest_picks(context.space.dims)]
    drawn = draw_hierarchical(context.space, 1024, np.random.default_rng([0, 41]))
    drawn = np.concatenate([*ends, drawn])
    expected = mean_rank(columns(some), columns(drawn))
    np.testing.assert_allclose(ranking.quick_score(some), expected, atol=1e-9)
    assert np.array_equal(ranking.score(some), ranking.quick_score(some))


def test_formats_do_not_change_the_rank_of_an_architecture_in_fp32(context, some):
    ranking = ProxyRanking(context, ())
    macs = context.costs(some)["macs"]
    assert np.array_equal(np.argsort(ranking.fp32_score(some), kind="stable"),
                          np.argsort(macs, kind="stable"))  # fmt: skip


def test_named_proxies_have_a_say_each(context, some):
    ranking = ProxyRanking(context, ("snip", "sqnr"))
    macs_and_divergences = ProxyRanking(context, ())._columns(some[:6])
    proxies = context.proxies.columns(some[:6], ("snip", "sqnr"))
    expected = mean_rank(np.hstack([macs_and_divergences, proxies]))
    assert ranking.reads_proxies
    np.testing.assert_allclose(ranking.score(some[:6]), expected)


def test_ranks_are_no_accuracies(context, some):
    ranking = ProxyRanking(context, ())
    assert np.isnan(ranking.predicted(some)).all()
    assert np.isnan(ranking.half_width)


def test_a_run_without_samples_searches_by_proxies_first_and_learns_from_what_it_measures(
    tmp_path, run_apqkit
):
    out = tmp_path / "run"
    without = ("--set", "samples.fp32=0", "--set", "samples.mixed=0")
    done = run_apqkit("run-search", "smoke", "--out", out, *without)
    assert done.stdout.splitlines()[-1] == str(out)
    assert "no samples: proxies alone propose the first candidates" in done.stderr
    measured = pd.read_csv(out / "search" / "evaluated.csv")
    rounds = json.loads((out / "search" / "rounds.json").read_text())
    by_proxies = rounds[0]["measured"] + rounds[1]["measured"]  # 8 rows are no predictor yet
    assert measured["predicted"][:by_proxies].isna().all()
    assert measured["predicted"][by_proxies:].notna().all()
    assert [each["rmse"] is None for each in rounds] == [True, True, False]
    assert rounds[2]["rmse"] < 0.2
    page = (out / "report" / "index.html").read_text()
    assert "How well the predictors rank" not in page
    assert "Spread of the samples" not in page
    assert not (out / "samples" / "mixed.jsonl").exists()
    again = run_apqkit("run-search", "smoke", "--out", out, *without)
    assert again.stdout == done.stdout

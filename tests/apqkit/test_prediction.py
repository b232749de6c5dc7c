import numpy as np
import pytest
from scipy import stats

from apqkit.config import load_config
from apqkit.errors import UnknownNameError
from apqkit.pipeline import resolved
from apqkit.prediction import (
    Rows,
    architecture_groups,
    feature_builder,
    fit_fp32,
    fit_mixed,
    score_rows,
)
from apqkit.quant.noise import gaussian_noise
from apqkit.spaces import build_space
from apqkit.spaces.draws import draw_hierarchical, draw_uniform

SIGNED_INPUTS = {"s1.b0.expand", "s1.b1.expand", "head"}  # what they read came through no ReLU


@pytest.fixture(scope="module")
def space():
    return build_space(resolved(load_config("smoke")).space, (1, 8, 8), 10)


@pytest.fixture(scope="module")
def features(space):
    return feature_builder(space)


@pytest.fixture(scope="module")
def picks(space):
    return draw_hierarchical(space, 300, np.random.default_rng(0))


def slot_noise(space, row):
    """Noise of each precision dim of one candidate, by name; 0 where the slot is not used."""
    active = space.active(row[None])[0]
    noise = {}
    for column, dim in enumerate(space.dims):
        if dim.role == "quant":
            kind, _, layer = dim.name.partition(".")
            signed = kind == "w_format" or layer in SIGNED_INPUTS
            chosen = gaussian_noise(dim.choices[row[column]], signed=signed)
            noise[dim.name] = chosen if active[column] else 0.0
    return noise


def accuracy_of(space, picks):
    """A made-up accuracy in which every dim that is used has a say."""
    rng = np.random.default_rng(9)
    total = np.zeros(len(picks))
    for column, (dim, used) in enumerate(zip(space.dims, space.active(picks).T, strict=True)):
        total += rng.uniform(0.5, 1.0) * used * picks[:, column] / (len(dim.choices) - 1)
    return 0.3 + 0.5 * total / total.max()


def flips(space, picks, active):
    """Each candidate with one dim moved to another choice, for dims that are active or not."""
    rng = np.random.default_rng(3)
    for row, used in zip(picks, space.active(picks), strict=True):
        for column in np.flatnonzero(used == active):
            moved = row.copy()
            shift = rng.integers(1, len(space.dims[column].choices))
            moved[column] = (row[column] + shift) % len(space.dims[column].choices)
            yield space.dims[column].name, row, moved


def test_mixed_columns_begin_with_the_fp32_columns(features, picks):
    fp32, mixed = features.fp32(picks), features.mixed(picks)
    assert len(fp32) == len(mixed) == 300
    assert mixed.shape[1] > fp32.shape[1]
    assert np.array_equal(mixed[:, : fp32.shape[1]], fp32)
    assert np.isfinite(mixed).all()


def test_fp32_columns_know_no_formats(space, features, picks):
    without = picks.copy()
    without[:, [dim.role == "quant" for dim in space.dims]] = 0
    assert np.array_equal(features.fp32(picks), features.fp32(without))


def test_precision_columns_hold_the_noise_of_every_slot(space, features, picks):
    columns = features.mixed(picks)[:, features.fp32(picks).shape[1] :]
    for row, found in zip(picks[:40], columns, strict=False):
        expected = list(slot_noise(space, row).values())
        assert found[: len(expected)].tolist() == pytest.approx(expected)


def test_precision_columns_hold_sums_by_kind_and_stage(space, features, picks):
    columns = features.mixed(picks)[:, features.fp32(picks).shape[1] :]
    members = {
        "weights": lambda name: name.startswith("w_format."),
        "inputs": lambda name: name.startswith("a_format."),
        "weights of stage 1": lambda name: name.startswith("w_format.s1."),
        "inputs of stage 0": lambda name: name.startswith("a_format.s0."),
        "inputs of depthwise layers": lambda name: name.endswith(".depthwise"),
    }
    noise = [slot_noise(space, row) for row in picks[:60]]
    for what, belongs in members.items():
        sums = [sum(v for n, v in each.items() if belongs(n)) for each in noise]
        squares = [sum(v * v for n, v in each.items() if belongs(n)) for each in noise]
        largest = [max(v for n, v in each.items() if belongs(n)) for each in noise]
        for expected in (sums, squares, largest):
            matches = np.isclose(columns[:60], np.array(expected)[:, None]).all(axis=0)
            assert matches.any(), what


def test_counts_and_sizes_are_columns_in_logs(space, features, picks):
    from apqkit.cost import NetworkCost

    costs = NetworkCost().cost(space.network(picks))
    columns = features.mixed(picks)
    for name in ("macs", "params", "bops", "size_kib", "peak_activation_kib"):
        assert np.isclose(columns, np.log(costs[name])[:, None]).all(axis=0).any(), name


def test_columns_change_with_every_active_dim(space, features, picks):
    for name, row, moved in flips(space, picks[:12], active=True):
        before, after = features.mixed(np.stack([row, moved]))
        assert not np.array_equal(before, after), name


def test_columns_change_with_no_inactive_dim(space, features):
    picks = draw_uniform(space, 60, np.random.default_rng(4))
    checked = 0
    for name, row, moved in flips(space, picks, active=False):
        before, after = features.mixed(np.stack([row, moved]))
        assert np.array_equal(before, after), name
        checked += 1
    assert checked > 20


def test_the_score_depends_on_every_active_dim_and_on_no_inactive_one(space, features, picks):
    rows = Rows(
        features.mixed(picks), accuracy_of(space, picks), architecture_groups(space, picks)
    )
    model = fit_mixed(None, rows, name="ridge", coverage=0.9, seed=0)
    assert model.predictor.uses_residual_
    for name, row, moved in flips(space, picks[:12], active=True):
        before, after = model.predict(features.mixed(np.stack([row, moved])))
        assert before != after, name
    shallow = picks[~space.active(picks).all(axis=1)][:12]
    for name, row, moved in flips(space, shallow, active=False):
        before, after = model.predict(features.mixed(np.stack([row, moved])))
        assert before == after, name


def noisy_rows(count, seed, noise=0.02):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 5))
    accuracy = 0.6 + features @ np.array([0.03, -0.02, 0.01, 0.0, 0.02])
    accuracy += rng.normal(0, noise, count)
    return Rows(features, np.clip(accuracy, 0.01, 0.99), np.arange(count))


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_intervals_cover_new_rows_as_often_as_asked(coverage):
    fresh = noisy_rows(4000, seed=100)
    shares = []
    for seed in range(6):
        rows = noisy_rows(150, seed)
        for model in (
            fit_fp32("ridge", rows, coverage=coverage, seed=0),
            fit_mixed(None, rows, name="ridge", coverage=coverage, seed=0),
        ):
            misses = np.abs(model.predict(fresh.features) - fresh.accuracy)
            shares.append(np.mean(misses <= model.half_width))
    assert np.mean(shares) == pytest.approx(coverage, abs=0.05)


def test_rows_are_predicted_by_fits_that_never_saw_their_architecture():
    """Accuracy is drawn by group, so only a fit that saw the group could know it."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    features = np.repeat(rng.normal(size=(30, 3)), 4, axis=0)
    rows = Rows(features, np.repeat(rng.uniform(0.2, 0.8, 30), 4), groups)
    for model in (
        fit_fp32("extra_trees", rows, coverage=0.9, seed=0),
        fit_mixed(None, rows, name="extra_trees", coverage=0.9, seed=0),
    ):
        assert stats.kendalltau(model.out_of_fold, rows.accuracy).statistic < 0.4
    own = fit_fp32("extra_trees", rows, coverage=0.9, seed=0).predict(features)
    assert stats.kendalltau(own, rows.accuracy).statistic > 0.9


def test_transfer_needs_fewer_rows():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 40))
    weights = rng.normal(size=40) * 0.015
    fp32 = Rows(features, 0.6 + features @ weights, np.arange(400))
    base = fit_fp32("ridge", fp32, coverage=0.9, seed=0)
    lowered = 0.5 + 0.8 * (features @ weights) + rng.normal(0, 0.005, 400)
    few, rest = slice(0, 14), slice(14, None)
    rows = Rows(features[few], lowered[few], np.arange(14))
    taus = [
        stats.kendalltau(
            fit_mixed(prior, rows, name="ridge", coverage=0.9, seed=0).predict(features[rest]),
            lowered[rest],
        ).statistic
        for prior in (base, None)
    ]
    assert taus[0] > 0.85
    assert taus[0] > taus[1] + 0.1


def test_auto_learns_by_the_default_of_the_transfer():
    rows = noisy_rows(24, 0)
    base = fit_fp32("ridge", rows, coverage=0.9, seed=0)
    model = fit_mixed(base, rows, name="auto", coverage=0.9, seed=0)
    assert model.predictor.learner is None
    assert model.predictor.mode == "auto"
    assert model.predictor.base is base.predictor


def test_the_way_of_transfer_and_the_rows_of_the_base_are_handed_on():
    rows = noisy_rows(24, 0)
    base = fit_fp32("ridge", rows, coverage=0.9, seed=0)
    model = fit_mixed(
        base, rows, name="auto", coverage=0.9, seed=0, mode="multitask", base_rows=rows
    )
    assert model.predictor.chosen_ == "multitask"
    assert model.predictor.base_rows[0] is rows.features


def test_the_automatic_choice_hands_on_its_own_predictions_out_of_fold():
    model = fit_fp32("auto", noisy_rows(40, 0), coverage=0.9, seed=0)
    assert np.array_equal(model.out_of_fold, model.predictor.out_of_fold_)
    assert np.isfinite(model.out_of_fold).all()


def test_fits_repeat_with_their_seed():
    rows, fresh = noisy_rows(60, 0), noisy_rows(20, 1).features
    first, again, other = (
        fit_fp32("extra_trees", rows, coverage=0.9, seed=seed).predict(fresh) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_unknown_predictor_is_named():
    with pytest.raises(UnknownNameError) as caught:
        fit_fp32("forest", noisy_rows(20, 0), coverage=0.9, seed=0)
    assert str(caught.value) == (
        "no predictor named 'forest' (did you mean 'random_forest'?); there are: auto, "
        "bayesian_ridge, blend, boosted_trees, extra_trees, gaussian_process, mlp, parzc, "
        "random_forest, rank_average, ridge"
    )


def test_scores_hold_every_metric_with_its_interval():
    rows = noisy_rows(80, 0)
    predicted = rows.features @ np.array([0.03, -0.02, 0.01, 0.0, 0.02])
    macs = 1e6 * np.exp(rows.features[:, 3])
    scores = score_rows(rows, {"predictor": predicted}, {"macs": macs})
    assert list(scores) == ["predictor", "macs"]
    for metrics in scores.values():
        assert list(metrics) == ["tau", "spearman", "top_quartile_tau", "rmse"]
        assert all(each["low"] <= each["value"] <= each["high"] for each in metrics.values())
    expected = stats.kendalltau(predicted, rows.accuracy).statistic
    assert scores["predictor"]["tau"]["value"] == pytest.approx(expected)
    assert scores["predictor"]["tau"]["low"] > scores["macs"]["tau"]["high"]
    error = np.sqrt(np.mean((rows.accuracy - predicted) ** 2))
    assert scores["predictor"]["rmse"]["value"] == pytest.approx(error)
    fit = stats.linregress(np.log(macs), rows.accuracy)
    line = fit.intercept + fit.slope * np.log(macs)
    error = np.sqrt(np.mean((rows.accuracy - line) ** 2))
    assert scores["macs"]["rmse"]["value"] == pytest.approx(error)
    rank = stats.kendalltau(macs, rows.accuracy).statistic
    assert scores["macs"]["tau"]["value"] == pytest.approx(rank)


def test_candidates_of_one_architecture_share_a_group(space, picks):
    columns = [index for index, dim in enumerate(space.dims) if dim.role != "quant"]
    doubled = np.concatenate([picks, draw_uniform(space, 300, np.random.default_rng(5))])
    doubled[300:, columns] = picks[:, columns]
    groups = architecture_groups(space, doubled)
    assert groups.shape == (600,)
    seen = {}
    for row, group in zip(doubled, groups, strict=True):
        assert seen.setdefault(tuple(row[columns]), group) == group
    assert len(set(seen.values())) == len(seen) < 300

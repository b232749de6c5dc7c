import math

import numpy as np
import pytest
import torch
from scipy import stats

from predictors.networks.mixer import (
    MixerShape,
    MixerTask,
    _divergence,
    fit_mixers,
    initial_mixers,
    mixer_posterior,
)
from predictors.networks.training import Descent

SHAPE = MixerShape(positions=4, statistics=2, channels=3, units=5, blocks=2)
DESCENT = Descent(epochs=60, batch_rows=64, learning_rate=0.03, weight_decay=0.0)


def parameters_of(members=2, seed=0):
    found = initial_mixers(SHAPE, members, np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    return {name: each + 0.1 * rng.normal(size=each.shape) for name, each in found.items()}


def rows_of(count=30, seed=0):
    rng = np.random.default_rng(seed)
    presence = (rng.random((count, 4)) < 0.7) * np.array([1.0, 0.8, 0.5, 0.5])
    presence[:, 0] = 1.0
    return rng.normal(size=(count, 4, 2)) * (presence > 0)[:, :, None], presence


def gelu(value):
    return 0.5 * value * (1.0 + math.erf(value / math.sqrt(2.0)))


def one_output(p, member, tokens, presence):
    """Mean and deviation of one row in plain loops."""
    state = [
        (p["embedding"][member].T @ token + p["place"][member, at]) * presence[at]
        for at, token in enumerate(tokens)
    ]
    for block in range(2):
        mixed = [np.zeros(3) for _ in state]
        for channel in range(3):
            for unit in range(5):
                total = p[f"across_bias.{block}"][member, unit, 0]
                for at, each in enumerate(state):
                    total += p[f"across_in.{block}"][member, unit, at] * each[channel]
                for at in range(4):
                    mixed[at][channel] += p[f"across_out.{block}"][member, at, unit] * gelu(total)
        state = [
            each + new * presence[at]
            for at, (each, new) in enumerate(zip(state, mixed, strict=True))
        ]
        for at, each in enumerate(state):
            hidden = each @ p[f"within_in.{block}"][member] + p[f"within_bias.{block}"][member, 0]
            new = np.array([gelu(value) for value in hidden]) @ p[f"within_out.{block}"][member]
            state[at] = each + new * presence[at]
    total = np.sum(state, axis=0)
    features = np.concatenate([total / np.sum(presence), total / 4.0, [1.0]])
    deviations = np.log1p(np.exp(p["last_deviation"][member]))
    noise = math.exp(p["noise"][member, 0])
    variance = np.sum((features * deviations) ** 2) + noise**2
    return features @ p["last_mean"][member], math.sqrt(variance)


def test_the_posterior_is_that_of_plain_loops():
    parameters, (tokens, presence) = parameters_of(), rows_of(6)
    mean, deviation = mixer_posterior(parameters, tokens, presence)
    for member in range(2):
        for row in range(6):
            expected = one_output(parameters, member, tokens[row], presence[row])
            found = mean[member, row], deviation[member, row]
            assert found == pytest.approx(expected, rel=1e-9)


def test_what_an_absent_layer_holds_has_no_say():
    parameters, (tokens, presence) = parameters_of(), rows_of()
    other = tokens + 100.0 * (presence == 0.0)[:, :, None]
    assert np.array_equal(
        mixer_posterior(parameters, tokens, presence), mixer_posterior(parameters, other, presence)
    )


def test_positions_are_mixed():
    """What one layer holds changes what another adds: the effect of two is no sum."""
    parameters = parameters_of()
    base, presence = np.zeros((1, 4, 2)), np.ones((1, 4))
    effects = []
    for positions in ((0,), (1,), (0, 1), ()):
        tokens = base.copy()
        tokens[0, list(positions)] = 2.0
        effects.append(mixer_posterior(parameters, tokens, presence)[0])
    first, second, both, neither = effects
    assert (np.abs(both - first - second + neither) > 1e-3).all()


def test_the_divergence_is_that_of_normals():
    parameters = parameters_of(1)
    leaves = {name: torch.from_numpy(each) for name, each in parameters.items()}
    found = float(_divergence(leaves, 0.7))
    mean = parameters["last_mean"][0]
    deviation = np.log1p(np.exp(parameters["last_deviation"][0]))
    rng = np.random.default_rng(0)
    drawn = mean + deviation * rng.standard_normal((200_000, len(mean)))
    ratio = stats.norm.logpdf(drawn, mean, deviation) - stats.norm.logpdf(drawn, 0.0, 0.7)
    assert found == pytest.approx(ratio.sum(axis=1).mean(), rel=5e-3)


def fitted(targets, task, bags=None, seed=0):
    tokens, presence = rows_of()
    bags = np.ones((2, 30), dtype=bool) if bags is None else bags
    rng = np.random.default_rng(seed)
    start = initial_mixers(SHAPE, 2, np.random.default_rng(0))
    return fit_mixers(start, tokens, presence, targets, bags, task, DESCENT, rng)


@pytest.mark.parametrize("rank_weight", [0.0, 1.0])
def test_a_fit_orders_its_rows(rank_weight):
    tokens, presence = rows_of()
    targets = tokens[:, 0, 0] + tokens[:, 1].sum(axis=1)
    found = fitted(targets, MixerTask(rank_weight, 0.5, 1.0))
    for each in mixer_posterior(found, tokens, presence)[0]:
        assert stats.kendalltau(each, targets).statistic > 0.65


def test_a_narrow_prior_holds_the_last_layer_back():
    targets = rows_of()[0][:, 0, 0]
    wide, narrow = (
        np.abs(fitted(targets, MixerTask(0.0, 0.5, each))["last_mean"]).mean()
        for each in (1.0, 0.02)
    )
    assert narrow < 0.5 * wide


def test_noise_is_learned():
    tokens, presence = rows_of()
    noisy = np.random.default_rng(5).normal(size=30)
    smooth = tokens[:, 0, 0]
    task = MixerTask(0.0, 0.5, 1.0)
    deviations = [
        mixer_posterior(fitted(each / each.std(), task), tokens, presence)[1].mean()
        for each in (smooth, noisy)
    ]
    assert deviations[0] < deviations[1]


def test_a_member_learns_from_its_bag_alone():
    targets = rows_of()[0][:, 0, 0]
    bags = np.ones((2, 30), dtype=bool)
    bags[0, 15:] = False
    moved = targets + 5.0 * (np.arange(30) >= 15)
    task = MixerTask(1.0, 0.5, 1.0)
    found = [fitted(each, task, bags)["last_mean"] for each in (targets, moved)]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert not np.allclose(found[0][1], found[1][1])

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.zen import REPEATS


def zen(net, batch, **settings):
    return ProxySession(net, batch, **settings).compute(["zen"])["zen"]


def test_equals_the_plain_formula(conv_net, batch) -> None:
    images, _ = batch
    values, norms = [], []

    def features(first, second, x):
        x = F.conv2d(x, first, padding=1)
        variance = torch.stack([x[:, k].var() for k in range(x.shape[1])])
        mean = x.mean((0, 2, 3), keepdim=True)
        biased = x.var((0, 2, 3), correction=0, keepdim=True)
        x = F.relu((x - mean) / torch.sqrt(biased + conv_net[1].eps))
        return F.relu(F.conv2d(x, second, stride=2)), float(variance.mean())

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for _ in range(REPEATS):
            weights = [torch.randn_like(conv_net[layer].weight) for layer in (0, 3, 8)]
            x = torch.randn_like(images)
            first, variance = features(*weights[:2], x)
            second, _ = features(*weights[:2], x + 0.01 * torch.randn_like(images))
            changes = [float((a - b).abs().sum()) for a, b in zip(first, second, strict=True)]
            norms.append(math.log(math.sqrt(variance)))
            values.append(math.log(sum(changes) / len(changes)) + norms[-1])

    score = zen(conv_net, batch)

    assert score.value == pytest.approx(sum(values) / REPEATS, rel=1e-8)
    assert score.layers == {"1": pytest.approx(sum(norms) / REPEATS, rel=1e-8)}


def test_sees_neither_weights_nor_images(mobile_net, batch) -> None:
    expected = zen(mobile_net, batch)
    with torch.no_grad():
        for each in mobile_net.parameters():
            each.mul_(3.0).add_(0.1)
    mobile_net.eval()
    assert zen(mobile_net, (batch[0] * 5.0, None)) == expected


def test_a_wider_network_scores_higher(batch) -> None:
    def net(channels):
        return nn.Sequential(
            *(nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()),
        ).double()

    narrow, wide = (zen(net(channels), batch).value for channels in (4, 16))
    assert wide > narrow + 1.0


def test_is_that_of_the_reference(quant_net, quant_twin, batch32) -> None:
    assert zen(quant_net, batch32, reference=quant_twin) == zen(quant_twin, batch32)


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_needs_floating_inputs() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    assert error_of(lambda: zen(net, (torch.zeros(3, 6, dtype=torch.long), None))) == (
        "zen needs inputs that are floating numbers, got torch.int64"
    )


def test_says_that_there_is_no_map(batch) -> None:
    net = nn.Linear(98, 3).double()
    assert error_of(lambda: zen(net, (batch[0].flatten(1), None))) == (
        "zen saw no map of features: no call returns (samples, channels, places)"
    )


def test_needs_more_than_one_value_a_channel() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 7), nn.BatchNorm2d(3))
    assert error_of(lambda: zen(net, (torch.zeros(1, 2, 7, 7), None))) == (
        "zen needs more than 1 value per channel, got (1, 3, 1, 1)"
    )


def test_names_a_term_without_logarithm(batch) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Threshold(math.inf, 0.0)).double()
    assert error_of(lambda: zen(net, batch)) == (
        "zen has no logarithm: the change of the last map is 0.0"
    )

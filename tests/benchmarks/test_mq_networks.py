import pytest
import torch
from mq_networks import NETWORKS, build_network, folded
from torch import nn


@pytest.mark.parametrize(("name", "layers"), [("plain", 12), ("inverted_residual", 18)])
def test_networks_have_the_layers_that_they_say(name, layers):
    model = build_network(name, 0)
    kinds = [each for each in model.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    assert len(kinds) == layers
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norms_are_folded_away_and_outputs_stay(name):
    model = build_network(name, 0)
    images = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    model(images)  # statistics other than those at the start
    expected = model.eval()(images)
    plain = folded(model)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in plain.modules())
    assert any(isinstance(each, nn.BatchNorm2d) for each in model.modules())
    torch.testing.assert_close(plain(images), expected, rtol=1e-4, atol=1e-5)


def test_a_seed_gives_the_same_weights():
    one, same, other = (build_network("plain", seed) for seed in (0, 0, 1))
    assert torch.equal(one[0].conv.weight, same[0].conv.weight)
    assert not torch.equal(one[0].conv.weight, other[0].conv.weight)

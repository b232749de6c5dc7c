import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxySession


def test_equals_the_plain_formula(conv_net, batch) -> None:
    images, labels = batch
    F.cross_entropy(conv_net(images.clone()), labels).backward()
    expected = {
        name: float((each.grad * each).abs().sum().detach())
        for name, each in conv_net.named_parameters()
        if each.dim() >= 2
    }
    conv_net.zero_grad()

    score = ProxySession(conv_net, batch).compute(["snip"])["snip"]

    assert score.layers == pytest.approx(expected, rel=1e-9)
    assert score.value == pytest.approx(sum(expected.values()), rel=1e-9)


def test_equals_the_gradient_for_a_multiplicative_mask(conv_net, batch) -> None:
    images, labels = batch
    weight = conv_net[8].weight
    mask = torch.ones_like(weight, requires_grad=True)
    features = nn.Sequential(*list(conv_net)[:8])(images.clone())
    loss = F.cross_entropy(F.linear(features, weight * mask, conv_net[8].bias), labels)
    (gradient,) = torch.autograd.grad(loss, [mask])

    score = ProxySession(conv_net, batch).compute(["snip"])["snip"]

    assert score.layers["8.weight"] == pytest.approx(float(gradient.abs().sum()), rel=1e-9)


def test_ignores_a_scale_that_batch_normalisation_takes_away(conv_net, batch) -> None:
    conv_net[1].eps = 1e-14
    before = ProxySession(conv_net, batch).compute(["snip"])["snip"]
    with torch.no_grad():
        conv_net[0].weight.mul_(8.0)
    after = ProxySession(conv_net, batch).compute(["snip"])["snip"]
    assert after.value == pytest.approx(before.value, rel=1e-9)

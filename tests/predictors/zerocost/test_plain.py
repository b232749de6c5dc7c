import pytest
import torch.nn.functional as F

from predictors.zerocost import PROXIES, ProxySession


def test_equals_the_plain_formula(net, batch) -> None:
    images, labels = batch
    F.cross_entropy(net(images.clone()), labels).backward()
    expected = {
        name: float((each.grad * each).sum().detach())
        for name, each in net.named_parameters()
        if each.dim() >= 2
    }
    net.zero_grad()

    score = ProxySession(net, batch).compute(["plain"])["plain"]

    assert score.layers == pytest.approx(expected, rel=1e-9)
    assert score.value == pytest.approx(sum(expected.values()), rel=1e-7)


def test_smaller_is_better() -> None:
    assert PROXIES["plain"].direction == "down"


def test_is_never_further_from_zero_than_snip(net, batch) -> None:
    scores = ProxySession(net, batch).compute(["plain", "snip"])
    for name, value in scores["plain"].layers.items():
        assert abs(value) <= scores["snip"].layers[name] * (1.0 + 1e-12)

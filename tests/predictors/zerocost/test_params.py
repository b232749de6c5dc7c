from torch import nn

from predictors.zerocost import ProxySession


def test_counts_every_parameter_once(conv_net, batch, counted_passes) -> None:
    conv_net[0].weight.requires_grad_(False)
    calls = counted_passes(model=conv_net)
    score = ProxySession(conv_net, batch).compute(["params"])["params"]
    assert score.value == 2 * 5 * 9 + 2 * 5 + 5 * 4 * 9 + 4 + 4 * 3 + 3
    assert score.layers["3.weight"] == 180.0
    assert sum(score.layers.values()) == score.value
    assert calls == []


def test_counts_a_shared_parameter_once(batch) -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    session = ProxySession(nn.Sequential(first, second), batch)
    assert session.compute(["params"])["params"].value == 16

import numpy as np
import pytest
import torch

from predictors.zerocost import ProxyError, ProxySession


def test_equals_the_plain_formula(conv_net, batch, counted_passes) -> None:
    calls = counted_passes(model=conv_net)
    score = ProxySession(conv_net, batch).compute(["l2_norm"])["l2_norm"]
    expected = {
        name: float(np.sqrt((conv_net.get_parameter(name).detach().numpy() ** 2).sum()))
        for name in ("0.weight", "3.weight", "8.weight")
    }
    assert score.layers == pytest.approx(expected, rel=1e-12)
    assert score.value == pytest.approx(sum(expected.values()), rel=1e-12)
    assert calls == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_names_a_weight_that_is_not_finite(conv_net, batch, value) -> None:
    with torch.no_grad():
        conv_net[3].weight[0, 0, 0, 0] = value
    with pytest.raises(ProxyError) as caught:
        ProxySession(conv_net, batch).compute(["l2_norm"])
    assert str(caught.value) == "the weight '3.weight' is not finite"

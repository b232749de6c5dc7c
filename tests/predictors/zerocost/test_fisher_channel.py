import pytest
from torch import nn

from predictors.zerocost import ProxyError, ProxySession


@pytest.mark.parametrize("name", ["conv_net", "mobile_net"])
def test_equals_the_plain_formula(request, batch, name, fisher_by_hand) -> None:
    net = request.getfixturevalue(name)
    names = {module: name for name, module in net.named_modules()}
    expected = {
        f"{names[module]}.weight": sum(channels)
        for module, channels in fisher_by_hand(net, batch).items()
    }

    score = ProxySession(net, batch).compute(["fisher_channel"])["fisher_channel"]

    assert score.layers == pytest.approx(expected, rel=1e-9)
    assert score.value == pytest.approx(sum(expected.values()), rel=1e-9)


def test_layers_of_any_class_count(quant_net, batch32) -> None:
    score = ProxySession(quant_net, batch32).compute(["fisher_channel"])["fisher_channel"]
    assert list(score.layers) == ["0.weight", "1.weight", "4.weight"]
    assert all(value > 0.0 for value in score.layers.values())


def test_says_that_there_is_no_layer(batch) -> None:
    class Bare(nn.Module):
        """Owns two weights, so that neither has outputs of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(batch[0].new_ones(98, 4))
            self.two = nn.Parameter(batch[0].new_ones(4, 3))

        def forward(self, x):
            return x.flatten(1) @ self.one @ self.two

    with pytest.raises(ProxyError) as caught:
        ProxySession(Bare(), batch).compute(["fisher_channel"])
    assert str(caught.value) == (
        "fisher_channel saw no layer: no owner of one trainable weight returns a tensor"
    )

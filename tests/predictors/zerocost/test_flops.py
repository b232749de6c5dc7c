import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import PROXIES, ProxyError, ProxySession


def flops(net, batch):
    return ProxySession(net, batch).compute(["flops"])["flops"]


def test_equals_a_count_by_hand(mobile_net, batch) -> None:
    score = flops(mobile_net, batch)
    assert score.layers == {
        "stem": 7 * 7 * 6 * 2 * 9,
        "depthwise": 4 * 4 * 6 * 9,
        "point": 4 * 4 * 8 * 6,
        "skip": 4 * 4 * 8 * 4 * 9,
        "head": 8 * 3,
    }
    assert score.value == sum(score.layers.values())


def test_calls_of_a_shared_module_add_up(shared_net, batch) -> None:
    assert flops(shared_net, batch).layers == {
        "first": 98 * 12,
        "twice": 2 * 12 * 12,
        "tied": 12 * 12,
        "last": 12 * 3,
    }


def test_functions_of_the_outermost_module_have_their_own_names(batch) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(98, 4, dtype=torch.float64))

        def forward(self, x):
            return x.flatten(1) @ self.weight

    assert flops(Net(), batch).layers == {"mm": 98 * 4}


@pytest.mark.parametrize("training", [True, False])
def test_attention_counts(training) -> None:
    tokens, width, heads, hidden = 5, 16, 2, 32
    net = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=True)
    score = flops(net.train(training), (torch.randn(4, tokens, width), None))
    projections = 4 * tokens * width * width
    products = 2 * tokens * tokens * width
    assert score.value == projections + products + 2 * tokens * width * hidden


def test_sees_only_the_model_beside_other_proxies(mobile_net, batch) -> None:
    alone = flops(mobile_net, batch)
    names = [name for name, proxy in PROXIES.items() if "F" in proxy.needs]
    session = ProxySession(mobile_net, batch, reference=mobile_net)
    assert session.compute([*names, "flops"])["flops"] == alone


def test_does_not_depend_on_the_number_of_samples(mobile_net, batch) -> None:
    expected = flops(mobile_net, batch)
    assert flops(mobile_net, (batch[0][:3], None)) == expected
    mobile_net.eval()
    assert flops(mobile_net, (batch[0][:1], None)) == expected


def test_says_that_there_is_nothing_to_count(batch) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return F.relu(x * self.scale)

    with pytest.raises(ProxyError) as caught:
        flops(Scale(), batch)
    assert str(caught.value) == "flops saw no convolution and no matrix product"

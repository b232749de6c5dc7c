import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession


def naswot(model, batch):
    return ProxySession(model, batch).compute(["naswot"])["naswot"]


def signs(model, images, layers):
    """(samples, units) of what enters the rectifiers, by running the layers before them."""
    with torch.no_grad():
        return [
            (nn.Sequential(*list(model)[:layer])(images.clone()) > 0).flatten(1).numpy()
            for layer in layers
        ]


def test_equals_brute_force_hamming_distances(conv_net, batch) -> None:
    patterns = signs(conv_net, batch[0], [2, 4])
    joined = np.concatenate(patterns, axis=1)
    kernel = np.array(
        [[joined.shape[1] - (one != other).sum() for other in joined] for one in joined], float
    )

    score = naswot(conv_net, batch)

    assert score.value == pytest.approx(np.linalg.slogdet(kernel)[1], rel=1e-9)
    assert list(score.layers) == ["2", "4"]
    for name, pattern in zip(score.layers, patterns, strict=True):
        shares = [
            (one != other).mean()
            for i, one in enumerate(pattern)
            for j, other in enumerate(pattern)
            if i != j
        ]
        assert score.layers[name] == pytest.approx(np.mean(shares), rel=1e-9)


class ByFunction(nn.Module):
    def __init__(self, rectify) -> None:
        super().__init__()
        self.first = nn.Linear(98, 40).double()
        self.second = nn.Linear(40, 30).double()
        self.rectify = rectify

    def forward(self, x):
        return self.rectify(self.second(self.rectify(self.first(x.flatten(1)))))


RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "module relu6": nn.ReLU6(),
    "torch": torch.relu,
    "torch in place": torch.relu_,
    "functional": F.relu,
    "functional in place": lambda x: F.relu(x, inplace=True),
    "functional relu6": F.relu6,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "clamp": lambda x: torch.clamp(x, 0),
    "clamp by keyword": lambda x: torch.clamp(input=x, min=0.0, max=6.0),
    "clamp in place": lambda x: x.clamp_(min=0),
    "clip": lambda x: x.clip(0.0, 6.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
}
LIKE_RELUS = {
    "leaky_relu": F.leaky_relu,
    "leaky_relu in place": lambda x: F.leaky_relu(x, inplace=True),
    "elu": F.elu,
    "selu": torch.selu,
    "celu": F.celu,
    "silu": nn.SiLU(),
    "silu in place": lambda x: F.silu(x, inplace=True),
    "gelu": F.gelu,
    "mish": F.mish,
    "hardswish": nn.Hardswish(),
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.1, dtype=x.dtype)),
    "rrelu": F.rrelu,
}
OTHERS = {
    "sigmoid": torch.sigmoid,
    "quantizer": lambda x: torch.clamp(x, 0, 15),
    "signed clamp": lambda x: torch.clamp(x, -1, 1),
    "hardtanh": F.hardtanh,
    "ceiling": lambda x: torch.clamp(x, max=6),
    "not the batch": lambda x: F.relu(x.T).T,
    "parameter": lambda x: x + F.relu(nn.Parameter(torch.zeros(8, 1))),
    "integers": lambda x: x + F.relu(torch.ones(8, 1, dtype=torch.long)),
}


@pytest.mark.parametrize("rectify", RELUS.values(), ids=RELUS)
def test_all_ways_to_write_relu_agree(rectify, batch) -> None:
    torch.manual_seed(1)
    expected = naswot(ByFunction(nn.ReLU()), batch)
    torch.manual_seed(1)
    score = naswot(ByFunction(rectify), batch)
    assert score.value == pytest.approx(expected.value, rel=1e-9)
    assert len(score.layers) == 2


@pytest.mark.parametrize("rectify", LIKE_RELUS.values(), ids=LIKE_RELUS)
def test_counts_what_is_like_relu(rectify, batch) -> None:
    assert len(naswot(ByFunction(rectify), batch).layers) == 2


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_says_that_nothing_counts(function, batch) -> None:
    with pytest.raises(ProxyError) as caught:
        naswot(ByFunction(function), batch)
    assert str(caught.value) == "naswot saw no rectifier: the model calls no ReLU or its like"


def test_counts_rectifiers_of_quantized_layers_not_their_quantizers(quant_net, batch32) -> None:
    assert list(naswot(quant_net, batch32).layers) == ["0", "1"]


def test_forward_of_the_loss_gives_the_same(dropout_net, batch32) -> None:
    session = ProxySession(dropout_net, batch32)
    shared = session.compute(["snip", "naswot"])["naswot"]
    assert session.compute(["naswot"])["naswot"] == shared


def test_order_of_the_samples_does_not_matter(conv_net, batch) -> None:
    images, labels = batch
    turned = naswot(conv_net, (images.flip(0), labels))
    assert turned.value == pytest.approx(naswot(conv_net, batch).value, rel=1e-9)


def test_equal_samples_score_low_but_finite(conv_net, batch) -> None:
    images, labels = batch
    doubled = naswot(conv_net, (torch.cat([images[:4], images[:4]]), labels)).value
    assert math.isfinite(doubled)
    assert doubled < naswot(conv_net, batch).value - 50


def test_needs_two_samples(conv_net, batch) -> None:
    with pytest.raises(ProxyError) as caught:
        naswot(conv_net, (batch[0][:1], batch[1][:1]))
    assert str(caught.value) == "naswot needs at least 2 samples, got 1"


def test_names_the_rectifier_whose_input_is_not_finite(conv_net, batch) -> None:
    with torch.no_grad():
        conv_net[3].bias[1] = -math.inf  # a rectifier would hide it
    with pytest.raises(ProxyError) as caught:
        naswot(conv_net, batch)
    assert str(caught.value) == "the input of the rectifier '4' is not finite"

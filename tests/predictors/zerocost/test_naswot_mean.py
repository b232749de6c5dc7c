import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession


def naswot_mean(net, batch):
    return ProxySession(net, batch).compute(["naswot_mean"])["naswot_mean"]


def shares(pattern):
    """(b, b) shares of units that agree."""
    return np.array([[np.mean(one == other) for other in pattern] for one in pattern])


def test_equals_the_plain_formula(conv_net, batch) -> None:
    with torch.no_grad():
        kernels = [
            shares((nn.Sequential(*list(conv_net)[:layer])(batch[0]) > 0).flatten(1).numpy())
            for layer in (2, 4)
        ]

    score = naswot_mean(conv_net, batch)

    expected = np.linalg.slogdet(np.mean(kernels, axis=0))[1]
    assert score.value == pytest.approx(expected, rel=1e-9)
    for found, kernel in zip(score.layers.values(), kernels, strict=True):
        assert found == pytest.approx(np.linalg.slogdet(kernel)[1], rel=1e-7)
    assert list(score.layers) == ["2", "4"]
    assert score.value <= 0.0


class Repeated(nn.Module):
    """The same rectifier so many times, on so many copies of its units."""

    def __init__(self, times: int, copies: int) -> None:
        super().__init__()
        self.first = nn.Linear(98, 40).double()
        self.times, self.copies = times, copies

    def forward(self, x):
        x = self.first(x.flatten(1)).repeat(1, self.copies)
        return sum(F.relu(x) for _ in range(self.times))


def test_more_or_larger_rectifiers_alone_change_nothing(batch) -> None:
    found = []
    for times, copies in ((1, 1), (3, 1), (1, 4)):
        torch.manual_seed(1)
        found.append(naswot_mean(Repeated(times, copies), batch).value)
    assert found == pytest.approx([found[0]] * 3, rel=1e-9)


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_needs_two_samples(conv_net, batch) -> None:
    assert error_of(lambda: naswot_mean(conv_net, (batch[0][:1], None))) == (
        "naswot_mean needs at least 2 samples, got 1"
    )


def test_says_that_nothing_counts(batch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(98, 3)).double()
    assert error_of(lambda: naswot_mean(net, batch)) == (
        "naswot_mean saw no rectifier: the model calls no ReLU or its like"
    )

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from predictors.zerocost import ProxyError, ProxySession


def swap(net, batch):
    return ProxySession(net, batch).compute(["swap"])["swap"]


def patterns(x):
    """The set of columns of signs."""
    return {tuple(column) for column in (x > 0).flatten(1).T.tolist()}


def test_equals_a_count_of_sets(conv_net, batch) -> None:
    with torch.no_grad():
        seen = [patterns(nn.Sequential(*list(conv_net)[:layer])(batch[0])) for layer in (2, 4)]
    score = swap(conv_net, batch)
    assert score.value == len(seen[0] | seen[1])
    assert score.layers == {"2": len(seen[0]), "4": len(seen[1])}


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 150), st.integers(1, 40), st.integers(0, 1000))
def test_counts_whatever_the_number_of_samples(samples: int, units: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, units, generator=rng)
    x[: samples - samples // 8] = 1.0  # few samples differ, so that patterns repeat
    net = nn.Sequential(nn.ReLU(), nn.Linear(units, 2))
    assert swap(net, (x, None)).value == len(patterns(x))


def test_says_that_nothing_counts(batch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(98, 3)).double()
    with pytest.raises(ProxyError) as caught:
        swap(net, batch)
    assert str(caught.value) == "swap saw no rectifier: the model calls no ReLU or its like"

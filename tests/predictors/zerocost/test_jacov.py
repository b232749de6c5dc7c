import math

import numpy as np
import pytest
import torch
from torch import nn

from predictors.zerocost import ProxyError, ProxySession


def jacov(net, batch):
    return ProxySession(net, batch).compute(["jacov"])["jacov"]


def input_gradients(net, images):
    """(b, inputs) rows, one sample's inputs at a time being differentiated."""
    samples = [each.clone().requires_grad_() for each in images]
    outputs = net(torch.stack(samples))
    found = torch.autograd.grad(outputs.sum(), samples)
    return np.stack([each.flatten().numpy() for each in found])


def correlation(one, other):
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other / math.sqrt((one @ one) * (other @ other)))


def test_equals_the_plain_formula(net, batch) -> None:
    rows = input_gradients(net, batch[0])
    matrix = np.array([[correlation(one, other) for other in rows] for one in rows])
    expected = -sum(
        math.log(v + 1e-5) + 1.0 / (v + 1e-5) for v in np.linalg.eigvalsh(matrix).clip(0.0)
    )
    score = jacov(net, batch)
    assert score.value == pytest.approx(expected, rel=1e-6)
    assert score.layers == {}


def test_uncorrelated_gradients_score_best(batch) -> None:
    class Table(nn.Module):
        """Each sample's input gradient is its own row."""

        def __init__(self, rows) -> None:
            super().__init__()
            self.rows = nn.Parameter(rows)

        def forward(self, x):
            return x * self.rows

    rows = torch.eye(4, dtype=torch.float64)[:, [0, 1, 2, 3, 0, 1, 2, 3]]
    rows[:, 4:] *= -1.0  # means of 0, so that the correlations are exactly 0
    found = jacov(Table(rows), (torch.ones(4, 8, dtype=torch.float64), None))
    best = -4.0 * (math.log(1.0 + 1e-5) + 1.0 / (1.0 + 1e-5))
    assert found.value == pytest.approx(best, rel=1e-9)


def test_needs_no_labels_and_no_trainable_weights(conv_net, batch) -> None:
    expected = jacov(conv_net, batch)
    conv_net.requires_grad_(False)
    assert jacov(conv_net, (batch[0], None)) == expected


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_needs_two_samples(conv_net, batch) -> None:
    assert error_of(lambda: jacov(conv_net, (batch[0][:1], None))) == (
        "jacov needs at least 2 samples, got 1"
    )


def test_names_a_sample_whose_gradient_is_constant(batch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(98, 3)).double()
    images = batch[0].clone()
    images[2] = -1.0
    assert error_of(lambda: jacov(net, (images, None))) == (
        "jacov is not defined: the input gradient of sample 2 is constant"
    )

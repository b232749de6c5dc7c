import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession


def meco(net, batch):
    return ProxySession(net, batch).compute(["meco"])["meco"]


def smallest_eigenvalue(x):
    """Of the correlations between channels, written as loops."""
    rows = [x[:, channel].flatten().numpy() for channel in range(x.shape[1])]
    rows = [row - row.mean() for row in rows]
    matrix = [
        [float(one @ other / np.sqrt((one @ one) * (other @ other))) for other in rows]
        for one in rows
    ]
    return float(np.linalg.eigvalsh(np.array(matrix))[0])


def test_equals_the_plain_formula(conv_net, batch) -> None:
    x, expected = batch[0].clone(), {}
    with torch.no_grad():
        for name, module in conv_net.named_children():
            x = module(x)
            if not isinstance(module, nn.Flatten | nn.Dropout):  # they hand on what they get
                expected[name] = smallest_eigenvalue(x)

    score = meco(conv_net, batch)

    assert list(score.layers) == list(expected)
    assert score.layers == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert score.value == pytest.approx(sum(expected.values()), rel=1e-7)


def test_every_call_counts_under_a_name_of_its_own(shared_net, batch) -> None:
    assert list(meco(shared_net, batch).layers) == [
        *("first", "norm", "twice", "twice#2", "tied", "last")
    ]


class Channels(nn.Module):
    """Returns two channels that correlate by r, and some constant ones."""

    def __init__(self, r: float, constant: int = 0) -> None:
        super().__init__()
        self.r, self.constant = r, constant
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        a = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
        b = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        c = self.r * a + (1.0 - self.r**2) ** 0.5 * b
        return torch.stack([a, c] + [torch.ones_like(a)] * self.constant, dim=1)


FOUR_SAMPLES = torch.zeros(4, 1, dtype=torch.float64), None


@pytest.mark.parametrize("r", [0.0, 0.25, -0.7])
def test_two_channels_give_one_less_their_correlation(r) -> None:
    score = meco(nn.Sequential(Channels(r)), FOUR_SAMPLES)
    assert score.layers == {"0": pytest.approx(1.0 - abs(r), rel=1e-12)}


def test_a_constant_channel_gives_0() -> None:
    score = meco(nn.Sequential(Channels(0.0, constant=1)), FOUR_SAMPLES)
    assert score.layers == {"0": 0.0}


def test_fewer_places_than_channels_give_0(batch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(98, 8)).double()
    assert meco(net, batch).layers == {"1": 0.0}


def test_activations_in_place_count_beside_what_they_overwrite(batch) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten()).double()
    with torch.no_grad():
        before = net[0](batch[0])
    assert meco(net, batch).layers == {
        "0": pytest.approx(smallest_eigenvalue(before), rel=1e-9),
        "1": pytest.approx(smallest_eigenvalue(F.relu(before)), rel=1e-9),
    }


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_names_outputs_that_are_not_finite(conv_net, batch) -> None:
    with torch.no_grad():
        conv_net[3].bias[0] = float("nan")
    assert error_of(lambda: meco(conv_net, batch)) == (
        "the output of the module '3' is not finite"
    )


def test_says_that_it_saw_no_outputs(batch) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(98, 3).double()

        def forward(self, x):
            return F.linear(x.flatten(1), self.inner.weight)

    assert error_of(lambda: meco(Whole(), batch)) == (
        "meco saw no outputs: no module without children returns a tensor"
    )

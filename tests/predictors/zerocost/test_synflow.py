import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession


def synflow(model, batch, reference=None):
    return ProxySession(model, batch, reference=reference).compute(["synflow"])["synflow"]


def plain_synflow(model, shape):
    """Straight from the definition; works in float64 until it overflows."""
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.LayerNorm):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for each in model.parameters():
            each.abs_()
    model(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    return {
        name: float((each * each.grad).sum().detach())
        for name, each in model.named_parameters()
        if each.dim() >= 2
    }


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + F.relu(self.linear(x))


class DeepNet(nn.Sequential):
    """Linear layers with biases and residual sums; gain multiplies every weight."""

    def __init__(self, gain: float, depth: int = 30) -> None:
        super().__init__(
            nn.Linear(2, 3), *(Residual(3) for _ in range(depth - 2)), nn.Linear(3, 2)
        )
        with torch.no_grad():
            for each in self.parameters():
                if each.dim() >= 2:
                    each.mul_(gain)


def exact_log_synflow(net: DeepNet) -> float:
    """The definition in fractions, which know no overflow: all paths are positive."""
    layers = [
        tuple(
            np.vectorize(Fraction, otypes=[object])(each.detach().double().abs().numpy())
            for each in module.parameters()
        )
        for module in net
    ]
    skips = [isinstance(module, Residual) for module in net]
    x = np.array([Fraction(1)] * 2, dtype=object)
    entering = []
    for (weight, bias), skip in zip(layers, skips, strict=True):
        entering.append(x)
        x = weight.dot(x) + bias + (x if skip else 0)
    gradient = np.array([Fraction(1)] * len(x), dtype=object)
    flow = Fraction(0)
    for (weight, _), skip, x in zip(layers[::-1], skips[::-1], entering[::-1], strict=True):
        flow += (weight * np.outer(gradient, x)).sum()
        gradient = weight.T.dot(gradient) + (gradient if skip else 0)
    return math.log(flow.numerator) - math.log(flow.denominator)


@pytest.mark.parametrize("mode", [True, False])
def test_equals_the_plain_formula_in_either_mode(dropout_net, batch32, mode) -> None:
    dropout_net.train(mode)
    expected = plain_synflow(dropout_net, (2, 7, 7))
    score = synflow(dropout_net, batch32)
    assert score.value == pytest.approx(math.log(sum(expected.values())), rel=1e-12)
    assert {name: math.exp(each) for name, each in score.layers.items()} == pytest.approx(
        expected, rel=1e-9
    )


def test_layers_add_up_in_the_exponent(dropout_net, batch32) -> None:
    score = synflow(dropout_net, batch32)
    assert np.logaddexp.reduce(list(score.layers.values())) == pytest.approx(score.value)


def test_every_layer_of_a_chain_carries_the_same_flow() -> None:
    chain = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(5)))
    score = synflow(chain, (torch.zeros(1, 4), None))
    assert list(score.layers.values()) == pytest.approx([next(iter(score.layers.values()))] * 5)


def test_does_not_depend_on_data_signs_or_frozen_weights(dropout_net, batch32) -> None:
    before = synflow(dropout_net, batch32)
    with torch.no_grad():
        for each in dropout_net.parameters():
            each.mul_(torch.randn_like(each).sign()).requires_grad_(False)
    assert synflow(dropout_net, (batch32[0] * 3, None)) == before


def test_functional_batch_norm_is_bypassed_as_the_module_is() -> None:
    class Functional(nn.Module):
        def __init__(self, conv: nn.Conv2d) -> None:
            super().__init__()
            self.conv = conv
            self.gamma = nn.Parameter(torch.rand(3))

        def forward(self, x):
            x = F.batch_norm(self.conv(x), None, None, self.gamma, training=True)
            return F.layer_norm(input=x, normalized_shape=x.shape[1:])

    conv = nn.Conv2d(2, 3, 3)
    images = torch.randn(4, 2, 5, 5)
    expected = synflow(nn.Sequential(conv, nn.BatchNorm2d(3)), (images, None))
    score = synflow(Functional(conv), (images, None))
    assert score.value == expected.value
    assert list(score.layers) == ["conv.weight"]


def chain_of_convolutions(gain: float, depth: int = 30) -> nn.Module:
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(depth)]
    with torch.no_grad():
        for each in layers:
            each.weight.mul_(gain)
    return nn.Sequential(*(part for each in layers for part in (each, nn.ReLU())))


@pytest.mark.parametrize("exponent", [40, -40])
def test_thirty_layers_beyond_float64(exponent) -> None:
    batch = torch.zeros(1, 3, 4, 4), None
    before = synflow(chain_of_convolutions(1.0), batch)
    after = synflow(chain_of_convolutions(2.0**exponent), batch)
    gain = 30 * exponent * math.log(2)  # every path crosses all layers
    assert abs(after.value) > 750
    assert after.value == pytest.approx(before.value + gain, rel=1e-12)
    assert after.layers["0.weight"] == pytest.approx(before.layers["0.weight"] + gain, rel=1e-12)


@pytest.mark.parametrize("gain", [1e-12, 1.0, 1e5, 1e10, 1e12, 1e16])
def test_thirty_residual_layers_with_biases_against_fractions(gain) -> None:
    net = DeepNet(gain)
    score = synflow(net, (torch.zeros(1, 2), None))
    assert score.value == pytest.approx(exact_log_synflow(net), rel=1e-12)
    assert len(score.layers) == 30


def test_runs_on_the_reference_if_there_is_one(quant_net, quant_twin, batch32) -> None:
    class OnlyFloat32(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 98))

        def forward(self, x):
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return F.linear(x.flatten(1), self.weight)

    reference = nn.Sequential(nn.Flatten(), nn.Linear(98, 3))
    score = synflow(OnlyFloat32(), batch32, reference)
    assert score == synflow(reference, batch32)


def test_runs_through_straight_through_quantizers(quant_net, batch32) -> None:
    score = synflow(quant_net, batch32)
    assert math.isfinite(score.value)
    assert list(score.layers) == ["0.weight", "1.weight", "4.weight"]


def test_inputs_of_integers_stay_integers() -> None:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    score = synflow(net, (torch.zeros(2, 4, dtype=torch.long), None))
    with torch.no_grad():
        rows = net[0].weight[1].double().abs().repeat(4)
        flow = float((net[2].weight.double().abs() * rows).sum())
    assert score.layers["2.weight"] == pytest.approx(math.log(flow), rel=1e-12)
    assert score.layers["0.weight"] == pytest.approx(math.log(flow), rel=1e-12)


def test_layers_without_flow_have_no_logarithm() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.zero_()
    assert list(synflow(net, (torch.zeros(1, 2), None)).layers) == ["1.weight"]


def test_says_that_nothing_flows() -> None:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.zero_()
    with pytest.raises(ProxyError) as caught:
        synflow(net, (torch.zeros(1, 2), None))
    assert str(caught.value) == "synflow is 0: no path of non-zero weights leads to the outputs"


def test_says_that_the_flow_is_negative() -> None:
    class Negative(nn.Linear):
        def forward(self, x):
            return -super().forward(x)

    net = Negative(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.5)
    with pytest.raises(ProxyError) as caught:
        synflow(net, (torch.zeros(1, 1), None))
    assert str(caught.value).startswith("synflow has no logarithm: the flow is -")


def test_says_that_no_weight_is_reached() -> None:
    class Detached(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight.detach())

    with pytest.raises(ProxyError) as caught:
        synflow(Detached(2, 2), (torch.zeros(1, 2), None))
    assert str(caught.value) == (
        "synflow reaches no weight: the outputs depend on none of 1 weights with 2 or more axes"
    )


def test_names_a_parameter_that_is_not_finite(dropout_net, batch32) -> None:
    with torch.no_grad():
        dropout_net[8].bias[0] = math.nan
    with pytest.raises(ProxyError) as caught:
        synflow(dropout_net, batch32)
    assert str(caught.value) == "the parameter '8.bias' is not finite"


@pytest.mark.parametrize("offset", [1.0, 1e-200])
def test_refuses_to_rescale_what_is_not_homogeneous(offset) -> None:
    class AddsByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.full((3, 1, 1), offset, dtype=torch.float64))

        def forward(self, x):
            return x + self.offset

    net = nn.Sequential(AddsByHand(), *chain_of_convolutions(2.0**40))
    with pytest.raises(ProxyError) as caught:
        synflow(net, (torch.zeros(1, 3, 4, 4), None))
    assert str(caught.value) == (
        "synflow leaves the range of float64, and only networks of convolutions, linear layers, "
        "rectifiers, pools and sums can be rescaled"
    )

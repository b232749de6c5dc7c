import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from predictors.zerocost.passes import named_weights
from predictors.zerocost.twice_differentiable import TwiceDifferentiable

CONVOLUTIONS = {
    "plain": (F.conv2d, (2, 4, 5, 5), (3, 4, 3, 3), {}),
    "strides": (F.conv2d, (2, 4, 6, 5), (3, 4, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    "one number in a tuple": (F.conv2d, (2, 2, 6, 6), (3, 2, 3, 3), {"stride": (2,)}),
    "depthwise": (F.conv2d, (2, 4, 5, 5), (8, 1, 3, 3), {"padding": 1, "groups": 4}),
    "dilated": (F.conv2d, (2, 4, 7, 7), (2, 2, 3, 3), {"dilation": 2, "groups": 2}),
    "padding by name": (F.conv2d, (2, 2, 5, 5), (3, 2, 3, 3), {"padding": "same"}),
    "one axis": (F.conv1d, (2, 3, 9), (4, 3, 3), {"stride": 2, "padding": 1}),
    "three axes": (F.conv3d, (2, 2, 3, 4, 3), (2, 2, 2, 2, 2), {"stride": (1, 2, 1)}),
    "without a batch axis": (F.conv2d, (2, 5, 5), (3, 2, 3, 3), {}),
}


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def replaced(function):
    """The function as it is while the mode is open, with all gradients wanted."""

    def run(*args, **kwargs):
        with TwiceDifferentiable({}):
            return function(*args, **kwargs)

    return run


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_convolutions_have_the_right_gradients(case, has_bias) -> None:
    function, x_shape, weight_shape, settings = case
    args = [randn(*x_shape), randn(*weight_shape)]
    if has_bias:
        args.append(randn(weight_shape[0]))

    def run(*args):
        return replaced(function)(*args, **settings)

    assert torch.equal(run(*args), function(*args, **settings))
    assert gradcheck(run, args, fast_mode=True)
    assert gradgradcheck(run, args, fast_mode=True)


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 4), (3, 2, 2, 3), (2, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("affine", ["weight and bias", "bias", "none"])
def test_batch_normalisation_has_the_right_gradients(shape, affine) -> None:
    args = [randn(*shape)]
    if "bias" in affine:
        args.append(randn(shape[1]))
    if "weight" in affine:
        args.append(randn(shape[1]))

    def run(x, bias=None, weight=None):
        return replaced(F.batch_norm)(x, None, None, weight, bias, training=True)

    assert gradcheck(run, args, fast_mode=True)
    assert gradgradcheck(run, args, fast_mode=True)


def test_rectifiers_have_the_right_gradients() -> None:
    x = randn(4, 5)
    for function in (F.relu, torch.relu, torch.Tensor.relu):
        run = replaced(function)
        assert torch.equal(run(x), x.clamp(0.0))
        assert gradcheck(run, [x])
        assert gradgradcheck(run, [x])


def test_running_statistics_move_as_they_always_do() -> None:
    found = []
    for open_mode in (True, False):
        norm = nn.BatchNorm2d(3)
        x = torch.arange(54.0).reshape(2, 3, 3, 3)
        if open_mode:
            with TwiceDifferentiable({}):
                norm(x)
        else:
            norm(x)
        found.append({name: each.tolist() for name, each in norm.state_dict().items()})
    assert found[0] == found[1]


class Generated(nn.Module):
    """Weights and biases of convolutions that are computed, some used elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.standardised = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.maker = nn.Linear(4, 4, bias=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        weight = self.standardised - self.standardised.mean()
        x = torch.tanh(F.conv2d(x, weight, padding=1))
        bias = self.maker.weight.square().sum(1)
        x = F.silu(F.conv2d(x, self.plain.weight, bias, padding=1))
        x = F.silu(self.plain(x))
        return self.last(x.mean((2, 3))) + self.plain.weight.square().mean()


def curvatures(net, images, labels, *, mode):
    weights = named_weights(net)
    trainable = {name: each for name, each in weights.items() if each.requires_grad}
    twice = TwiceDifferentiable(weights)
    if mode:
        with twice:
            outputs = net(images)
    else:
        outputs = net(images)
    loss = F.cross_entropy(outputs, labels) + outputs.square().mean()
    found = torch.autograd.grad(loss, list(trainable.values()), create_graph=True)
    gradients = dict(zip(trainable, found, strict=True))
    if mode:
        return twice.curvatures(gradients)
    product = sum((each * each.detach()).sum() for each in found)
    second = torch.autograd.grad(product, list(trainable.values()), allow_unused=True)
    return {
        name: 0.0 if each is None else float((weight.detach() * each).sum())
        for (name, weight), each in zip(trainable.items(), second, strict=True)
    }


@pytest.mark.parametrize("frozen", [(), ("standardised",), ("plain.weight",), ("maker.weight",)])
def test_computed_weights_and_biases_count(batch, frozen) -> None:
    net = Generated().double()
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    expected = curvatures(net, *batch, mode=False)
    assert curvatures(net, *batch, mode=True) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("frozen", [("0.weight",), ("0.weight", "3.weight"), ("3.weight",)])
def test_frozen_weights_change_nothing_for_others(conv_net, batch, frozen) -> None:
    for name in frozen:
        conv_net.get_parameter(name).requires_grad_(False)
    expected = curvatures(conv_net, *batch, mode=False)
    assert curvatures(conv_net, *batch, mode=True) == pytest.approx(expected, rel=1e-9)


def test_frozen_statistics_are_left_to_torch(conv_net, batch) -> None:
    conv_net.eval()
    expected = curvatures(conv_net, *batch, mode=False)
    assert curvatures(conv_net, *batch, mode=True) == pytest.approx(expected, rel=1e-9)


def test_autocast_is_left_to_torch(batch32) -> None:
    conv = nn.Conv2d(2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(batch32[0])
        with TwiceDifferentiable(named_weights(conv)):
            found = conv(batch32[0])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)

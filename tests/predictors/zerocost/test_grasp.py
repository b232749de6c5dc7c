import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.passes import named_weights


def grasp(net, batch):
    return ProxySession(net, batch).compute(["grasp"])["grasp"]


def hessian_products(net, batch):
    """-w * (H g) by torch's own double backward pass."""
    images, labels = batch
    weights = named_weights(net)
    loss = F.cross_entropy(net(images.clone()), labels)
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    product = sum((each * each.detach()).sum() for each in gradients)
    found = torch.autograd.grad(product, list(weights.values()))
    return {
        name: -float((weight.detach() * each).sum())
        for (name, weight), each in zip(weights.items(), found, strict=True)
    }


def test_equals_the_plain_formula(net, batch) -> None:
    expected = hessian_products(net, batch)
    score = grasp(net, batch)
    assert score.layers == pytest.approx(expected, rel=1e-8, abs=1e-13)
    assert score.value == pytest.approx(sum(expected.values()), rel=1e-7)


def test_equals_the_difference_of_gradients_along_the_gradient(mobile_net, batch) -> None:
    images, labels = batch
    weights = named_weights(mobile_net)

    def gradients(step, along):
        with torch.no_grad():
            for name, weight in weights.items():
                weight += step * along[name]
        loss = F.cross_entropy(mobile_net(images.clone()), labels)
        found = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for name, weight in weights.items():
                weight -= step * along[name]
        return dict(zip(weights, found, strict=True))

    g = gradients(0.0, {name: torch.zeros_like(each) for name, each in weights.items()})
    step = 1e-5
    up, down = gradients(step, g), gradients(-step, g)
    expected = {
        name: -float((weight.detach() * (up[name] - down[name])).sum()) / (2.0 * step)
        for name, weight in weights.items()
    }
    # biases before a normalisation leave nothing but rounding, so the whole sets the scale
    largest = max(abs(each) for each in expected.values())
    assert grasp(mobile_net, batch).layers == pytest.approx(expected, rel=1e-5, abs=1e-6 * largest)


def test_is_zero_where_the_loss_is_linear(batch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(98, 3)).double()
    session = ProxySession(net, batch, loss=lambda outputs, labels: outputs.mean())
    assert session.compute(["grasp"])["grasp"].layers == {"1.weight": 0.0}


def test_says_that_a_function_has_no_second_gradient(batch) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(98, 4).double(), nn.Linear(4, 3).double()

        def forward(self, x):
            return self.last(Once.apply(self.first(x.flatten(1))))

    with pytest.raises(ProxyError) as caught:
        grasp(Net(), batch)
    assert str(caught.value) == (
        "the model cannot be differentiated twice: a function in it can be differentiated only "
        "once"
    )

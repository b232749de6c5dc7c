import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.activation_gradients import ChannelRecorder
from predictors.zerocost.passes import Passes, loss_pass


def recorded(net, batch, planned="L"):
    passes = Passes(
        net,
        *batch,
        loss=F.cross_entropy,
        reference=None,
        quantize={},
        seed=0,
        planned=frozenset(planned),
        recorders=(ChannelRecorder,),
    )
    return passes.of(loss_pass).forward.record(ChannelRecorder).channels


def by_factors(net, batch, layers):
    """The gradient for a factor of each sample and channel, multiplied to the layer's outputs."""
    images, labels = batch
    factors, hooks = {}, []
    for name in layers:
        module = net.get_submodule(name)
        channels = module.weight.shape[0]
        shape = (len(images), channels) + (1,) * (module.weight.dim() - 2)
        factors[name] = torch.ones(shape, dtype=images.dtype, requires_grad=True)
        hooks.append(
            module.register_forward_hook(
                lambda module, inputs, outputs, name=name: outputs * factors[name]
            )
        )
    loss = F.cross_entropy(net(images.clone()), labels)
    gradients = torch.autograd.grad(loss, list(factors.values()))
    for hook in hooks:
        hook.remove()
    return {
        f"{name}.weight": gradient.flatten(1)
        for name, gradient in zip(factors, gradients, strict=True)
    }


LAYERS = {
    "conv_net": ["0", "3", "8"],
    "mobile_net": ["stem", "depthwise", "point", "skip", "head"],
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("planned", ["L", "LH", "LJ"])
def test_equals_the_gradient_for_a_factor_of_each_channel(request, batch, name, planned) -> None:
    net = request.getfixturevalue(name)
    expected = by_factors(net, batch, LAYERS[name])

    found = recorded(net, batch, planned)

    assert list(found) == list(expected)
    for layer, each in found.items():
        assert torch.allclose(each.sums, expected[layer], rtol=1e-9, atol=1e-12)
        assert each.filter_size == net.get_parameter(layer)[0].numel()
        by_hand = (expected[layer] ** 2).sum(0) / 2.0 / len(batch[0])
        assert torch.allclose(each.fisher(), by_hand, rtol=1e-9)


def test_calls_of_a_shared_module_add_up(shared_net, batch) -> None:
    shared_net.tied.weight = nn.Parameter(shared_net.tied.weight.detach().clone())
    expected = by_factors(shared_net, batch, ["first", "twice", "tied", "last"])
    found = recorded(shared_net, batch)
    assert list(found) == list(expected)
    for layer, each in found.items():
        assert torch.allclose(each.sums, expected[layer], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        nn.ReLU(inplace=True),
        nn.Hardtanh(inplace=True),
        lambda x: x.mul_(2.0),
        lambda x: F.relu_(x[:, 1:]).sum(1, keepdim=True) + x,
    ],
    ids=["relu", "hardtanh", "method", "through a view"],
)
def test_outputs_count_as_they_were_before_something_wrote_into_them(batch, change) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3).double()
            self.last = nn.Linear(4, 3).double()

        def forward(self, x):
            return self.last(change(self.conv(x)).mean((2, 3)))

    net = Net()
    expected = by_factors(net, batch, ["conv", "last"])
    for layer, each in recorded(net, batch).items():
        assert torch.allclose(each.sums, expected[layer], rtol=1e-9, atol=1e-12)


def test_channels_of_a_linear_layer_are_the_last_axis(batch) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(7, 5).double()
            self.last = nn.Linear(5, 3).double()

        def forward(self, x):
            return self.last(torch.tanh(self.mix(x)).mean((1, 2)))

    found = recorded(Tokens(), batch)
    assert found["mix.weight"].sums.shape == (8, 5)
    assert found["mix.weight"].filter_size == 7


def test_frozen_and_unused_layers_are_left_aside(shared_net, batch) -> None:
    shared_net.first.weight.requires_grad_(False)
    shared_net.unused = nn.Linear(2, 2)
    names = ["twice.weight", "tied.weight", "last.weight"]
    assert list(recorded(shared_net, batch)) == names


def test_names_a_layer_whose_outputs_are_not_finite(batch) -> None:
    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net(98, 4).double()
            self.last = nn.Linear(4, 3).double()

        def forward(self, x):
            return self.last(torch.nan_to_num(self.inner(x), posinf=0.0))

    net = Masked()
    with torch.no_grad():
        net.inner.bias[0] = float("inf")
    with pytest.raises(ProxyError) as caught:
        ProxySession(net, batch).compute(["fisher"])
    assert str(caught.value) == (
        "outputs of the layer of 'inner.weight', or their gradient, are not finite"
    )

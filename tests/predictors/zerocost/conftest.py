from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3


class RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, levels):
        step = x.abs().amax() / levels
        return torch.round(x / step).clamp_(-levels, levels) * step

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0], None


class FakeQuantConv(nn.Module):
    """A layer class that no proxy can know: weights and unsigned inputs are rounded."""

    def __init__(self, inputs: int, outputs: int, levels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) * 0.3)
        self.gamma = nn.Parameter(torch.rand(outputs) + 0.5)
        self.beta = nn.Parameter(torch.randn(outputs) * 0.1)
        self.register_buffer("largest", torch.tensor(0.0))
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        self.largest.copy_(torch.maximum(self.largest, x.detach().abs().amax()))
        step = self.largest / 15
        rounded = torch.round(x / step).clamp(0, 15) * step
        x = x + (rounded - x).detach()
        y = F.conv2d(x, RoundStraightThrough.apply(self.weight, self.levels), None, 1, 1)
        return F.relu(F.batch_norm(y, None, None, self.gamma, self.beta, training=True))


class ConvNet(nn.Sequential):
    """Convolutions with batch normalisation, dropout and rectifiers that overwrite."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 5, 3, padding=1, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 4, 3, stride=2),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        )


class QuantNet(nn.Sequential):
    def __init__(self, levels: int = 3) -> None:
        super().__init__(
            FakeQuantConv(2, 6, levels),
            FakeQuantConv(6, 4, levels),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        )


class MobileNet(nn.Module):
    """Functional activations, depthwise, grouped and dilated convolutions, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False)
        self.norm2 = nn.BatchNorm2d(6, affine=False)
        self.point = nn.Conv2d(6, 8, 1)
        self.skip = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.stem(x)))
        x = self.point(F.gelu(self.norm2(self.depthwise(x))))
        x = F.relu(x + self.skip(x), inplace=True)
        return self.head(x.mean((2, 3)))


class SharedNet(nn.Module):
    """Linear layers, one of them called twice, and two modules that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(98, 12)
        self.norm = nn.BatchNorm1d(12)
        self.twice = nn.Linear(12, 12)
        self.tied = nn.Linear(12, 12)
        self.tied.weight = self.twice.weight
        self.last = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x.flatten(1))))
        x = self.twice(torch.tanh(self.twice(x)))
        return self.last(F.leaky_relu(self.tied(x)))


def count_calls(function: Callable[..., object], calls: list[str], name: str):
    def counted(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    return counted


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        yield


@pytest.fixture
def conv_net() -> nn.Module:
    """In float64 and without dropout, so that plain formulas can be written beside it."""
    net = ConvNet().double()
    net[5].p = 0.0
    return net


@pytest.fixture
def mobile_net() -> nn.Module:
    return MobileNet().double()


@pytest.fixture
def shared_net() -> nn.Module:
    return SharedNet().double()


@pytest.fixture(params=["conv_net", "mobile_net", "shared_net"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    """Nets of all sorts in float64."""
    model: nn.Module = request.getfixturevalue(request.param)
    return model


@pytest.fixture
def dropout_net() -> nn.Module:
    return ConvNet()


@pytest.fixture
def quant_net() -> nn.Module:
    return QuantNet()


@pytest.fixture
def quant_twin(quant_net: nn.Module) -> nn.Module:
    twin = QuantNet(levels=2**20)
    twin.load_state_dict(quant_net.state_dict())
    return twin


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(5)
    images = torch.from_numpy(rng.normal(size=(8, 2, 7, 7)))
    return images, torch.from_numpy(rng.integers(0, CLASSES, size=8))


@pytest.fixture
def batch32(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].float(), batch[1]


@pytest.fixture
def counted_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Returns a list that grows by a word for every forward of given models and every backward."""

    def watch(**models: nn.Module) -> list[str]:
        calls: list[str] = []
        for name, model in models.items():
            monkeypatch.setattr(model, "forward", count_calls(model.forward, calls, name))
        monkeypatch.setattr(
            torch.autograd, "grad", count_calls(torch.autograd.grad, calls, "backward")
        )
        return calls

    return watch


@pytest.fixture
def fisher_by_hand():
    """The plain writing that the Fisher scores are compared with: {layer: a figure a channel}."""

    def by_hand(net, batch):
        """Loops over layers, calls, samples and channels, from outputs and their gradients."""
        images, labels = batch
        outputs = {}

        def keep(module, inputs, output):
            output.retain_grad()
            outputs.setdefault(module, []).append(output)

        hooks = [
            module.register_forward_hook(keep)
            for module in net.modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        F.cross_entropy(net(images.clone()), labels).backward()
        for hook in hooks:
            hook.remove()
        net.zero_grad()
        sums = {}
        for module, calls in outputs.items():
            per_channel = []
            for k in range(calls[0].shape[1]):
                squares = [
                    float(sum((each[n, k].detach() * each.grad[n, k]).sum() for each in calls))
                    ** 2
                    for n in range(len(images))
                ]
                per_channel.append(0.5 * sum(squares) / len(images))
            sums[module] = per_channel
        return sums

    return by_hand

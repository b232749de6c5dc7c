"""The small networks of ``mq_bench.py``: convolutions with batch norms that can be folded away."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["NETWORKS", "build_network", "folded"]


class ConvNorm(nn.Module):
    """Convolution, padded by half its kernel, batch norm, and a ReLU if it is to be activated."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU() if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (batch, outputs, height, width)."""
        activated: Tensor = self.activation(self.norm(self.conv(x)))
        return activated


class InvertedResidual(nn.Module):
    """Expand, filter by channel, project; added to its input where both have one shape."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1)
        self.depthwise = ConvNorm(hidden, hidden, stride=stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, activated=False)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Returns (batch, outputs, height / stride, width / stride)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


def _plain() -> nn.Sequential:
    """12 layers in a row: 11 convolutions and a linear one."""
    shape = ((12, 2), (16, 2), (16, 1), (16, 1), (24, 1), (24, 2))
    shape += ((32, 1), (32, 1), (32, 1), (48, 2), (48, 1))
    layers, inputs = [], 1
    for outputs, stride in shape:
        layers.append(ConvNorm(inputs, outputs, stride=stride))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def _inverted_residual() -> nn.Sequential:
    """18 layers: a stem, five inverted residuals of three layers each, a head, a linear one."""
    blocks: list[nn.Module] = [ConvNorm(1, 16, 5, stride=4)]
    inputs = 16
    for outputs, stride in ((16, 1), (24, 2), (24, 1), (32, 1), (32, 1)):
        blocks.append(InvertedResidual(inputs, outputs, stride=stride, expansion=3))
        inputs = outputs
    return nn.Sequential(
        *blocks, ConvNorm(inputs, 96, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "plain": _plain,
    "inverted_residual": _inverted_residual,
}
"""For images of one channel and ten classes, untrained."""


def build_network(name: str, seed: int) -> nn.Module:
    """Returns an untrained network of ``NETWORKS``, with its channels last in memory."""
    torch.manual_seed(seed)
    return NETWORKS[name]().to(memory_format=torch.channels_last)


def folded(model: nn.Module) -> nn.Module:
    """Returns a copy for evaluation whose batch norms are part of the convolutions."""
    plain = copy.deepcopy(model).eval()
    for each in plain.modules():
        if isinstance(each, ConvNorm) and isinstance(each.norm, nn.BatchNorm2d):
            each.conv = fuse_conv_bn_eval(each.conv, each.norm)
            each.norm = nn.Identity()
    return plain

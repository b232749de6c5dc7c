"""Speed of eight classic zero-cost proxies by one session, against a pass of its own for each.

    python benchmarks/proxy_speed.py

The network has the size of those in NAS-Bench-201 (Dong and Yang 2020): 16 channels in the stem, 3
stages of 5 cells with six 3x3 convolutions each, 1.53 M parameters. Inputs (64x3x32x32) and labels
are synthetic, drawn at random. The plain way is written here as in zero-cost-nas (Abdelfattah et
al., ICLR 2021), without its deep copies: every measure runs its own forward and backward, grasp
two forwards, one backward and a double one. The ways take turns, the medians of the repeats
count, and a ratio is the median over the repeats of the ratio within one; on one thread and on
two. Agreement is the largest
relative difference to the plain way, both in float64, and of the session in fp32 to the plain way
in float64. Prints one table and writes ``results/proxy_speed.json``.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from recording import write_result
from torch import Tensor, nn

from predictors.zerocost import ProxySession

_STEM, _CELLS, _STAGES, _CLASSES, _SIZE = 16, 5, 3, 10, 32
_NODES = 4
_FOUR = ("grad_norm", "snip", "plain", "fisher")


def main() -> None:
    """Times both ways, prints one table, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    torch.manual_seed(0)
    network = Network()
    images = torch.randn(options.batch, 3, _SIZE, _SIZE)
    labels = torch.randint(_CLASSES, (options.batch,))
    timings = {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        seconds = measured(ways(network, images, labels), options.repeats)
        medians = {name: round(float(np.median(each)), 4) for name, each in seconds.items()}
        timings[str(threads)] = {"median_s": medians, "ratios": ratios(seconds)}
    figures = {
        "data": "synthetic",
        "batch": options.batch,
        "repeats": options.repeats,
        "parameters": sum(each.numel() for each in network.parameters()),
        "by_threads": timings,
        "largest_relative_difference": agreement(network, images, labels),
    }
    _print(figures)
    print(write_result("proxy_speed", [0], figures))


class Cell(nn.Module):
    """Four nodes, each the sum of convolutions of all before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                f"{one}{other}": _convolution(channels, channels)
                for one, other in itertools.combinations(range(_NODES), 2)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the last node."""
        nodes = [x]
        for node in range(1, _NODES):
            nodes.append(sum(self.edges[f"{each}{node}"](nodes[each]) for each in range(node)))
        return nodes[-1]


class Reduction(nn.Module):
    """A residual block that halves the map and doubles the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.block = nn.Sequential(_convolution(channels, wide, 2), _convolution(wide, wide))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, wide, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of block and shortcut."""
        return self.block(x) + self.shortcut(x)


class Network(nn.Sequential):
    """Stem, stages of cells with reductions between them, classifier."""

    def __init__(self, stem: int = _STEM, cells: int = _CELLS) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False)]
        layers.append(nn.BatchNorm2d(stem))
        channels = stem
        for stage in range(_STAGES):
            if stage:
                layers.append(Reduction(channels))
                channels *= 2
            layers += [Cell(channels) for _ in range(cells)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, nn.Linear(channels, _CLASSES))


def _convolution(channels: int, wide: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, wide, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(wide),
    )


def grad_norm(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Norms of the gradients, by a pass of its own."""
    _backward(network, images, labels)
    return sum(each.weight.grad.norm().item() for each in _layers(network))


def snip(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Magnitudes of gradient times weight, by a pass of its own."""
    _backward(network, images, labels)
    return sum((each.weight.grad * each.weight).abs().sum().item() for each in _layers(network))


def plain(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Gradient times weight, by a pass of its own."""
    _backward(network, images, labels)
    return sum((each.weight.grad * each.weight).sum().item() for each in _layers(network))


def fisher(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Squares of output times gradient by channel, by a pass of its own with hooks."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: object, output: Tensor) -> None:
        output.retain_grad()
        outputs[layer] = output

    hooks = [layer.register_forward_hook(keep) for layer in _layers(network)]
    _backward(network, images, labels)
    for hook in hooks:
        hook.remove()
    total = 0.0
    for layer, output in outputs.items():
        products = (output * output.grad).flatten(2) if output.dim() > 2 else output * output.grad
        sums = products.sum(2) if products.dim() > 2 else products
        channels = sums.square().mean(0) / 2.0
        total += channels.sum().item() * layer.weight[0].numel()
    return total


def grasp(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Weight times Hessian times gradient, by a backward and a double backward."""
    weights = [each.weight for each in _layers(network)]
    fixed = torch.autograd.grad(F.cross_entropy(network(images), labels), weights)
    loss = F.cross_entropy(network(images), labels)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    network.zero_grad()
    sum((one * other).sum() for one, other in zip(fixed, gradients, strict=True)).backward()
    return sum(-(each.grad * each).sum().item() for each in weights)


def jacov(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Eigenvalues of the correlations between input gradients, by a pass of its own."""
    inputs = images.clone().requires_grad_()
    network.zero_grad()
    outputs = network(inputs)
    outputs.backward(torch.ones_like(outputs))
    correlations = np.corrcoef(inputs.grad.flatten(1).double().numpy())
    values = np.linalg.eigvalsh(correlations) + 1e-5
    return -float(np.sum(np.log(values) + 1.0 / values))


def synflow(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Flow of magnitudes without normalisations, by a pass of its own in float64, as its log."""
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    values = {name: each.clone() for name, each in network.state_dict().items()}
    type_before = images.dtype
    network.double().zero_grad()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    for norm in norms:
        norm.forward = lambda x: x
    network(torch.ones(1, *images.shape[1:], dtype=torch.float64)).sum().backward()
    flow = sum((each.weight.grad * each.weight).sum().item() for each in _layers(network))
    for norm in norms:
        del norm.forward
    network.zero_grad()
    network.to(type_before).load_state_dict(values)
    return math.log(flow)


def l2_norm(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Norms of the weights, without a pass."""
    return sum(each.weight.norm().item() for each in _layers(network))


PLAIN: dict[str, Callable[[nn.Module, Tensor, Tensor], float]] = {
    "grad_norm": grad_norm,
    "snip": snip,
    "grasp": grasp,
    "fisher": fisher,
    "plain": plain,
    "jacov": jacov,
    "synflow": synflow,
    "l2_norm": l2_norm,
}
"""The eight measures, each with its own passes."""


def _backward(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    return (each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear))


def ways(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Callable[[], object]]:
    """Returns what is timed, by name."""
    session = ProxySession(network, (images, labels))
    sets = {
        "session, eight": list(PLAIN),
        "session, four": _FOUR,
        "session, without grasp": [name for name in PLAIN if name != "grasp"],
    }
    return {
        "forward and backward": lambda: _backward(network, images, labels),
        **{name: lambda names=names: session.compute(names) for name, names in sets.items()},
        **{
            name: lambda measure=measure: measure(network, images, labels)
            for name, measure in PLAIN.items()
        },
    }


def measured(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of every way and repeat; one more repeat warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Returns the compared ratios: median, least and largest over the repeats."""
    each = {name: np.array(values) for name, values in seconds.items()}
    found = {
        "eight: plain / session": _sum(each, PLAIN) / each["session, eight"],
        "four: plain / session": _sum(each, _FOUR) / each["session, four"],
        "without grasp: session / forward and backward": each["session, without grasp"]
        / each["forward and backward"],
    }
    return {
        name: {
            "median": round(float(np.median(values)), 2),
            "least": round(float(values.min()), 2),
            "largest": round(float(values.max()), 2),
        }
        for name, values in found.items()
    }


def _sum(seconds: dict[str, np.ndarray], names: Sequence[str] | dict[str, object]) -> np.ndarray:
    return np.sum([seconds[name] for name in names], axis=0)


def agreement(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Returns the largest relative differences of the session to the plain way in float64."""
    found = {"fp32": ProxySession(network, (images, labels)).compute(PLAIN)}
    network.double()
    exact = images.double()
    found["float64"] = ProxySession(network, (exact, labels)).compute(PLAIN)
    expected = {name: measure(network, exact, labels) for name, measure in PLAIN.items()}
    network.float()
    return {
        kind: {
            name: float(f"{abs(scores[name].value / value - 1.0):.2g}")
            for name, value in expected.items()
        }
        for kind, scores in found.items()
    }


def _print(figures: dict[str, dict]) -> None:
    for threads, timing in figures["by_threads"].items():
        print(f"{f'median, threads: {threads}':48}{'s':>8}")
        for name, value in timing["median_s"].items():
            print(f"{name:48}{value:8.3f}")
        print(f"{'ratio':48}{'median':>8}{'least':>8}{'largest':>8}")
        for name, each in timing["ratios"].items():
            print(f"{name:48}" + "".join(f"{value:8.2f}" for value in each.values()))
    print(f"{'largest relative difference to float64':48}{'float64':>10}{'fp32':>10}")
    differences = figures["largest_relative_difference"]
    for name in PLAIN:
        print(f"{name:48}{differences['float64'][name]:10.1e}{differences['fp32'][name]:10.1e}")


if __name__ == "__main__":
    main()

"""Training speed of block types on maps of several sizes: which blocks a CPU can afford to train.

    python benchmarks/block_speed.py

Times forward and backward of one block in torch, channels last, batch 64, expansion 4: inverted
residual with a 3x3 or 5x5 depthwise convolution, and the fused block, whose dense 3x3 replaces
expansion and depthwise. Types take turns; the median of the repeats counts. Prints one table and
writes ``results/block_speed.json``.
"""

import time

import numpy as np
import torch
from recording import write_result
from torch import nn

_BATCH, _EXPAND, _REPEATS, _WARM_UP = 64, 4, 25, 5
_SIZES = ((16, 14), (16, 7), (24, 4), (32, 4))  # channels, height and width of the map


def main() -> None:
    """Times every type on every map, prints one table, writes one file."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    figures = {}
    print(f"{'channels x map':18}" + "".join(f"{name:>16}" for name in _blocks(8)))
    for channels, size in _SIZES:
        x = torch.rand(_BATCH, channels, size, size).to(memory_format=torch.channels_last)
        milliseconds = _timed(_blocks(channels), x.requires_grad_())
        figures[f"{channels}x{size}x{size}"] = milliseconds
        cells = "".join(f"{value:13.3f} ms" for value in milliseconds.values())
        print(f"{f'{channels} x {size}x{size}':18}{cells}")
    print(write_result("block_speed", [0], {"batch": _BATCH, "median_ms": figures}))


def _blocks(channels: int) -> dict[str, nn.Module]:
    hidden = channels * _EXPAND
    blocks = {
        f"depthwise {kernel}x{kernel}": nn.Sequential(
            _conv(channels, hidden, 1),
            _conv(hidden, hidden, kernel, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )
        for kernel in (3, 5)
    }
    fused = nn.Sequential(_conv(channels, hidden, 3), nn.Conv2d(hidden, channels, 1, bias=False))
    return {**blocks, "fused 3x3": fused}


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _timed(blocks: dict[str, nn.Module], x: torch.Tensor) -> dict[str, float]:
    models = {name: block.to(memory_format=torch.channels_last) for name, block in blocks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(_WARM_UP + _REPEATS):
        for name, model in models.items():
            started = time.perf_counter()
            model(x).square().mean().backward()
            seconds[name].append(time.perf_counter() - started)
    return {
        name: round(1000.0 * float(np.median(each[_WARM_UP:])), 3)
        for name, each in seconds.items()
    }


if __name__ == "__main__":
    main()

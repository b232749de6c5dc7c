"""Speed of fake quantization, and what it adds to a training step.

    python benchmarks/quantizer_speed.py

First table: one tensor of 4,194,304 fp32 values, through each format and through what torch has
itself: its own fake quantization to int8, and a cast to float8 and back, bare and as a quantizer
needs it (divided by a scale, clamped, multiplied again). Second table: a training step (forward,
loss, backward, clipped gradients, optimiser) of random subnets of the shipped Fashion-MNIST space
in fp32 and with their formats. All take turns; medians count. Writes
``results/quantizer_speed.json``.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from recording import write_result
from torch import Tensor, nn

from apqkit.config import load_config
from apqkit.quant import fake_quantize
from apqkit.spaces import build_space
from apqkit.spaces.draws import draw_uniform
from apqkit.types import Layer

_VALUES = 4_194_304
_SCALED = ("int8", "int4", "fp8_e4m3", "fp8_e5m2", "fp8_e3m4", "fp6_e2m3", "fp4_e2m1")
_UNSCALED = ("bf16", "mxint8", "mxfp8_e4m3", "mxfp4_e2m1", "nvfp4")
_WARM_UP = 3


def main() -> None:
    """Times both, prints two tables, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--subnets", type=int, default=8)
    options = parser.parse_args()
    figures: dict[str, object] = {"values": _VALUES, "repeats": options.repeats}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        milliseconds = _medians(_quantizers(), options.repeats)
        fastest = min(value for name, value in milliseconds.items() if name.startswith("torch"))
        print(f"\n{'quantizer':34}{'ms':>9}{'of the fastest of torch':>26}   ({threads} threads)")
        for name, value in milliseconds.items():
            print(f"{name:34}{value:9.2f}{value / fastest:26.2f}")
        figures[f"{threads}_threads_ms"] = milliseconds
    steps = _training_steps(options.subnets, options.repeats)
    ratio = steps["with formats"] / steps["fp32"]
    print(f"\n{'training step, mean of subnets':34}{'ms':>9}")
    for name, value in steps.items():
        print(f"{name:34}{value:9.2f}")
    print(f"{'ratio':34}{ratio:9.2f}")
    figures |= {"subnets": options.subnets, "step_ms": steps, "step_ratio": round(ratio, 3)}
    print(write_result("quantizer_speed", [0], figures))


def _quantizers() -> dict[str, Callable[[], Tensor]]:
    x = torch.randn(_VALUES, generator=torch.Generator().manual_seed(0))
    step = float(x.abs().max()) / 127
    scale8 = x.abs().max() / 448.0

    def cast() -> Tensor:
        return (x / scale8).clamp_(-448.0, 448.0).to(torch.float8_e4m3fn).float().mul_(scale8)

    timed: dict[str, Callable[[], Tensor]] = {
        "torch fake_quantize, int8": lambda: torch.fake_quantize_per_tensor_affine(
            x, step, 0, -128, 127
        ),
        "torch float8 cast and back, bare": lambda: x.to(torch.float8_e4m3fn).float(),
        "torch float8 cast, with a scale": cast,
    }
    for name in _SCALED:
        timed[f"apqkit {name}"] = lambda name=name: fake_quantize(x, name, scale=0.03)
    for name in _UNSCALED:
        timed[f"apqkit {name}"] = lambda name=name: fake_quantize(x, name)
    return timed


def _medians(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(_WARM_UP + repeats):
        for name, call in timed.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {
        name: round(1000.0 * float(np.median(each[_WARM_UP:])), 3)
        for name, each in seconds.items()
    }


def _training_steps(subnets: int, repeats: int) -> dict[str, float]:
    config = load_config("fashion-mnist")
    torch.set_num_threads(config.threads)
    space = build_space(config.space, (1, 28, 28), 10)
    supernet = space.supernet(0).train()
    optimizer = torch.optim.AdamW(supernet.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(config.supernet.batch_size, 1, 28, 28, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (len(images),), generator=generator)

    def step(layers: Sequence[Layer]) -> None:
        supernet.select(layers)  # type: ignore[operator]
        optimizer.zero_grad()
        F.cross_entropy(supernet(images), labels).backward()
        nn.utils.clip_grad_norm_(supernet.parameters(), config.supernet.clip_norm)
        optimizer.step()

    table = space.network(draw_uniform(space, subnets, np.random.default_rng(0)))
    kinds = {"fp32": table.in_fp32(), "with formats": table}
    timed = {
        f"{kind} {index}": partial(step, each.layers(index))
        for index in range(subnets)
        for kind, each in kinds.items()
    }
    medians = _medians(timed, repeats)
    return {
        kind: float(np.mean([v for name, v in medians.items() if name.startswith(kind)]))
        for kind in kinds
    }


if __name__ == "__main__":
    main()

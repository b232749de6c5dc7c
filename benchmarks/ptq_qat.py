"""Post-training quantization against quantization-aware training, on a depthwise network.

    python benchmarks/ptq_qat.py --data DIR [--seeds 3]

Trains a small MobileNet (depthwise separable, batch norms) on Fashion-MNIST in fp32, then
quantizes it with batch norms folded: weights per tensor and per channel, by the largest magnitude
and by searched ranges, at 8 and 4 bits; then trains the 4-bit ones on with quantization in the
loop (straight through, or with learned steps). The story is Krishnamoorthi's (2018): folding gives
the channels of depthwise weights very different ranges, so that one scale for all loses most.
Accuracies are on the 10,000 test images; nothing is chosen by them. Prints one table and writes
``results/ptq_qat.json``.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from recording import write_result
from torch import Tensor, nn

from apqkit.config import Config, load_config
from apqkit.data import Splits, load_splits
from apqkit.progress import RichProgress
from apqkit.quant import LayerFormats, QuantScheme, calibrate, prepare
from apqkit.training import finetune
from apqkit.training.evaluate import evaluate
from apqkit.types import Progress

_EPOCHS, _QAT_EPOCHS = 4, 2
_RATE, _QAT_RATE = 4e-3, 1e-3
_TENSOR = QuantScheme(weight_granularity="tensor", weight_rule="minmax", activation_rule="minmax")
_CHANNEL = QuantScheme(weight_rule="minmax", activation_rule="minmax")
_SEARCHED = QuantScheme(weight_rule="mse", activation_rule="mse")
_LEARNED = QuantScheme(weight_rule="mse", weight_training="lsq", activation_training="lsq")
_PTQ = {
    "W8A8 per tensor": (LayerFormats("int8", "int8"), _TENSOR),
    "W8A8 per channel": (LayerFormats("int8", "int8"), _CHANNEL),
    "W4A8 per tensor": (LayerFormats("int4", "int8"), _TENSOR),
    "W4A8 per channel": (LayerFormats("int4", "int8"), _CHANNEL),
    "W4A8 per channel, searched ranges": (LayerFormats("int4", "int8"), _SEARCHED),
    "W4A4 per channel, searched ranges": (LayerFormats("int4", "int4"), _SEARCHED),
}
_QAT = {
    "W4A8 per tensor, trained": (LayerFormats("int4", "int8"), _TENSOR),
    "W4A8 per channel, trained": (LayerFormats("int4", "int8"), _CHANNEL),
    "W4A4 per channel, trained": (LayerFormats("int4", "int4"), QuantScheme()),
    "W4A4 per channel, learned steps": (LayerFormats("int4", "int4"), _LEARNED),
}


def main() -> None:
    """Trains, quantizes, trains on, prints one table, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("APQKIT_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.data is None:
        raise SystemExit(
            "ptq_qat needs --data DIR or APQKIT_DATA with fashion_mnist/fashion_mnist.npz "
            "(https://github.com/zalandoresearch/fashion-mnist)"
        )
    path = Path(options.data) / "fashion_mnist" / "fashion_mnist.npz"
    seeds = list(range(options.seeds))
    with RichProgress() as progress:
        runs = [_accuracies(path, seed, progress) for seed in seeds]
    accuracies = {name: [run[name] for run in runs] for name in runs[0]}
    print(f"\n{'test accuracy':38}{'mean':>8}" + "".join(f"{f'seed {s}':>9}" for s in seeds))
    for name, values in accuracies.items():
        print(f"{name:38}{np.mean(values):8.4f}" + "".join(f"{v:9.4f}" for v in values))
    figures = {
        "epochs": {"fp32": _EPOCHS, "quantized": _QAT_EPOCHS},
        "accuracy": {name: [round(v, 4) for v in values] for name, values in accuracies.items()},
    }
    print(write_result("ptq_qat", seeds, figures))


def _accuracies(path: Path, seed: int, progress: Progress) -> dict[str, float]:
    config = _config(path, seed, _EPOCHS, _RATE)
    torch.set_num_threads(config.threads)
    splits = load_splits(config.data, seed)
    model = _mobilenet(seed)
    finetune(model, splits, config, progress=progress)
    test = splits.read_test()
    found = {"fp32": float(evaluate(model.eval(), test).mean())}
    images = splits.calibration_images(512).images()
    for name, (formats, scheme) in _PTQ.items():
        prepared = prepare(model, formats, scheme=scheme)
        calibrate(prepared, images)
        found[name] = float(evaluate(prepared, test).mean())
    for name, (formats, scheme) in _QAT.items():
        found[name] = _trained(model, (formats, scheme), splits, images, progress, path, seed)
    return found


def _trained(
    model: nn.Module,
    how: tuple[LayerFormats, QuantScheme],
    splits: Splits,
    images: Tensor,
    progress: Progress,
    path: Path,
    seed: int,
) -> float:
    prepared = prepare(model, how[0], scheme=how[1])
    calibrate(prepared, images)
    finetune(prepared, splits, _config(path, seed, _QAT_EPOCHS, _QAT_RATE), progress=progress)
    calibrate(prepared, images)
    return float(evaluate(prepared, splits.read_test()).mean())


def _config(path: Path, seed: int, epochs: int, rate: float) -> Config:
    return load_config(
        "fashion-mnist",
        [
            f"data.path={path}",
            f"seed={seed}",
            f"finetune.epochs={epochs}",
            f"finetune.learning_rate={rate}",
        ],
    )


def _mobilenet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [_conv(1, 16, 3, stride=2), *_separable(16, 32, 1), *_separable(32, 64, 2)]
    blocks += [*_separable(64, 64, 1), *_separable(64, 96, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)).to(
        memory_format=torch.channels_last
    )


def _separable(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return _conv(inputs, inputs, 3, stride=stride, groups=inputs), _conv(inputs, outputs, 1)


def _conv(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


if __name__ == "__main__":
    main()

"""What ``mq_bench.py build`` measures: a trained network's accuracy with a format for each layer.

Only the weights' formats vary from layer to layer. What enters every layer is always quantized to
8 bits, with ranges that are found once: to bits of activations all scores of weights are blind,
and would all lose alike. Letters: n settings, L layers, F formats.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mq_networks import build_network, folded
from numpy.typing import NDArray
from torch import Tensor, nn

from apqkit.config import Config, load_config
from apqkit.data import Splits, load_splits
from apqkit.formats import format_named
from apqkit.quant import LayerFormats, QuantScheme, calibrate, prepare
from apqkit.quant.layers import QuantConv, QuantLinear
from apqkit.quant.weights import quantize_weight
from apqkit.training import finetune
from apqkit.types import Progress

__all__ = [
    "FORMATS",
    "HELD_OUT_IMAGES",
    "SCHEME",
    "Trained",
    "draw_settings",
    "measured",
    "quantizers",
    "train_network",
]

FORMATS = ("int2", "int3", "int4", "int8")
HELD_OUT_IMAGES = 5000
SCHEME = QuantScheme()
_EPOCHS, _RATE = 4, 4e-3
_CALIBRATION_IMAGES = 512
_BATCH = 256  # images at once: what enters a layer then fits the cache

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """A trained network without batch norms, and its images.

    Attributes:
        name: Of the network.
        model: For evaluation, in fp32.
        splits: Its training images; the validation images are held out for the settings.
        config: How it was trained.
    """

    name: str
    model: nn.Module
    splits: Splits
    config: Config

    @property
    def digest(self) -> str:
        """Says whether two measurements are of the same weights and images."""
        digest = hashlib.sha256(self.splits.fingerprint.encode())
        for each in self.model.state_dict().values():
            digest.update(each.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def train_network(name: str, images: Path, seed: int, work: Path, progress: Progress) -> Trained:
    """Returns a network trained on Fashion-MNIST; goes on where an earlier call was cut short."""
    config = load_config(
        "fashion-mnist",
        [
            f"data.path={images}",
            f"data.validation={HELD_OUT_IMAGES}",
            "data.augment_flip=true",
            f"seed={seed}",
            f"finetune.epochs={_EPOCHS}",
            f"finetune.learning_rate={_RATE}",
        ],
    )
    splits = load_splits(config.data, seed)
    model = build_network(name, seed)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "training.safetensors"
    finetune(model, splits, config, checkpoint_path=path, progress=progress)
    return Trained(name, folded(model), splits, config)


def draw_settings(count: int, layers: int, seed: int) -> IntArray:
    """Returns (count, layers) different settings; of more settings the first are the same.

    Each setting has a base format and a share of layers that keep it, both drawn at random; all
    other layers draw their format. Were all drawn alike, mean bits would hardly vary.
    """
    rng = np.random.default_rng([seed, layers])
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        base, share = rng.integers(len(FORMATS)), rng.random()
        others = rng.integers(len(FORMATS), size=layers)
        setting = np.where(rng.random(layers) < share, base, others)
        found.setdefault(tuple(setting.tolist()))
    return np.array(list(found), dtype=np.int64)


def quantizers() -> dict[str, Any]:
    """Returns for each format the function that quantizes a layer's weights, by channel."""

    def quantizer(name: str) -> Any:
        number_format = format_named(name)
        return lambda weight: quantize_weight(weight, number_format, SCHEME)

    return {name: quantizer(name) for name in FORMATS}


class _Measurer:
    """Puts weights that are quantized beforehand into a network that is calibrated once.

    What enters each module of the network is kept: of a setting that starts as the one before it,
    only what follows is computed.
    """

    def __init__(self, trained: Trained) -> None:
        model = prepare(trained.model, LayerFormats("int8", "int8"), scheme=SCHEME)
        calibrate(model, trained.splits.calibration_images(_CALIBRATION_IMAGES).images())
        assert isinstance(model, nn.Sequential)
        self.modules = list(model)
        self.layers: list[QuantConv | QuantLinear] = []
        self.homes: list[int] = []  # of each layer, the place of its module
        for place, module in enumerate(self.modules):
            found = [x for x in module.modules() if isinstance(x, QuantConv | QuantLinear)]
            self.layers += found
            self.homes += [place] * len(found)
        self.weights: list[list[Tensor]] = [
            [each(layer.weight.detach()) for each in quantizers().values()]
            for layer in self.layers
        ]
        images = trained.splits.validation
        self.labels = images.targets.split(_BATCH)
        first = list(images.images().split(_BATCH))
        self.entering: list[list[Tensor]] = [first] + [list(first) for _ in self.modules[1:]]
        self.setting: Sequence[int] = [-1] * len(self.layers)

    def correct(self, setting: Sequence[int]) -> tuple[int, int]:
        """Returns how many images of even and of odd places are classified rightly."""
        pairs = enumerate(zip(setting, self.setting, strict=True))
        changed = [layer for layer, (now, before) in pairs if now != before]
        start = self.homes[min(changed, default=0)]
        for layer in changed:
            self.layers[layer].frozen_weight.copy_(self.weights[layer][setting[layer]])
        self.setting = list(setting)
        hits = torch.cat([self._hits(batch, start) for batch in range(len(self.labels))])
        return int(hits[::2].sum()), int(hits[1::2].sum())

    @torch.inference_mode()
    def _hits(self, batch: int, start: int) -> Tensor:
        x = self.entering[start][batch]
        for place in range(start, len(self.modules)):
            self.entering[place][batch] = x
            x = self.modules[place](x)
        return x.argmax(dim=1) == self.labels[batch]


def measured(
    trained: Trained, count: int, seed: int, work: Path, progress: Progress
) -> tuple[IntArray, IntArray]:
    """Returns (n, L) settings and (n, 2) how many images of each half are classified rightly.

    Each setting is a line of a file as soon as it is measured, and is not measured again.

    Raises:
        SystemExit: The file is of other weights or images.
    """
    torch.set_num_threads(1)
    measurer = _Measurer(trained)
    settings = draw_settings(count, len(measurer.layers), seed)
    path = work / "settings.jsonl"
    correct = _read_rows(path, trained.digest)
    waiting = sorted(each for each in settings.tolist() if _text(each) not in correct)
    label = f"settings of {trained.name}"
    with path.open("a", encoding="utf-8") as file, progress.task(label, count) as advance:
        advance(count - len(waiting))
        for setting in waiting:
            text = _text(setting)
            correct[text] = measurer.correct(setting)
            file.write(json.dumps({"setting": text, "correct": correct[text]}) + "\n")
            file.flush()
            advance(1)
    return settings, np.array([correct[_text(each)] for each in settings], dtype=np.int64)


def _read_rows(path: Path, digest: str) -> dict[str, tuple[int, int]]:
    """Returns the rows of a file, which is begun, or cut after its last whole line."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1] or json.dumps({"network": digest}) + "\n"
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    header, *rows = [json.loads(line) for line in whole.splitlines()]
    if header != {"network": digest}:
        raise SystemExit(f"{path} is of other weights or images: delete it and build anew")
    return {row["setting"]: tuple(row["correct"]) for row in rows}


def _text(setting: Iterable[int]) -> str:
    return "".join(str(each) for each in setting)

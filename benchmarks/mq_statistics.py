"""What ``mq_bench.py build`` stores about the layers of a network, so that scores need no torch.

Letters: L layers, F formats.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mq_settings import FORMATS, Trained, quantizers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from apqkit.formats import format_named
from predictors.zerocost import (
    SENSITIVITIES,
    HessianEffort,
    LayerStatistics,
    ProxySession,
    with_output_changes,
)
from predictors.zerocost.layer_statistics import layer_statistics
from predictors.zerocost.orthogonality import orthogonality_weights, suffix_means

__all__ = [
    "BATCH",
    "HESSIAN",
    "Scores",
    "activation_means",
    "network_statistics",
    "read_scores",
    "sensitivity_scores",
    "virtual_gradients",
    "write_scores",
]

BATCH = 256
HESSIAN = HessianEffort(most_vectors=100, most_iterations=60)
_SHARP_BETA = 10.0  # of OMPQ; that of the table is 1

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of layers in formats.

    Attributes:
        sign: 1 where more is predicted better, -1 where less is.
        values: (L, F).
    """

    sign: int
    values: FloatArray


def network_statistics(trained: Trained) -> tuple[LayerStatistics, Tensor]:
    """Returns statistics of each layer, and the training images that they are of."""
    batch = trained.splits.calibration_images(BATCH)
    images, labels = batch.images(), batch.targets
    session = ProxySession(trained.model, (images, labels), quantize=quantizers())
    found = layer_statistics(
        session,
        bits={name: float(format_named(name).bits) for name in FORMATS},
        activation_bits=dict.fromkeys(FORMATS, 8.0),
        hessian=HESSIAN,
        proxies=["synflow"],
    )
    return with_output_changes(session, found), images


def sensitivity_scores(statistics: LayerStatistics) -> dict[str, Scores]:
    """Returns every score of ``SENSITIVITIES``, and OMPQ with its sharper weights."""
    scores = {
        name: Scores(1 if each.direction == "up" else -1, each.score(statistics))
        for name, each in SENSITIVITIES.items()
    }
    weights = orthogonality_weights(statistics.cka, _SHARP_BETA)
    assert statistics.bits is not None
    sharp = np.outer(suffix_means(weights), statistics.bits)
    return {**scores, f"ompq_beta_{_SHARP_BETA:.0f}": Scores(1, sharp)}


def write_scores(
    path: Path, layers: tuple[str, ...], formats: tuple[str, ...], scores: dict[str, Scores]
) -> None:
    """Writes one line for each score and layer."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["score", "better", "layer", *formats])
        for name, each in scores.items():
            better = "up" if each.sign > 0 else "down"
            for layer, values in zip(layers, each.values.tolist(), strict=True):
                writer.writerow([name, better, layer, *map(repr, values)])


def read_scores(
    path: Path, layers: tuple[str, ...], formats: tuple[str, ...]
) -> dict[str, Scores]:
    """Reads what :func:`write_scores` wrote.

    Raises:
        ValueError: The file has other formats, or a score other layers.
    """
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    if header != ["score", "better", "layer", *formats]:
        raise ValueError(f"{path} must have scores in {', '.join(formats)}, got {header[3:]}")
    rows: dict[str, list[list[str]]] = {}
    for name, *rest in lines:
        rows.setdefault(name, []).append(rest)
    found = {}
    for name, own in rows.items():
        if [layer for _, layer, *_ in own] != list(layers):
            raise ValueError(f"{path}: {name} must have the layers {', '.join(layers)}")
        values = np.array([[float(each) for each in row[2:]] for row in own])
        found[name] = Scores(1 if own[0][0] == "up" else -1, values)
    return found


def activation_means(
    model: nn.Module, images: Tensor, layers: tuple[str, ...]
) -> dict[str, Tensor]:
    """Returns for each layer the mean magnitude of each channel that enters it."""
    found: dict[str, Tensor] = {}

    def watcher(layer: str) -> object:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            found[layer] = inputs[0].abs().transpose(0, 1).flatten(1).mean(1)

        return watch

    hooks = [
        model.get_submodule(layer.removesuffix(".weight")).register_forward_pre_hook(
            watcher(layer)  # type: ignore[arg-type]
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return {layer: found[layer] for layer in layers}


def virtual_gradients(
    model: nn.Module, images: Tensor, layers: tuple[str, ...]
) -> dict[str, Tensor]:
    """Returns dR/dw of synflow: R is the sum of outputs for ones, all parameters made positive."""
    positive = {name: each.detach().double().abs() for name, each in model.named_parameters()}
    weights = [positive[layer].requires_grad_() for layer in layers]
    ones = torch.ones_like(images[:1], dtype=torch.float64)
    outputs = functional_call(model, positive, (ones,))
    return dict(zip(layers, torch.autograd.grad(outputs.sum(), weights), strict=True))

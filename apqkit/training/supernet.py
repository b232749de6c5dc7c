"""The supernet's recipe: a sandwich in fp32, then a shorter one with random formats.

Each step runs the largest subnet on labels and others on its detached soft output (sandwich rule
with in-place distillation); gradients add up and one optimiser step follows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from apqkit.config import Config, SupernetConfig
from apqkit.data import Splits
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_uniform, draw_uniform_formats
from apqkit.training.loop import Accumulate, Checkpoint, Epoch, Recipe, train
from apqkit.types import Layer, LayerTable, Progress, Space, Supernet

__all__ = ["train_supernet"]

_FP32_STREAM, _QUANTIZED_STREAM = 101, 102


@dataclass(frozen=True)
class _Sandwich:
    """What every step of a phase shares."""

    supernet: Supernet
    settings: SupernetConfig
    largest: Sequence[Layer]
    smallest: Sequence[Layer]

    def begin_epoch(
        self,
        students: Callable[[int], Sequence[Sequence[Layer]]],
        first_step: int,
        *,
        alone: float = 0.0,
    ) -> Accumulate:
        """Returns the function that accumulates one step's gradients.

        Args:
            students: For a step of the epoch, the random subnets beside largest and smallest.
            first_step: Steps of the phase before this epoch.
            alone: Steps of the phase that belong to the largest subnet alone.
        """

        def accumulate(images: Tensor, labels: Tensor, step: int) -> dict[str, float]:
            teacher, loss = self._teach(images, labels)
            losses = {"largest": loss}
            if first_step + step < alone:
                return losses
            if (first_step + step) % self.settings.smallest_every == 0:
                losses["smallest"] = self._learn(images, self.smallest, teacher)
            drawn = [self._learn(images, layers, teacher) for layers in students(step)]
            return {**losses, "random": float(np.mean(drawn))}

        return accumulate

    def _teach(self, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        self.supernet.select(self.largest)
        logits = self.supernet(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        loss.backward()
        return logits.detach().softmax(dim=1), loss.item()

    def _learn(self, images: Tensor, layers: Sequence[Layer], teacher: Tensor) -> float:
        self.supernet.select(layers)
        loss = F.cross_entropy(self.supernet(images), teacher)
        loss.backward()
        return loss.item()


def train_supernet(
    supernet: nn.Module,
    space: Space,
    splits: Splits,
    config: Config,
    *,
    directory: Path | None,
    progress: Progress,
) -> list[Epoch]:
    """Trains a supernet in place through both phases and returns the history.

    Args:
        supernet: As ``space.supernet(seed)`` returns it.
        space: Whose networks it holds.
        splits: Training images come from here.
        config: ``supernet``, ``data`` and ``seed`` are read.
        directory: Where checkpoints go, or None.
        progress: Shows the epochs.
    """
    supernet.train()
    settings = config.supernet
    fp32 = _sandwich(supernet, space, settings)
    recipes = [_fp32_recipe(fp32, space, settings)]
    if settings.quantized_epochs:
        recipes.append(_quantized_recipe(fp32, space, settings))
    history: list[Epoch] = []
    for recipe in recipes:
        checkpoint = None
        if directory is not None:
            path = directory / f"checkpoint_{recipe.phase}.safetensors"
            checkpoint = Checkpoint(path, "delete the run or use --redo supernet")
        history += train(
            supernet,
            recipe,
            splits.train,
            config.data,
            seed=config.seed,
            checkpoint=checkpoint,
            progress=progress,
        )
    return history


def _sandwich(supernet: nn.Module, space: Space, settings: SupernetConfig) -> _Sandwich:
    largest, smallest = (
        space.network(picks(space.dims)).in_fp32().layers()
        for picks in (largest_picks, smallest_picks)
    )
    return _Sandwich(supernet, settings, largest, smallest)  # type: ignore[arg-type]


def _fp32_recipe(sandwich: _Sandwich, space: Space, settings: SupernetConfig) -> Recipe:
    count = settings.random_subnets

    def begin_epoch(epoch: int, rng: np.random.Generator, steps: int) -> Accumulate:
        table = space.network(draw_uniform(space, steps * count, rng)).in_fp32()
        alone = settings.warmup_share * settings.epochs * steps

        def students(step: int) -> list[list[Layer]]:
            return _layers(table, step, count)

        return sandwich.begin_epoch(students, epoch * steps, alone=alone)

    return _recipe("fp32", _FP32_STREAM, settings, begin_epoch)


def _quantized_recipe(sandwich: _Sandwich, space: Space, settings: SupernetConfig) -> Recipe:
    count = settings.random_subnets

    def begin_epoch(epoch: int, rng: np.random.Generator, steps: int) -> Accumulate:
        mixed = space.network(draw_uniform(space, steps * count, rng))
        uniform = space.network(draw_uniform_formats(space, steps, rng))

        def students(step: int) -> list[list[Layer]]:
            return [*_layers(mixed, step, count), *_layers(uniform, step, 1)]

        return sandwich.begin_epoch(students, epoch * steps)

    return _recipe("quantized", _QUANTIZED_STREAM, settings, begin_epoch)


def _recipe(
    phase: str,
    stream: int,
    settings: SupernetConfig,
    begin_epoch: Callable[[int, np.random.Generator, int], Accumulate],
) -> Recipe:
    fp32 = phase == "fp32"
    return Recipe(
        phase=phase,
        label=f"supernet, {phase}",
        stream=stream,
        epochs=settings.epochs if fp32 else settings.quantized_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate if fp32 else settings.quantized_learning_rate,
        rate_key=f"supernet.{'' if fp32 else 'quantized_'}learning_rate",
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        begin_epoch=begin_epoch,
    )


def _layers(table: LayerTable, step: int, count: int) -> list[list[Layer]]:
    return [table.layers(step * count + index) for index in range(count)]

"""The one training loop: epochs, schedule, checkpoint every epoch, resumable, repeatable."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apqkit.config import DataConfig
from apqkit.data.images import ImageSet, augment
from apqkit.errors import NonFiniteError, RunError, TrainingError
from apqkit.training.checkpoint import (
    load_tensors,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
)
from apqkit.types import Progress

__all__ = ["Checkpoint", "Epoch", "Recipe", "train"]

Accumulate = Callable[[Tensor, Tensor, int], dict[str, float]]
"""(images, labels, step of the epoch) -> losses by name; adds gradients to the parameters."""


@dataclass(frozen=True)
class Epoch:
    """What a finished epoch leaves in the history.

    Attributes:
        phase: Name of the phase.
        number: Counted from 1 within the phase.
        losses: Mean of each loss that the steps reported.
    """

    phase: str
    number: int
    losses: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """One phase of training.

    Attributes:
        phase: Its name, for the history.
        label: What the progress bar says.
        stream: Number that keeps its random draws apart from those of other phases.
        epochs: How often the images are seen; what fills no batch sits out an epoch.
        batch_size: Images a step.
        learning_rate: Peak of the schedule.
        rate_key: Where the configuration sets it, for the message when training diverges.
        weight_decay: Of AdamW.
        clip_norm: Largest norm of the gradient.
        warmup: Share of the steps with a rising rate; a half cosine follows.
        begin_epoch: Called before each epoch with a generator and the number of its steps;
            returns the function that accumulates a step's gradients.
    """

    phase: str
    label: str
    stream: int
    epochs: int
    batch_size: int
    learning_rate: float
    rate_key: str
    weight_decay: float
    clip_norm: float
    begin_epoch: Callable[[int, np.random.Generator, int], Accumulate]
    warmup: float = 0.05


@dataclass(frozen=True)
class Checkpoint:
    """Where a phase keeps its state after every epoch.

    Attributes:
        path: The file.
        cure: What to do about a damaged file, for the message.
    """

    path: Path
    cure: str


def train(
    model: nn.Module,
    recipe: Recipe,
    images: ImageSet,
    data: DataConfig,
    *,
    seed: int,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> list[Epoch]:
    """Trains a model in place and returns its history, epochs of an earlier run included.

    Every epoch draws from a generator seeded by (seed, phase, epoch), so a run that was killed
    and resumed makes the same weights as one that was not.

    Args:
        model: In training mode; its device is kept.
        recipe: The phase.
        images: Training images.
        data: How images are varied.
        seed: Of the run.
        checkpoint: Where the state goes after every epoch, or None.
        progress: Shows one step an epoch.

    Raises:
        TrainingError: A loss or the gradient is not finite.
        RunError: The checkpoint is damaged or belongs to another network or phase.
    """
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, recipe), lr=recipe.learning_rate, fused=True
    )
    history = _resume(model, optimizer, recipe, checkpoint)
    steps = max(1, len(images) // recipe.batch_size)
    device = next(model.parameters()).device
    with progress.task(recipe.label, recipe.epochs) as advance:
        advance(len(history))
        for number in range(len(history), recipe.epochs):
            rng = np.random.default_rng([seed, recipe.stream, number])
            accumulate = recipe.begin_epoch(number, rng, steps)
            losses: list[dict[str, float]] = []
            batches = _batches(images, recipe.batch_size, data, rng)
            for step, (batch, labels) in enumerate(batches):
                _set_rate(optimizer, recipe, number * steps + step, recipe.epochs * steps)
                optimizer.zero_grad()
                with _divergence_named(recipe, number):
                    losses.append(accumulate(batch.to(device), labels.to(device), step))
                norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                _check_finite(losses[-1], norm.item(), recipe, number)
                optimizer.step()
            history.append(Epoch(recipe.phase, number + 1, _means(losses)))
            _save(model, optimizer, recipe, history, checkpoint)
            advance(1)
    return history


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns the parameters with their decay; learned steps have none, it would widen them."""
    named = list(model.named_parameters())
    steps = [each for name, each in named if name.endswith("log_step")]
    others = [each for name, each in named if not name.endswith("log_step")]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": recipe.weight_decay}]
    return [*groups, {"params": steps, "weight_decay": 0.0}] if steps else groups


def _batches(
    images: ImageSet, batch_size: int, data: DataConfig, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields whole batches in random order; what is left over waits for the next epoch."""
    order = rng.permutation(len(images))
    for start in range(0, max(1, len(order) - batch_size + 1), batch_size):
        chosen = order[start : start + batch_size]
        yield augment(images.images(chosen), data, rng), images.targets[chosen]


def _set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, total: int) -> None:
    rising = max(1, round(recipe.warmup * total))
    if step < rising:
        share = (step + 1) / rising
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * share


@contextmanager
def _divergence_named(recipe: Recipe, epoch: int) -> Iterator[None]:
    """Says what to change where a quantizer meets values that are not finite."""
    try:
        yield
    except NonFiniteError as fault:
        raise TrainingError(f"{fault}, {_where(recipe, epoch)}") from None


def _where(recipe: Recipe, epoch: int) -> str:
    return (
        f"in epoch {epoch + 1} of phase {recipe.phase}: "
        f"lower {recipe.rate_key} or supernet.clip_norm"
    )


def _check_finite(losses: dict[str, float], norm: float, recipe: Recipe, epoch: int) -> None:
    figures = {f"{name} loss": value for name, value in losses.items()}
    for name, value in {**figures, "norm of the gradient": norm}.items():
        if not math.isfinite(value):
            raise TrainingError(f"the {name} is {value} {_where(recipe, epoch)}")


def _means(losses: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in losses for name in each)
    return {
        name: float(np.mean([each[name] for each in losses if name in each])) for name in names
    }


def _save(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    history: list[Epoch],
    checkpoint: Checkpoint | None,
) -> None:
    if checkpoint is None:
        return
    tensors = {**model.state_dict(), **optimizer_tensors(model, optimizer)}
    meta = {"phase": recipe.phase, "losses": [each.losses for each in history]}
    save_tensors(checkpoint.path, tensors, meta)


def _resume(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    checkpoint: Checkpoint | None,
) -> list[Epoch]:
    if checkpoint is None or not checkpoint.path.exists():
        return []
    tensors, meta = load_tensors(checkpoint.path, checkpoint.cure)
    losses = meta.get("losses")
    if meta.get("phase") != recipe.phase or not isinstance(losses, list):
        raise RunError(
            f"{checkpoint.path} is no checkpoint of phase {recipe.phase}; {checkpoint.cure}"
        )
    load_weights(model, tensors, checkpoint.path)
    restore_optimizer(model, optimizer, tensors)
    return [Epoch(recipe.phase, i + 1, each) for i, each in enumerate(losses)]

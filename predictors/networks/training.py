"""Descent for the members of an ensemble at once. Letters: m members, n rows, b rows a batch."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Descent", "batches_of_bags", "descend"]

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_WARM_UP = 0.1  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class Descent:
    """How parameters are fitted, by Adam with decoupled weight decay.

    Attributes:
        epochs: Passes over the rows.
        batch_rows: At most so many rows a step.
        learning_rate: The largest; it rises over a tenth of the steps and falls to 0 as a cosine.
        weight_decay: Of what is named for decay, per step and learning rate.
    """

    epochs: int
    batch_rows: int
    learning_rate: float
    weight_decay: float


def batches_of_bags(
    bags: BoolArray, descent: Descent, rng: np.random.Generator
) -> Iterator[IntArray]:
    """Yields the rows (m, b) of each step; a member meets the rows of its bag (m, n) alone.

    In an epoch every row of a bag comes at least once; smaller bags start again.
    """
    members = [np.flatnonzero(bag) for bag in bags]
    longest = max(map(len, members))
    steps = math.ceil(longest / descent.batch_rows)
    for _ in range(descent.epochs):
        shuffled = [np.resize(rng.permutation(bag), longest) for bag in members]
        yield from np.array_split(np.stack(shuffled), steps, axis=1)


def descend(
    parameters: Sequence[Tensor],
    decayed: Sequence[Tensor],
    loss_of: Callable[[Tensor], Tensor],
    batches: Sequence[IntArray],
    descent: Descent,
) -> None:
    """Fits parameters in place.

    Args:
        parameters: Leaves that are fitted as they are.
        decayed: Leaves that are also pulled to 0.
        loss_of: Takes the rows (m, b) of a batch and returns the losses (m,); members share no
            parameter, so their sum is descended.
        batches: Of :func:`batches_of_bags`.
        descent: How.
    """
    groups = [
        {"params": list(parameters), "weight_decay": 0.0},
        {"params": list(decayed), "weight_decay": descent.weight_decay},
    ]
    leaves = [*parameters, *decayed]
    optimizer = torch.optim.AdamW(groups, lr=descent.learning_rate)
    for step, rows in enumerate(batches):
        rate = descent.learning_rate * _schedule(step, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss_of(torch.from_numpy(rows)).sum(), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()


def _schedule(step: int, steps: int) -> float:
    """Returns the share of the largest learning rate, 0..1."""
    warm_up = _WARM_UP * steps
    if step + 1 < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up + 1) / (steps - warm_up + 1)))

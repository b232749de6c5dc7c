"""Quantization-aware training of one network with its formats."""

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from apqkit.config import Config
from apqkit.data import Splits
from apqkit.quant.preparation import fold_batch_norms, keep_batch_norms
from apqkit.training.loop import Accumulate, Checkpoint, Epoch, Recipe, train
from apqkit.types import Progress, SilentProgress

__all__ = ["finetune"]

_STREAM = 201


def finetune(
    model: nn.Module,
    splits: Splits,
    config: Config,
    *,
    checkpoint_path: Path | None = None,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Trains a network of quantized layers in place and returns the history.

    Weights and inputs are quantized in every step; gradients pass straight through. Ranges follow
    the batch, or are learned where the model's scheme says so. Calibrate the model afterwards to
    freeze it.

    Args:
        model: Calibrated; such as ``supernet.extract(layers)`` or :func:`apqkit.quant.prepare`
            return. Batch norms that ``prepare`` folded train with statistics that stand still,
            whatever ``finetune.batch_norm`` says, unless it folds them for good; those that it
            could not fold follow the batch.
        splits: Training images come from here.
        config: ``finetune``, ``supernet.batch_size`` and others, ``data`` and ``seed`` are read.
        checkpoint_path: Where the state goes after every epoch, or None.
        progress: Shows the epochs.

    Raises:
        CalibrationError: The model is not calibrated, and batch norms or ranges need that.
        TrainingError: Training diverged.
    """
    if config.finetune.batch_norm == "freeze":
        keep_batch_norms(model)
    elif config.finetune.batch_norm == "fold":
        fold_batch_norms(model)
    model.train()

    def accumulate(images: Tensor, labels: Tensor, step: int) -> dict[str, float]:
        del step
        smoothing = config.supernet.label_smoothing
        loss = F.cross_entropy(model(images), labels, label_smoothing=smoothing)
        loss.backward()
        return {"labels": loss.item()}

    def begin_epoch(epoch: int, rng: np.random.Generator, steps: int) -> Accumulate:
        del epoch, rng, steps
        return accumulate

    recipe = Recipe(
        phase="finetune",
        label="finetune",
        stream=_STREAM,
        epochs=config.finetune.epochs,
        batch_size=config.supernet.batch_size,
        learning_rate=config.finetune.learning_rate,
        rate_key="finetune.learning_rate",
        weight_decay=config.supernet.weight_decay,
        clip_norm=config.supernet.clip_norm,
        begin_epoch=begin_epoch,
    )
    checkpoint = None
    if checkpoint_path is not None:
        checkpoint = Checkpoint(checkpoint_path, "delete the file and finetune again")
    return train(
        model,
        recipe,
        splits.train,
        config.data,
        seed=config.seed,
        checkpoint=checkpoint,
        progress=progress or SilentProgress(),
    )

"""Stage supernet: training in two phases, and a look at whether it sufficed."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apqkit.pipeline.context import SUPERNET_FILE, RunContext
from apqkit.run import write_atomically, write_json
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_uniform
from apqkit.training.checkpoint import save_tensors
from apqkit.training.evaluate import accuracy_parts
from apqkit.training.loop import Epoch
from apqkit.training.supernet import train_supernet
from apqkit.types import IntArray

__all__ = ["CHECK_FILE", "HISTORY_FILE", "run_supernet_stage"]

HISTORY_FILE = "history.csv"
CHECK_FILE = "check.json"
_RANDOM_SUBNETS = 12


def run_supernet_stage(context: RunContext, folder: Path) -> None:
    """Trains the supernet, or goes on where a checkpoint left off, and checks random subnets."""
    if not (folder / HISTORY_FILE).exists():  # the last that training writes
        _train(context, folder)
    for checkpoint in folder.glob("checkpoint_*.safetensors"):
        checkpoint.unlink()
    check = check_subnets(context)
    write_json(folder / CHECK_FILE, check)
    if check["random_mean"]["accuracy"] < check["smallest"]["accuracy"]:
        context.say(
            f"random fp32 subnets reach {check['random_mean']['accuracy']:.4f} on average, below "
            f"the smallest one's {check['smallest']['accuracy']:.4f}: the supernet is "
            f"under-trained, raise supernet.epochs"
        )


def _train(context: RunContext, folder: Path) -> None:
    config = context.config
    supernet = context.space.supernet(config.seed).to(config.supernet.torch_device)
    history = train_supernet(
        supernet,
        context.space,
        context.splits,
        config,
        directory=folder,
        progress=context.progress,
    )
    save_tensors(folder / SUPERNET_FILE, supernet.state_dict(), {"seed": config.seed})
    write_atomically(folder / HISTORY_FILE, _history_csv(history))


def check_subnets(context: RunContext) -> dict[str, dict[str, float]]:
    """Returns validation accuracy in fp32 of the largest, the smallest and random subnets."""
    space = context.space
    rng = np.random.default_rng([context.config.seed, 2])
    drawn = draw_uniform(space, _RANDOM_SUBNETS, rng)
    picks = np.concatenate([largest_picks(space.dims), smallest_picks(space.dims), drawn])
    measured = _measure_fp32(context, picks)
    random = measured[2:]
    return {
        "largest": measured[0],
        "smallest": measured[1],
        "random_mean": {
            name: float(np.mean([each[name] for each in random])) for name in random[0]
        },
    }


def _measure_fp32(context: RunContext, picks: IntArray) -> list[dict[str, float]]:
    measurer = context.measurer(context.splits.validation)
    table = context.space.network(picks).in_fp32()
    rows = []
    for candidate in range(len(picks)):
        correct = measurer.measure(table.layers(candidate))
        parts = accuracy_parts(correct, measurer.images)
        rows.append({"accuracy": float(correct.mean()), **parts})
    return rows


def _history_csv(history: Sequence[Epoch]) -> str:
    buffer = io.StringIO()
    losses = list(dict.fromkeys(name for epoch in history for name in epoch.losses))
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["phase", "epoch", *(f"loss_{name}" for name in losses)])
    for epoch in history:
        figures = [f"{epoch.losses[name]:.6f}" if name in epoch.losses else "" for name in losses]
        writer.writerow([epoch.phase, epoch.number, *figures])
    return buffer.getvalue()

"""What the phase with random formats gains over formats put on a supernet trained in fp32 only.

    python benchmarks/quantized_phase.py RUN_DIRECTORY [--subnets 16]

Trains the run's fp32 phase again, alone, and measures the same random subnets with one format
throughout on both supernets. The run's supernet has had more epochs; how much of the gain that
explains, its fp32 column shows. Prints one table and writes ``results/quantized_phase_NAME.json``.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from recording import write_result

from apqkit.config import load_config
from apqkit.pipeline import run_stages
from apqkit.pipeline.context import RunContext
from apqkit.progress import RichProgress
from apqkit.run import RunDirectory
from apqkit.spaces.draws import draw_uniform

_FORMATS = (
    ("fp32", "fp32"),
    ("int8", "int8"),
    ("int4", "int4"),
    ("int3", "int8"),
    ("int2", "int8"),
    ("int8", "int4"),
    ("int8", "int3"),
)


def main() -> None:
    """Trains, measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--subnets", type=int, default=16)
    options = parser.parse_args()
    config = load_config(options.run / "config.toml")
    supernet = config.supernet.model_copy(update={"quantized_epochs": 0})
    fp32_only = config.model_copy(update={"supernet": supernet})
    with tempfile.TemporaryDirectory() as scratch, RichProgress() as progress:
        path = Path(scratch) / "run"
        run_stages(fp32_only, path, until="supernet", progress=progress)
        before = _accuracies(path, options.subnets, progress)
        after = _accuracies(options.run, options.subnets, progress)
    name = config.data.name
    figures = {
        "subnets": options.subnets,
        "accuracy": {
            key: {"fp32 phase": before[key], "with quantized phase": after[key]} for key in before
        },
    }
    written = write_result(f"quantized_phase_{name}", [config.seed], figures)
    print(f"{'weights x activations':24}{'fp32 phase':>12}{'with quantized':>16}{'gain':>8}")
    for key, value in before.items():
        print(f"{key:24}{value:12.4f}{after[key]:16.4f}{after[key] - value:+8.4f}")
    print(written)


def _accuracies(path: Path, count: int, progress: RichProgress) -> dict[str, float]:
    """Mean validation accuracy of the same random subnets for each pair of formats."""
    config = load_config(path / "config.toml")
    with RunDirectory.opened(path, create=False) as run:
        context = RunContext(config, run, progress)
        picks = draw_uniform(context.space, count, np.random.default_rng([config.seed, 78]))
        table = context.space.network(picks)
        measurer = context.measurer(context.splits.validation)
        found = {}
        with progress.task("measuring", len(_FORMATS) * count) as advance:
            for weights, activations in _FORMATS:
                uniform = table.with_formats(weights, activations)
                accuracies = []
                for index in range(count):
                    accuracies.append(measurer.measure(uniform.layers(index)).mean())
                    advance(1)
                found[f"{weights} x {activations}"] = float(np.mean(accuracies))
    return found


if __name__ == "__main__":
    main()

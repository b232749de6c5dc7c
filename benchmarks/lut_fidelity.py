"""Prices of this machine's look-up table against whole exported networks.

    python benchmarks/lut_fidelity.py [--networks 40] [--seed 0]

Takes the space of the Fashion-MNIST job with int8 and fp32 offered for every layer, builds the
table of its layers and conversions at batch 32, exports sampled networks (half drawn uniformly,
half with one format in most layers) and networks whose layers alternate between int8 and fp32,
times them whole in ONNX Runtime, one thread, one run of each in turn, and compares: with
conversions between layers and without, as additive tables have it. ``repeat`` compares two halves
of the same measurements, the best that can be hoped for. Weights are random: they do not matter to
time. Prints one table and writes ``results/lut_fidelity.json`` and ``results/lut_fidelity.png``.
"""

import argparse
import os
import tempfile
import time

import numpy as np
from recording import RESULTS, write_result

from apqkit.config import load_config
from apqkit.cost import build_lut
from apqkit.cost.lut import LookupTable
from apqkit.progress import RichProgress
from apqkit.report import LutCheck, check_lut, draw_lut_check
from apqkit.spaces import build_space
from apqkit.spaces.base import largest_picks
from apqkit.spaces.draws import draw_hierarchical, draw_uniform, with_format
from apqkit.types import IntArray, Progress, Space

_SHAPE, _CLASSES, _BATCH = (1, 28, 28), 10, 32
_MIXED = [
    f'space.{name}=["int8", "fp32"]'
    for name in ("weight_formats", "activation_formats", "first_last_formats")
]
_ALTERNATING = 12
_DRAWN = 4000  # networks whose layers the table is made for


def main() -> None:
    """Builds the table, times networks, prints one table, writes one file and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    space = build_space(load_config("fashion-mnist", _MIXED).space, _SHAPE, _CLASSES)
    rng = np.random.default_rng(options.seed)
    half = options.networks // 2
    uniform = draw_uniform(space, options.networks - half, rng)
    groups = {
        "sampled": np.concatenate([uniform, draw_hierarchical(space, half, rng)]),
        "alternating": _alternating(space, _ALTERNATING, rng),
        "largest in one format": np.concatenate(
            [
                with_format(space, largest_picks(space.dims), each, each)
                for each in ("int8", "fp32")
            ]
            + [_alternating_formats(space, largest_picks(space.dims))]
        ),
    }
    tables = {name: space.network(picks) for name, picks in groups.items()}
    with RichProgress() as progress:
        table, seconds = _built(space, rng, progress)
        supernet = space.supernet(options.seed).train()
        checks = {
            name: check_lut(table, networks, supernet, _SHAPE, progress=progress)  # type: ignore[arg-type]
            for name, networks in tables.items()
        }
    _print(checks)
    draw_lut_check(checks["sampled"]).savefig(RESULTS / "lut_fidelity.png", dpi=110)
    figures = {
        "batch": _BATCH,
        "rows": len(table),
        "table_seconds": round(seconds, 1),
        "networks": {name: len(networks) for name, networks in tables.items()},
        "figures": {name: _rounded(check) for name, check in checks.items()},
        "largest_ms": _largest(checks["largest in one format"]),
    }
    print(write_result("lut_fidelity", [options.seed], figures))


def _built(
    space: Space, rng: np.random.Generator, progress: Progress
) -> tuple[LookupTable, float]:
    """Returns a table that is timed anew, and the seconds that took."""
    networks = space.network(
        np.concatenate([draw_uniform(space, _DRAWN, rng), draw_hierarchical(space, _DRAWN, rng)])
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["APQKIT_CACHE"] = folder
        started = time.perf_counter()
        table = build_lut(networks, batch=_BATCH, progress=progress)
        return table, time.perf_counter() - started


def _alternating(space: Space, count: int, rng: np.random.Generator) -> IntArray:
    return _alternating_formats(space, draw_uniform(space, count, rng))


def _alternating_formats(space: Space, picks: IntArray) -> IntArray:
    """(n, k) the same architectures with int8 and fp32 in turn from layer to layer."""
    layers = list(dict.fromkeys(d.name.split(".", 1)[1] for d in space.dims if d.role == "quant"))
    picks = picks.copy()
    for column, dim in enumerate(space.dims):
        if dim.role == "quant":
            name = ("int8", "fp32")[layers.index(dim.name.split(".", 1)[1]) % 2]
            picks[:, column] = dim.choices.index(name)
    return space.repair(picks)


def _print(checks: dict[str, LutCheck]) -> None:
    print(f"\n{'networks':24}{'priced':16}{'MAPE':>8}{'bias':>8}{'tau':>8}{'in 2 bars':>11}")
    for name, check in checks.items():
        for way, figures in check.figures().items():
            bars = f"{figures['within_2_errors']:.0%}" if "within_2_errors" in figures else ""
            print(
                f"{name:24}{way:16}{figures['mape']:8.1%}{figures['bias']:8.1%}"
                f"{figures['tau']:8.3f}{bars:>11}"
            )


def _rounded(check: LutCheck) -> dict[str, dict[str, float]]:
    return {
        way: {figure: round(value, 4) for figure, value in figures.items()}
        for way, figures in check.figures().items()
    }


def _largest(check: LutCheck) -> dict[str, dict[str, float]]:
    """Returns measured and priced ms of the largest network in int8, fp32 and alternating."""
    names = ("int8", "fp32", "alternating")
    rows = zip(check.measured_ms, check.priced_ms, check.additive_ms, strict=True)
    return {
        name: dict(zip(("measured", "with_edges", "without_edges"), map(_short, row), strict=True))
        for name, row in zip(names, rows, strict=True)
    }


def _short(value: float) -> float:
    return round(float(value), 4)


if __name__ == "__main__":
    main()

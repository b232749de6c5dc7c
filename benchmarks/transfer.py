"""Transferred predictor against one learned from scratch, on the supernet of a finished run.

    python benchmarks/transfer.py RUN_DIRECTORY [--mixed 400] [--splits 8]

Measures further mixed samples on the run's supernet, keeps a fixed part for testing and compares,
on the same test rows: transfer and scratch at the same number of mixed samples, and at the same
total measuring time, fp32 samples counted. Prints one table and writes
``results/transfer_CONFIG.json``.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from recording import write_result

from apqkit.config import load_config
from apqkit.cost.network import NetworkCost
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.ranking import Measured, fit_rows, measured_samples
from apqkit.pipeline.samples_stage import read_samples
from apqkit.prediction import AccuracyModel, Rows, architecture_groups, fit_fp32
from apqkit.progress import RichProgress
from apqkit.run import RunDirectory
from apqkit.sampling import collect_samples, draw_stratified, sample_picks
from predictors import kendall_tau, top_quartile_tau

_SIZES = (25, 50, 100, 200)
_FP32 = 200


def main() -> None:
    """Measures, compares, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mixed", type=int, default=400, help="mixed samples to measure")
    parser.add_argument("--splits", type=int, default=8)
    options = parser.parse_args()
    config = load_config(options.run / "config.toml")
    with RichProgress() as progress, RunDirectory.opened(options.run, create=False) as run:
        context = RunContext(config, run, progress)
        figures = _compare(context, options.mixed, options.splits)
    name = config.data.name
    written = write_result(f"transfer_{name}", list(range(options.splits)), figures)
    _print(figures)
    print(written)


def _compare(context: RunContext, count: int, splits: int) -> dict[str, Any]:
    picks, mixed, mixed_s = _measure(context, count)
    costs = NetworkCost().cost(context.space.network(picks))
    fp32 = measured_samples(context, "fp32")
    fp32_s = float(np.median([each.seconds for each in read_samples(context, "fp32")]))
    rows = [
        _one_split(context, mixed, costs, fp32, fp32_s / mixed_s, seed) for seed in range(splits)
    ]
    names = list(rows[0])
    return {
        "mixed_samples": count,
        "test_rows": count // 2,
        "splits": splits,
        "seconds_fp32_sample": fp32_s,
        "seconds_mixed_sample": mixed_s,
        "tau": {
            name: {
                "mean": float(np.mean([each[name][0] for each in rows])),
                "sd": float(np.std([each[name][0] for each in rows], ddof=1)),
                "top_quartile": float(np.mean([each[name][1] for each in rows])),
            }
            for name in names
        },
        "transferred_minus_scratch": _differences(rows),
    }


def _differences(rows: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Paired differences of tau, mean and sd over splits (which overlap: no interval)."""
    differences = {}
    for name in rows[0]:
        if not name.startswith("transferred"):
            continue
        size = name.split(" mixed")[0].rsplit(" ", 1)[1]
        paired = [each[name][0] - each[f"from scratch, {size} mixed"][0] for each in rows]
        differences[name] = {
            "mean": float(np.mean(paired)),
            "sd": float(np.std(paired, ddof=1)),
            "splits_won": int(np.sum(np.array(paired) > 0)),
        }
    return differences


def _measure(context: RunContext, count: int) -> tuple[np.ndarray, Rows, float]:
    rng = np.random.default_rng([context.config.seed, 77])
    space = context.space

    def cost(picks: np.ndarray) -> np.ndarray:
        return context.costs(picks)["bops"]

    seen = measured_samples(context, "fp32").picks
    picks = draw_stratified(space, count, cost, rng, without=seen)
    with tempfile.TemporaryDirectory() as folder:
        samples = collect_samples(
            Path(folder) / "mixed.jsonl",
            "mixed",
            picks,
            space,
            context.measurer(context.splits.validation),
            seed=context.config.seed,
            progress=context.progress,
        )
    picks = sample_picks(space, samples)
    rows = Rows(
        context.features.mixed(picks),
        np.array([each.accuracy for each in samples]),
        architecture_groups(space, picks),
    )
    return picks, rows, float(np.median([each.seconds for each in samples]))


def _one_split(
    context: RunContext,
    mixed: Rows,
    costs: dict[str, np.ndarray],
    fp32: Measured,
    fp32_price: float,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Tau and top-quartile tau of everything on the test half; prices are in mixed samples."""
    groups = np.random.default_rng(seed).permutation(int(mixed.groups.max()) + 1)
    order = np.argsort(groups[mixed.groups], kind="stable")
    half = len(order) // 2
    rest = order[half:]
    test, train = order[:half], rest[~np.isin(mixed.groups[rest], mixed.groups[order[:half]])]
    base = _base(context, fp32, _FP32, seed)
    scores = {}

    def add(name: str, predicted: np.ndarray) -> None:
        truth = mixed.accuracy[test]
        scores[name] = (kendall_tau(truth, predicted), top_quartile_tau(truth, predicted))

    features = mixed.features[test]
    columns = context.features.fp32(fp32.picks[:1]).shape[1]
    add("fp32 predictor alone", base.predict(features[:, :columns]))
    for size in (each for each in _SIZES if each <= len(train)):
        part = _part(mixed, train[:size])
        add(f"transferred, {size} mixed", fit_rows(context, base, part).predict(features))
        add(f"from scratch, {size} mixed", fit_rows(context, None, part).predict(features))
        share = round(size * 0.5 / fp32_price)  # half of the time on fp32 samples
        if 16 <= share <= len(fp32.accuracy) and size >= 50:
            small = _base(context, fp32, share, seed)
            half_part = _part(mixed, train[: size // 2])
            add(
                f"transferred, time of {size} mixed ({share} fp32 + {size // 2} mixed)",
                fit_rows(context, small, half_part).predict(features),
            )
    for name in ("bops", "macs", "params"):
        add(name, costs[name][test])
    return scores


def _base(context: RunContext, fp32: Measured, count: int, seed: int) -> AccuracyModel:
    chosen = np.random.default_rng([seed, 1]).permutation(len(fp32.accuracy))[:count]
    picks = fp32.picks[chosen]
    rows = Rows(
        context.features.fp32(picks),
        fp32.accuracy[chosen],
        architecture_groups(context.space, picks),
    )
    return fit_fp32(context.config.predictor.name, rows, coverage=0.9, seed=seed)


def _part(rows: Rows, index: np.ndarray) -> Rows:
    return Rows(rows.features[index], rows.accuracy[index], rows.groups[index])


def _print(figures: dict[str, Any]) -> None:
    print(f"{'predictor':58}{'tau':>8}{'sd':>8}{'top quartile':>14}")
    for name, each in figures["tau"].items():
        print(f"{name:58}{each['mean']:8.3f}{each['sd']:8.3f}{each['top_quartile']:14.3f}")
    print("\ntransferred minus from scratch, paired: mean, sd and how often it wins")
    for name, each in figures["transferred_minus_scratch"].items():
        print(f"{name:58}{each['mean']:+8.3f}{each['sd']:8.3f}{each['splits_won']:5d}")


if __name__ == "__main__":
    main()

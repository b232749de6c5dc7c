"""Transferred predictor against one learned from scratch, on the supernets of finished runs.

    python benchmarks/transfer.py RUN_DIRECTORY [RUN_DIRECTORY ...] [--mixed 400] [--splits 8]

Measures further mixed samples on each run's supernet, keeps a fixed part for testing and compares,
on the same test rows: transfer and scratch at the same number of mixed samples, and at the same
total measuring time, fp32 samples counted; how many mixed samples either needs to reach a tau; how
often transfer ranks worse than the fp32 predictor alone; and transfer from integer formats to
floating-point ones that the base has never seen. Runs of one configuration (such as supernets of
several seeds) are pooled. Prints one table and writes ``results/transfer_CONFIG.json``.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recording import write_result

from apqkit.config import load_config
from apqkit.cost.network import NetworkCost
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.ranking import Measured, measured_samples
from apqkit.pipeline.samples_stage import read_samples
from apqkit.prediction import Rows, architecture_groups, feature_builder
from apqkit.progress import RichProgress
from apqkit.registry import lookup
from apqkit.run import RunDirectory
from apqkit.sampling import collect_samples, draw_stratified, sample_picks
from predictors import PREDICTORS, TransferPredictor, kendall_tau, top_quartile_tau

_SIZES = (10, 25, 50, 100, 200)
_FP32 = 200
_INTEGER = 200  # samples in integer formats, for a base that never saw another
_LEAST_TEST_ROWS = 40
_TWINS = {"fp8_": "int8", "fp4_": "int4", "mxfp8_": "int8", "mxfp4_": "int4"}


@dataclass(frozen=True)
class Pool:
    """What was measured on one supernet.

    Attributes:
        fp32: fp32 samples.
        mixed: Mixed samples.
        integer: Samples in integer formats alone; None if the space has no others.
        floating: (n,) whether a mixed sample has a floating-point format in some layer.
        costs: Counts (n,) of the mixed samples, by name.
        fp32_price: Seconds of an fp32 sample over those of a mixed one.
        seconds: Of one sample of each kind.
        predictor: Name of the base's kind.
    """

    fp32: Rows
    mixed: Rows
    integer: Rows | None
    floating: np.ndarray
    costs: dict[str, np.ndarray]
    fp32_price: float
    seconds: dict[str, float]
    predictor: str


def main() -> None:
    """Measures, compares, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--mixed", type=int, default=400, help="mixed samples to measure")
    parser.add_argument("--splits", type=int, default=8, help="of each run's mixed samples")
    options = parser.parse_args()
    names = {load_config(run / "config.toml").data.name for run in options.run}
    if len(names) > 1:
        parser.error(f"runs must share their data, got {', '.join(sorted(names))}")
    pools = [_pool(run, options.mixed) for run in options.run]
    figures = _figures(pools, options)
    written = write_result(f"transfer_{names.pop()}", list(range(options.splits)), figures)
    _print(figures)
    print(written)


def _pool(path: Path, count: int) -> Pool:
    config = load_config(path / "config.toml")
    with RichProgress() as progress, RunDirectory.opened(path, create=False) as run:
        context = RunContext(config, run, progress)
        fp32 = measured_samples(context, "fp32")
        drawn = _draw(context, count, 77, fp32)
        picks, mixed, seconds = _measure(context, drawn)
        twins = _integer_twins(context, _draw(context, _INTEGER, 78, fp32))
        floating = _has_floating(context, picks)
        integer = _measure(context, twins)[1] if floating.any() else None
        fp32_s = float(np.median([each.seconds for each in read_samples(context, "fp32")]))
        base_rows = Rows(
            context.features.fp32(fp32.picks),
            fp32.accuracy,
            architecture_groups(context.space, fp32.picks),
        )
        return Pool(
            base_rows,
            mixed,
            integer,
            floating,
            NetworkCost().cost(context.space.network(picks)),
            fp32_s / seconds,
            {"fp32": fp32_s, "mixed": seconds},
            config.predictor.name,
        )


def _draw(context: RunContext, count: int, stream: int, seen: Measured) -> np.ndarray:
    def cost(picks: np.ndarray) -> np.ndarray:
        return context.costs(picks)["bops"]

    rng = np.random.default_rng([context.config.seed, stream])
    return draw_stratified(context.space, count, cost, rng, without=seen.picks)


def _measure(context: RunContext, picks: np.ndarray) -> tuple[np.ndarray, Rows, float]:
    with tempfile.TemporaryDirectory() as folder:
        samples = collect_samples(
            Path(folder) / "mixed.jsonl",
            "mixed",
            picks,
            context.space,
            context.measurer(context.splits.validation),
            seed=context.config.seed,
            progress=context.progress,
        )
    picks = sample_picks(context.space, samples)
    rows = Rows(
        feature_builder(context.space).mixed(picks),
        np.array([each.accuracy for each in samples]),
        architecture_groups(context.space, picks),
    )
    return picks, rows, float(np.median([each.seconds for each in samples]))


def _integer_twins(context: RunContext, picks: np.ndarray) -> np.ndarray:
    """Returns the candidates with each floating-point format replaced by the integer one."""
    picks = picks.copy()
    for column, dim in enumerate(context.space.dims):
        names = [str(each) for each in dim.choices]
        for index, name in enumerate(names if dim.role == "quant" else []):
            twin = next((to for start, to in _TWINS.items() if name.startswith(start)), name)
            if twin in names:
                picks[picks[:, column] == index, column] = names.index(twin)
    return np.unique(context.space.repair(picks), axis=0)


def _has_floating(context: RunContext, picks: np.ndarray) -> np.ndarray:
    active = context.space.active(picks)
    floating = np.zeros(len(picks), dtype=bool)
    for column, dim in enumerate(context.space.dims):
        if dim.role == "quant":
            kinds = np.array([str(each).startswith(tuple(_TWINS)) for each in dim.choices])
            floating |= kinds[picks[:, column]] & active[:, column]
    return floating


def _figures(pools: list[Pool], options: argparse.Namespace) -> dict[str, Any]:
    price = float(np.mean([each.fp32_price for each in pools]))
    rows = [_one_split(pool, price, seed) for pool in pools for seed in range(options.splits)]
    unseen = [_unseen_formats(pool, seed) for pool in pools for seed in range(options.splits)]
    unseen = [each for each in unseen if each]
    return {
        "runs": [str(each.name) for each in options.run],
        "mixed_samples": options.mixed,
        "test_rows": options.mixed // 2,
        "splits": options.splits,
        "seconds_fp32_sample": float(np.mean([each.seconds["fp32"] for each in pools])),
        "seconds_mixed_sample": float(np.mean([each.seconds["mixed"] for each in pools])),
        "tau": _summary(rows),
        "transferred_minus_scratch": _differences(rows),
        "mixed_samples_needed": _needed(rows),
        "never_below_base": _below(rows, "transferred", "fp32 predictor alone"),
        "unseen_formats": {
            "tau": _summary(unseen),
            "never_below_base": _below(unseen, "transferred", "integer predictor alone"),
        },
    }


def _summary(rows: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Mean and sd of tau, mean of top-quartile tau, over splits and runs."""
    return {
        name: {
            "mean": float(np.mean([each[name][0] for each in rows])),
            "sd": float(np.std([each[name][0] for each in rows], ddof=1)),
            "top_quartile": float(np.mean([each[name][1] for each in rows])),
        }
        for name in (rows[0] if rows else ())
        if all(name in each for each in rows)
    }


def _differences(rows: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Paired differences of tau, mean and sd over splits (which overlap: no interval)."""
    differences = {}
    for name in _summary(rows):
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


def _needed(rows: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Mixed samples that reach what scratch reaches with 50, 100 and 200, on the mean curves.

    Between sizes tau is taken to rise in a line over the logarithm of the size; a tau that the
    smallest size exceeds reads as that size ("at most"), one beyond the largest as NaN.
    """
    tau = {name: each["mean"] for name, each in _summary(rows).items()}
    sizes = [each for each in _SIZES if f"transferred, {each} mixed" in tau]
    curve = [tau[f"transferred, {each} mixed"] for each in sizes]
    needed = {}
    for size in (each for each in sizes if each >= 50):
        target = tau[f"from scratch, {size} mixed"]
        needed[f"{target:.3f}"] = {
            "from_scratch": float(size),
            "transferred": _crossing(np.array(sizes, dtype=float), np.array(curve), target),
        }
    return needed


def _crossing(sizes: np.ndarray, taus: np.ndarray, target: float) -> float:
    """Returns the size at which a curve first reaches a target."""
    best = np.maximum.accumulate(taus)
    if target > best[-1]:
        return float("nan")
    return float(np.exp(np.interp(target, best, np.log(sizes))))


def _below(
    rows: list[dict[str, tuple[float, float]]], name: str, base: str
) -> dict[str, dict[str, float]]:
    """How transfer compares with its base at every size: mean, worst, and how often below."""
    compared = {}
    for each in _summary(rows):
        if each.startswith(f"{name}, ") and each.endswith(" mixed"):
            paired = np.array([row[each][0] - row[base][0] for row in rows])
            compared[each] = {
                "mean": float(paired.mean()),
                "worst": float(paired.min()),
                "splits_below": int((paired < 0).sum()),
                "splits": len(paired),
            }
    return compared


def _one_split(pool: Pool, fp32_price: float, seed: int) -> dict[str, tuple[float, float]]:
    """Tau and top-quartile tau of everything on the test half; prices are in mixed samples."""
    mixed = pool.mixed
    test, train = _halves(mixed.groups, seed)
    base = _base(pool, pool.fp32, _FP32, seed)
    features, truth = mixed.features[test], mixed.accuracy[test]
    scores = {"fp32 predictor alone": _score(truth, _predicted(base, features))}
    for size in (each for each in _SIZES if each <= len(train)):
        part = train[:size]
        scores[f"transferred, {size} mixed"] = _transferred(mixed, part, test, base, seed)
        scores[f"from scratch, {size} mixed"] = _transferred(mixed, part, test, None, seed)
        share = round(size * 0.5 / fp32_price)  # half of the time on fp32 samples
        if 16 <= share <= len(pool.fp32.accuracy) and size >= 50:
            small = _base(pool, pool.fp32, share, seed)
            name = f"transferred, time of {size} mixed ({share} fp32 + {size // 2} mixed)"
            scores[name] = _transferred(mixed, train[: size // 2], test, small, seed)
    for name in ("bops", "macs", "params"):
        scores[name] = _score(truth, pool.costs[name][test])
    return scores


def _unseen_formats(pool: Pool, seed: int) -> dict[str, tuple[float, float]]:
    """The same from integer formats to candidates that have floating-point ones."""
    if pool.integer is None or pool.floating.sum() < 2 * _LEAST_TEST_ROWS:
        return {}
    mixed = _part(pool.mixed, np.flatnonzero(pool.floating))
    test, train = _halves(mixed.groups, seed)
    base = _base(pool, pool.integer, _INTEGER, seed)
    features, truth = mixed.features[test], mixed.accuracy[test]
    scores = {"integer predictor alone": _score(truth, _predicted(base, features))}
    for size in (each for each in _SIZES if each <= len(train)):
        part = train[:size]
        scores[f"transferred, {size} mixed"] = _transferred(mixed, part, test, base, seed)
        scores[f"from scratch, {size} mixed"] = _transferred(mixed, part, test, None, seed)
    return scores


def _halves(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns test rows and the others in random order; no group is in both."""
    labels = np.unique(groups, return_inverse=True)[1]
    place = np.random.default_rng(seed).permutation(int(labels.max()) + 1)[labels]
    order = np.argsort(place, kind="stable")
    test, rest = order[: len(order) // 2], order[len(order) // 2 :]
    return test, rest[~np.isin(labels[rest], labels[test])]


def _base(pool: Pool, rows: Rows, count: int, seed: int) -> Any:
    chosen = np.random.default_rng([seed, 1]).permutation(len(rows.accuracy))[:count]
    part = _part(rows, chosen)
    kind = lookup(PREDICTORS, pool.predictor, "predictor")
    return kind().fit(part.features, part.accuracy, groups=part.groups)


def _transferred(
    mixed: Rows, train: np.ndarray, test: np.ndarray, base: Any, seed: int
) -> tuple[float, float]:
    part = _part(mixed, train)
    fitted = TransferPredictor(base, random_state=seed)
    fitted.fit(part.features, part.accuracy, groups=part.groups)
    return _score(mixed.accuracy[test], fitted.predict(mixed.features[test]))


def _predicted(base: Any, features: np.ndarray) -> np.ndarray:
    return np.asarray(base.predict(features[:, : base.n_features_in_]))


def _score(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    return kendall_tau(truth, predicted), top_quartile_tau(truth, predicted)


def _part(rows: Rows, index: np.ndarray) -> Rows:
    return Rows(rows.features[index], rows.accuracy[index], rows.groups[index])


def _print(figures: dict[str, Any]) -> None:
    print(f"{'predictor':58}{'tau':>8}{'sd':>8}{'top quartile':>14}")
    for name, each in figures["tau"].items():
        print(f"{name:58}{each['mean']:8.3f}{each['sd']:8.3f}{each['top_quartile']:14.3f}")
    print("\ntransferred minus from scratch, paired: mean, sd and how often it wins")
    for name, each in figures["transferred_minus_scratch"].items():
        print(f"{name:58}{each['mean']:+8.3f}{each['sd']:8.3f}{each['splits_won']:5d}")
    print("\nmixed samples that reach a tau: from scratch, transferred")
    for tau, each in figures["mixed_samples_needed"].items():
        print(f"{tau:58}{each['from_scratch']:8.0f}{each['transferred']:8.0f}")
    print("\ntransferred minus fp32 predictor alone: mean, worst, splits below")
    _print_below(figures["never_below_base"])
    unseen = figures["unseen_formats"]
    if unseen["tau"]:
        print("\nfrom integer formats to floating-point ones that the base never saw")
        for name, each in unseen["tau"].items():
            print(f"{name:58}{each['mean']:8.3f}{each['sd']:8.3f}{each['top_quartile']:14.3f}")
        _print_below(unseen["never_below_base"])


def _print_below(compared: dict[str, dict[str, float]]) -> None:
    for name, each in compared.items():
        print(
            f"{name:58}{each['mean']:+8.3f}{each['worst']:+8.3f}"
            f"{each['splits_below']:5.0f} of {each['splits']}"
        )


if __name__ == "__main__":
    main()

"""What zero-cost proxies are worth for ranking the cells of NAS-Bench-201.

    python benchmarks/proxy_rank.py --data DIR [--seeds 20] [--layer-seeds 10] [--parts ...]

The truth is the validation accuracy on CIFAR-10 after 200 epochs. Four questions:

correlation: each published proxy, and each of ours on the cells that were measured (random images,
see ``nasbench201_statistics.py``), beside parameters and FLOPs. columns: the default predictor on
one-hot cells, with and without the published proxies as columns, same training and test rows.
layers: ParZC, extra trees and the default predictor on the same statistics per layer, trained on
some of the measured cells and tested on all the others. Layers stand by their place in the cell,
with all statistics, or packed to the front with the three that ParZC's authors read. ParZC takes
logarithms itself, the others are given them.
zero_samples: mean ranks of sets of proxies, no accuracy read, beside single ones.

Prints one table per part, writes ``results/proxy_rank.json``.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nasbench201_cells import Benchmark, data_folder, read_benchmark
from nasbench201_statistics import TABLE, LayerTable, read_table
from numpy.typing import NDArray
from recording import write_result
from scipy import stats

from predictors import (
    METRICS,
    AutoPredictor,
    ExtraTreesPredictor,
    ParZCPredictor,
    bootstrap_interval,
    kendall_tau,
    layer_columns,
    mean_rank,
    signed_log,
    top_quartile_tau,
)

__all__ = ["compared", "layer_logs", "main", "paired_gain"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Fit = Callable[[IntArray, int], Callable[[IntArray], FloatArray]]
"""Training rows and a seed to a function from test rows to predictions."""

_RANKINGS = ("tau", "spearman", "top_quartile_tau")
_COLUMN_SIZES = (50, 100, 200)
_LAYER_SIZES = (78, 156)
_PARZC_STATISTICS = ("grad_norm", "snip", "synflow")
_AS_THEY_ARE = ("synflow", "plain")  # a logarithm already, and one that has two signs
_COVERAGE, _DRAWS, _FEW_DRAWS = 0.95, 300, 100  # of bootstraps
_DOWN = ("plain",)  # a smaller one predicts a better network
_KINDS = ("synflow", "jacov", "naswot")
_SETS = {
    "synflow, jacov, snip": ("synflow", "jacov", "snip"),  # Abdelfattah et al., ICLR 2021
    "synflow, jacov, naswot": _KINDS,
    "synflow, jacov, naswot, params": (*_KINDS, "params"),
}
_SINGLES = (*_KINDS, "snip", "params", "flops")


def main() -> None:
    """Answers the questions, prints tables, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=None)
    parser.add_argument("--table", type=Path, default=TABLE, help="statistics per layer")
    parser.add_argument("--seeds", type=int, default=20, help="of the part columns")
    parser.add_argument("--layer-seeds", type=int, default=10)
    parser.add_argument("--test-rows", type=int, default=3000, help="of the part columns")
    parser.add_argument("--parts", nargs="+", default=list(_PARTS), choices=list(_PARTS))
    options = parser.parse_args()
    try:
        benchmark, table = read_benchmark(data_folder(options.data)), read_table(options.table)
    except ValueError as error:
        raise SystemExit(f"proxy_rank: {error}") from None
    figures = {}
    for name in options.parts:
        figures[name] = _PARTS[name](benchmark, table, options)
        _print(name, figures[name])
    if set(options.parts) == set(_PARTS):
        facts = {
            "cells": len(benchmark.index),
            "measured_cells": len(table),
            "statistics": dict(table.recipe),
            "test_rows": options.test_rows,
        }
        seeds = list(range(max(options.seeds, options.layer_seeds)))
        print(write_result("proxy_rank", seeds, {**facts, **figures}))


def _correlation(
    benchmark: Benchmark, table: LayerTable, options: argparse.Namespace
) -> dict[str, Any]:
    del options
    rows = benchmark.rows(table.index)
    groups = {
        "published, all cells": (_published(benchmark), benchmark.accuracy, 0),
        "published, measured cells": (
            {name: each[rows] for name, each in _published(benchmark).items()},
            benchmark.accuracy[rows],
            _DRAWS,
        ),
        "ours, measured cells": (
            _ours(table),
            benchmark.accuracy[rows],
            _DRAWS,
        ),
    }
    return {
        group: {name: _rankings(truth, each, draws) for name, each in proxies.items()}
        for group, (proxies, truth, draws) in groups.items()
    }


def _columns(
    benchmark: Benchmark, table: LayerTable, options: argparse.Namespace
) -> dict[str, Any]:
    del table
    cells = benchmark.one_hot()
    sets = {
        "cells": cells,
        "cells and proxies": np.hstack([cells, signed_log(benchmark.proxies)]),
    }
    fits = {name: _fitter(_default, each, benchmark.accuracy) for name, each in sets.items()}
    return {
        str(size): compared(
            fits,
            benchmark.accuracy,
            size,
            range(options.seeds),
            base="cells",
            test_rows=options.test_rows,
        )
        for size in _COLUMN_SIZES
    }


def _layers(
    benchmark: Benchmark, table: LayerTable, options: argparse.Namespace
) -> dict[str, Any]:
    rows = benchmark.rows(table.index)
    truth, cells = benchmark.accuracy[rows], benchmark.one_hot()[rows]
    fits = {"extra trees, cells": _fitter(_trees, cells, truth)}
    for name, layers in _layouts(table).items():
        values, present = layers.values, layers.present
        columns = layer_columns(layer_logs(layers.statistics, values, present), present)
        parzc = partial(_parzc, *values.shape[1:])
        fits[f"extra trees, {name}"] = _fitter(_trees, columns, truth)
        fits[f"default predictor, {name}"] = _fitter(_default, columns, truth)
        fits[f"ParZC, {name}"] = _fitter(parzc, layer_columns(values, present), truth)
    return {
        str(size): compared(
            fits,
            truth,
            size,
            range(options.layer_seeds),
            base="extra trees, six statistics by place",
        )
        for size in _LAYER_SIZES
    }


def _zero_samples(
    benchmark: Benchmark, table: LayerTable, options: argparse.Namespace
) -> dict[str, Any]:
    del options
    published = _published(benchmark)
    every = [-each if name in _DOWN else each for name, each in published.items()]
    published["naswot"] = published.pop("nwot")
    ours, truth = _ours(table), benchmark.accuracy[benchmark.rows(table.index)]
    return {
        "published, all cells": {
            **_aggregates(benchmark.accuracy, published),
            "mean rank of all thirteen": _picking(
                benchmark.accuracy, mean_rank(np.stack(every, axis=1))
            ),
        },
        "ours, measured cells": _aggregates(truth, ours),
    }


_PARTS = {
    "correlation": _correlation,
    "columns": _columns,
    "layers": _layers,
    "zero_samples": _zero_samples,
}


@dataclass(frozen=True)
class _Layers:
    statistics: tuple[str, ...]
    values: FloatArray
    present: BoolArray


def _layouts(table: LayerTable) -> dict[str, _Layers]:
    """Returns everything there is, and what ParZC's authors read in their layout."""
    packed, packed_present = table.packed()
    read = [table.statistics.index(name) for name in _PARZC_STATISTICS]
    return {
        "six statistics by place": _Layers(
            table.statistics, table.values.astype(np.float64), table.present
        ),
        "three statistics packed": _Layers(
            _PARZC_STATISTICS, packed[:, :, read].astype(np.float64), packed_present
        ),
    }


def layer_logs(statistics: Sequence[str], values: FloatArray, present: BoolArray) -> FloatArray:
    """Returns logarithms (n, l, s) of positive statistics, all above the zeros of the absent."""
    logs = np.zeros(values.shape)
    for column, name in enumerate(statistics):
        shown = values[:, :, column][present]
        if name not in _AS_THEY_ARE:
            shown = np.log(shown)
        logs[present, column] = shown - shown.min() + 1.0
    return logs


def _trees(seed: int) -> ExtraTreesPredictor:
    return ExtraTreesPredictor(random_state=seed)


def _default(seed: int) -> AutoPredictor:
    return AutoPredictor(random_state=seed)


def _parzc(positions: int, statistics: int, seed: int) -> ParZCPredictor:
    return ParZCPredictor(positions, statistics, random_state=seed)


def _aggregates(truth: FloatArray, proxies: Mapping[str, FloatArray]) -> dict[str, Any]:
    """Returns what single proxies and mean ranks of some are worth; all of them point up."""
    return {
        **{name: _picking(truth, proxies[name]) for name in _SINGLES},
        **{
            f"mean rank of {label}": _picking(
                truth, mean_rank(np.stack([proxies[name] for name in names], axis=1))
            )
            for label, names in _SETS.items()
        },
    }


def _picking(truth: FloatArray, predicted: FloatArray) -> dict[str, Any]:
    """Returns rankings and the best true value among the ten cells ranked highest."""
    top = np.argsort(-predicted, kind="stable")[:10]
    return {**_rankings(truth, predicted, _FEW_DRAWS), "best_of_top_10": float(truth[top].max())}


def _published(benchmark: Benchmark) -> dict[str, FloatArray]:
    return dict(zip(benchmark.proxy_names, benchmark.proxies.T, strict=True))


def _ours(table: LayerTable) -> dict[str, FloatArray]:
    return dict(zip(table.score_names, table.scores.T, strict=True))


def _rankings(truth: FloatArray, predicted: FloatArray, draws: int) -> dict[str, Any]:
    """Returns what a column ranks right, with bootstrap intervals if there are draws."""
    if not draws:
        return {key: METRICS[key](truth, predicted) for key in _RANKINGS}
    return {
        key: asdict(
            bootstrap_interval(METRICS[key], truth, predicted, draws=draws, coverage=_COVERAGE)
        )
        for key in _RANKINGS
    }


def _fitter(estimator: Callable[[int], Any], columns: FloatArray, truth: FloatArray) -> Fit:
    def fit(train: IntArray, seed: int) -> Callable[[IntArray], FloatArray]:
        fitted = estimator(seed).fit(columns[train], truth[train])
        return lambda test: fitted.predict(columns[test])

    return fit


def compared(
    fits: Mapping[str, Fit],
    truth: FloatArray,
    size: int,
    seeds: Sequence[int],
    *,
    base: str,
    test_rows: int | None = None,
) -> dict[str, Any]:
    """Returns mean and spread of each over the seeds, and gains over the base, paired by seed."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in fits}
    for seed in seeds:
        order = np.random.default_rng([seed, size]).permutation(len(truth))
        train, test = order[:size], order[size:][:test_rows]
        for name, fit in fits.items():
            predicted = fit(train, seed)(test)
            found[name].append(
                (kendall_tau(truth[test], predicted), top_quartile_tau(truth[test], predicted))
            )
    taus = {name: np.array(each).T for name, each in found.items()}
    return {
        name: {
            "tau": float(tau.mean()),
            "sd": float(tau.std(ddof=1)),
            "lowest": float(tau.min()),
            "highest": float(tau.max()),
            "top_quartile_tau": float(top.mean()),
            **({} if name == base else {"gain": paired_gain(tau - taus[base][0])}),
        }
        for name, (tau, top) in taus.items()
    }


def paired_gain(differences: FloatArray) -> dict[str, float]:
    """Returns the mean of paired differences with the interval of Student's t."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    half = float(stats.t.ppf((1.0 + _COVERAGE) / 2.0, len(differences) - 1) * error)
    mean = float(differences.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _print(name: str, rows: Mapping[str, Any]) -> None:
    print(f"\n{name.replace('_', ' ')}")
    for group, members in rows.items():
        for label, figures in members.items():
            shown = "  ".join(f"{key} {_number(each)}" for key, each in figures.items())
            print(f"  {f'{group}: {label}':68}{shown}", flush=True)


def _number(figure: Any) -> str:
    if isinstance(figure, Mapping):
        value = figure.get("value", figure.get("mean"))
        return f"{value:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"
    return f"{figure:+.3f}"


if __name__ == "__main__":
    main()

"""How well the default predictor ranks unseen networks, beside what others use.

    python benchmarks/predictor_rank.py --data DIR [--seeds 20] [--jobs 2] [--task NAME ...]

Of five published tables, 50, 100 and 200 networks are drawn and all others ranked, seed by seed;
no predictor is tuned to a table. Beside the default: NASLib's boosted trees with their published
hyper-parameters (500 rounds, depth 6, step .3), DyNAS-T's pair of ridge and support vector
regression with its grid (on the first seeds only: a fit takes seconds), and scikit-learn's forests
as they come. Then coverage of 90 % intervals, and speed. Prints tables and writes
``results/predictor_rank.json``.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed, parallel_config
from predictor_tasks import TASKS, missing_files, read_task
from recording import write_result
from scipy import stats
from threadpoolctl import threadpool_limits

from predictors import AutoPredictor, RidgePredictor, kendall_tau, top_quartile_tau
from predictors.conformal import ConformalPredictor
from predictors.metrics import compare_paired

_SIZES = (50, 100, 200)
_SEEDS_OF_SLOW_PEERS = 5
_SLOW = "DyNAS-T ridge and SVR"
_COVERED = ("NAS-Bench-Macro", "OFA-MobileNetV3")  # by intervals
_COVERAGE = 0.9
_DEFAULT = "default"

TARGETS = {
    "NAS-Bench-Macro": (0.83, 0.875, 0.905),
    "NAS-Bench-201": (0.57, 0.63, 0.68),
    "NAS-Bench-201 with proxies": (0.75, 0.79, 0.82),
    "OFA-MobileNetV3": (0.89, 0.915, 0.94),
    "OFA-ResNet50 arch and bits": (0.83, 0.87, 0.90),
}
"""Kendall's tau to reach with 50, 100 and 200 networks."""


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("APQKIT_DATA"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--task", action="append", choices=list(TASKS))
    options = parser.parse_args()
    folder = Path(options.data) if options.data else None
    if missing := missing_files(folder):
        raise SystemExit(
            f"predictor_rank needs --data DIR or APQKIT_DATA with {', '.join(missing)}"
        )
    seeds = list(range(options.seeds))
    names = options.task or list(TASKS)
    with (
        parallel_config(backend="loky", inner_max_num_threads=1),
        Parallel(n_jobs=options.jobs) as pool,
    ):
        ranking = {name: _ranking(pool, name, folder, seeds) for name in names}
        covered = {
            name: _coverage(pool, name, folder, seeds) for name in _COVERED if name in names
        }
    with threadpool_limits(1):
        speed = _speed()
    for name, value in speed.items():
        print(f"{name.replace('_', ' '):60}{value:14,.4g}")
    figures = {"ranking": ranking, "coverage_of_90_percent_intervals": covered, "speed": speed}
    print(write_result("predictor_rank", seeds, figures))


def _ranking(pool: Parallel, name: str, folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Returns figures of one task by number of networks and predictor."""
    jobs = [
        (size, seed, predictor)
        for size in _SIZES
        for seed in seeds
        for predictor in PREDICTORS
        if predictor != _SLOW or seed < _SEEDS_OF_SLOW_PEERS
    ]
    found = pool(delayed(_rank)(name, folder, *job) for job in jobs)
    by_job = dict(zip(jobs, found, strict=True))
    figures: dict[str, Any] = {}
    print(f"\n{name}: Kendall's tau on all other networks, 95 % interval over seeds")
    for size, target in zip(_SIZES, TARGETS[name], strict=True):
        figures[str(size)] = {"to_reach": target}
        for predictor in PREDICTORS:
            rows = [by_job[job] for job in jobs if job[0] == size and job[2] == predictor]
            if rows:
                figures[str(size)][predictor] = _summary(
                    rows, [by_job[size, seed, _DEFAULT] for seed in seeds[: len(rows)]]
                )
        _print(size, target, figures[str(size)])
    return figures


def _rank(
    name: str, folder: Path, size: int, seed: int, predictor: str
) -> tuple[float, float, float]:
    """Returns tau, tau in the top quartile and seconds of the fit, on all other rows."""
    task = read_task(name, folder)
    order = np.random.default_rng(seed).permutation(len(task.accuracy))
    train, test = order[:size], order[size:]
    began = time.perf_counter()
    predict = PREDICTORS[predictor](task.X[train], task.accuracy[train], seed)
    seconds = time.perf_counter() - began
    predicted, truth = predict(task.X[test]), task.accuracy[test]
    return kendall_tau(truth, predicted), top_quartile_tau(truth, predicted), seconds


Fit = Callable[[np.ndarray, np.ndarray, int], Callable[[np.ndarray], np.ndarray]]


def _default(X: np.ndarray, y: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    return AutoPredictor(random_state=seed).fit(X, y).predict


def _naslib(X: np.ndarray, y: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """NASLib's boosted trees; accuracy in percent, standardised, as its trees get it."""
    from xgboost import XGBRegressor

    trees = XGBRegressor(
        n_estimators=500, max_depth=6, learning_rate=0.3, random_state=seed, n_jobs=1
    )
    return trees.fit(X, (y - y.mean()) / y.std()).predict


def _dynas(X: np.ndarray, y: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """DyNAS-T's choice of the better of two grids, accuracy as tenths of percent points."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVR

    del seed
    used = np.flatnonzero(X.var(axis=0))
    limit = 1_000_000
    regressors = (
        (Ridge(max_iter=limit), {"alpha": np.arange(0.1, 10.1, 0.1)}),
        (
            SVR(kernel="rbf", gamma="auto", epsilon=0.0, max_iter=limit),
            {"C": np.arange(1.0, 101.0, 1.0)},
        ),
    )
    score = "neg_mean_absolute_percentage_error"
    grids = [
        GridSearchCV(regressor, grid, scoring=score).fit(X[:, used], 10.0 * y)
        for regressor, grid in regressors
    ]
    best = max(grids, key=lambda grid: grid.best_score_)
    return lambda rows: best.predict(rows[:, used])


def _forest(X: np.ndarray, y: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(random_state=seed).fit(X, y).predict


def _extra_trees(X: np.ndarray, y: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(random_state=seed).fit(X, y).predict


PREDICTORS: dict[str, Fit] = {
    _DEFAULT: _default,
    "NASLib boosted trees": _naslib,
    _SLOW: _dynas,
    "scikit-learn random forest": _forest,
    "scikit-learn extra trees": _extra_trees,
}
"""What is compared: fits rows, targets and a seed, and returns how to predict."""


def _summary(
    rows: list[tuple[float, float, float]], default: list[tuple[float, float, float]]
) -> dict[str, float]:
    """Returns means over seeds, and the paired difference of the default's tau to this one's."""
    tau, top, seconds = np.array(rows).T
    summary = {
        "tau": float(tau.mean()),
        "tau_interval_95": _half_width(tau),
        "top_quartile_tau": float(top.mean()),
        "top_quartile_tau_interval_95": _half_width(top),
        "fit_seconds": float(seconds.mean()),
        "seeds": len(rows),
    }
    if rows is not default and len(rows) > 1:
        paired = compare_paired(np.array(default)[:, 0], tau)
        summary |= {
            "default_gains": paired.mean,
            "default_gains_from": paired.low,
            "default_wins": paired.wins,
        }
    return summary


def _half_width(values: np.ndarray) -> float:
    """Returns half of Student's 95 % interval of a mean; infinite for a single value."""
    if len(values) < 2:
        return float("inf")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def _print(size: int, target: float, figures: dict[str, Any]) -> None:
    for predictor, each in figures.items():
        if predictor == "to_reach":
            continue
        aim = f"to reach {target:.3f}" if predictor == _DEFAULT else ""
        print(
            f"{size:5}  {predictor:28}{each['tau']:7.3f} +- {each['tau_interval_95']:.3f}"
            f"   top quartile {each['top_quartile_tau']:.3f}"
            f"   fit {each['fit_seconds']:7.3f} s  {aim}",
            flush=True,
        )


def _coverage(
    pool: Parallel, name: str, folder: Path, seeds: list[int], size: int = 100
) -> dict[str, float]:
    """Returns how often intervals of the default hold unseen accuracies, and their width."""
    found = pool(delayed(_covered)(name, folder, size, seed) for seed in seeds)
    share, width = np.array(found).T
    print(f"{name}: 90 % intervals cover {share.mean():.3f}, width {width.mean():.4f}")
    return {
        "networks": size,
        "coverage": float(share.mean()),
        "coverage_interval_95": _half_width(share),
        "mean_width": float(width.mean()),
    }


def _covered(name: str, folder: Path, size: int, seed: int) -> tuple[float, float]:
    task = read_task(name, folder)
    order = np.random.default_rng(seed).permutation(len(task.accuracy))
    train, test = order[:size], order[size:]
    intervals = ConformalPredictor(
        AutoPredictor(random_state=seed), coverage=_COVERAGE, folds=5, random_state=seed
    ).fit(task.X[train], task.accuracy[train])
    low, high = intervals.predict_interval(task.X[test])
    truth = task.accuracy[test]
    return float(np.mean((low <= truth) & (truth <= high))), float(np.mean(high - low))


def _speed(rows: int = 1000, decisions: int = 100, choices: int = 5) -> dict[str, float]:
    """Returns seconds to fit one-hot rows, and rows predicted a second."""
    rng = np.random.default_rng(0)
    X = np.eye(choices)[rng.integers(0, choices, (rows, decisions))].reshape(rows, -1)
    y = 1.0 / (1.0 + np.exp(-X @ rng.normal(size=X.shape[1]) / 5.0))
    many = np.tile(X, (20, 1))
    figures: dict[str, float] = {}
    for name, predictor in (("default", AutoPredictor()), ("ridge", RidgePredictor())):
        figures[f"{name}_fit_seconds_of_{rows}_rows_{X.shape[1]}_columns"] = _best_of(
            1, lambda predictor=predictor: predictor.fit(X, y)
        )
        seconds = _best_of(3, lambda predictor=predictor: predictor.predict(many))
        figures[f"{name}_rows_predicted_a_second"] = len(many) / seconds
    small = rng.permutation(rows)[:200]
    figures["default_fit_seconds_of_200_rows_150_columns"] = _best_of(
        3, lambda: AutoPredictor().fit(X[small, :150], y[small])
    )
    truth, predicted = rng.random((2, 3000))
    figures["tau_of_3000_rows_ms"] = 1e3 * _best_of(20, lambda: kendall_tau(truth, predicted))
    return figures


def _best_of(times: int, call: Callable[[], object]) -> float:
    """Returns the least seconds of several calls."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


if __name__ == "__main__":
    main()

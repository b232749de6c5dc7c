"""How many candidates a joint search looks at in a second, beside other evolutionary searches.

    python benchmarks/search_speed.py [--data DIR]

The space is APQ's (21 blocks, 131 dims: depth, kernel, hidden width, four formats a block). The
predictor has the shape of APQ's (520 columns of architecture and 252 of bits, three layers of 400)
with random weights, so its accuracies are synthetic. Latency comes from APQ's BitFusion table
where ``--data`` or APQKIT_DATA holds it (github.com/mit-han-lab/apq, ``lut/BitFusion_new.b1.dict``
as ``apq_bitfusion_lut/``), else from the simulated array. Limits are APQ's: 12.8, 10 and 8.4 ms.

All searches call the same two functions in the same run, on one thread: ``apqkit.search.evolve``,
pymoo's NSGA-II at the same population, Optuna's NSGA-II in memory. "functions alone" scores random
candidates without any search. Seconds are processor time, medians over repeats that take turns.
Writes ``results/search_speed.json``.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from recording import write_result

from apqkit.config import SpaceConfig
from apqkit.cost import BitFusionCost, LutCost, compile_cost
from apqkit.cost.bitfusion import BITFUSION_ARRAYS
from apqkit.cost.importers import import_table
from apqkit.search import SearchSettings, evolve
from apqkit.search.optuna_nsga2 import optuna_nsga2
from apqkit.search.problem import Problem
from apqkit.spaces.apq import ApqOptions, ApqSpace
from apqkit.spaces.draws import draw_hierarchical
from apqkit.types import AdditiveCost, FloatArray, IntArray, Space

_SEED = 0
_FORMATS = ("int4", "int6", "int8")
_LIMITS_MS = {"loose": 12.8, "middle": 10.0, "tight": 8.4}
_OBJECTIVES = {"accuracy": "max", "latency_ms": "min"}
_TABLE = "apq_bitfusion_lut/apq_bitfusion_lut.csv.gz"
_WIDTH = 400  # of a hidden layer


def main() -> None:
    """Times all searches at all limits, prints a table, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("APQKIT_DATA"))
    parser.add_argument("--candidates", type=int, default=200_000)
    parser.add_argument("--pymoo-candidates", type=int, default=20_000)
    parser.add_argument("--optuna-candidates", type=int, default=1_000)
    parser.add_argument("--population", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    space = apq_space()
    table = None if options.data is None else Path(options.data) / _TABLE
    source, model = _cost_model(table)
    costs = compile_cost(model, space)
    functions = Functions(space, SyntheticPredictor(space), costs)
    print(f"{len(space.dims)} dims, latency from {source}\n")
    print(f"{'candidates a second':28}" + "".join(f"{each:>12}" for each in _LIMITS_MS))
    rates: dict[str, dict[str, int | None]] = {}
    for name, search in _searches(functions, options).items():
        rates[name] = {each: _median_rate(search, each, options.repeats) for each in _LIMITS_MS}
        print(f"{name:28}" + "".join(f"{_shown(each):>12}" for each in rates[name].values()))
    record = {**vars(options), "latency_from": source, "dims": len(space.dims), "rates": rates}
    print(write_result("search_speed", [_SEED], record))


def apq_space() -> ApqSpace:
    """Returns APQ's space with its three formats."""
    config = SpaceConfig(
        name="apq",
        weight_formats=_FORMATS,
        activation_formats=_FORMATS,
        first_last_formats=("int8",),
    )
    return ApqSpace(config, ApqOptions(), (3, 224, 224), 1000)


class SyntheticPredictor:
    """An MLP of APQ's shape with random weights; its first layer sums rows, one a choice.

    Summing rows is the product of one-hot columns with the weights. Dims of a block that are
    picked together share a table of all their combinations, so fewer rows are summed.
    """

    def __init__(self, space: Space) -> None:
        generator = torch.Generator().manual_seed(_SEED)

        def drawn(rows: int, columns: int, scale: float) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator) * scale

        self._space = space
        counts = [len(dim.choices) for dim in space.dims]
        rows = [drawn(count, _WIDTH, 0.1) for count in counts]
        self._weights, tables, start = np.zeros((len(counts), 0), dtype=np.int64), [], 0
        columns, self._firsts, self._starts = [], [], []
        for group in _dim_groups(space):
            column = np.zeros(len(counts), dtype=np.int64)
            table = torch.zeros(1, _WIDTH)
            for dim in reversed(group):
                column[dim] = len(table)
                table = (rows[dim][:, None] + table[None]).reshape(-1, _WIDTH)
            columns.append(column)
            self._firsts.append(group[0])
            self._starts.append(start)
            tables.append(table)
            start += len(table)
        self._steps = np.stack(columns, axis=1)  # picks @ steps: the combination of each group
        self._table = torch.cat([*tables, torch.zeros(1, _WIDTH)])
        self._hidden = [drawn(_WIDTH, _WIDTH, (2.0 / _WIDTH) ** 0.5) for _ in range(2)]
        self._last = drawn(_WIDTH, 1, 0.05)

    def __call__(self, picks: IntArray) -> FloatArray:
        """(n,) made-up accuracies."""
        # Products of floats are exact here, and many times as fast as those of integers.
        entries = (picks.astype(np.float64) @ self._steps.astype(np.float64)).astype(np.int64)
        used = self._space.active(picks)[:, self._firsts]
        entries = np.where(used, entries + np.array(self._starts), len(self._table) - 1)
        with torch.inference_mode():
            values = torch.nn.functional.embedding_bag(
                torch.from_numpy(entries), self._table, mode="sum"
            ).relu_()
            for weights in self._hidden:
                values = (values @ weights).relu_()
            return torch.sigmoid(values @ self._last)[:, 0].numpy().astype(np.float64)


def _dim_groups(space: Space) -> list[list[int]]:
    """Returns dims that are always active together, few enough combinations each."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, dim in enumerate(space.dims):
        parts = dim.name.split(".")
        groups.setdefault((".".join(parts[1:3]), dim.role == "quant"), []).append(index)
    return list(groups.values())


@dataclass(frozen=True)
class Functions:
    """What every search calls."""

    space: Space
    predict: Callable[[IntArray], FloatArray]
    costs: Callable[[IntArray], dict[str, FloatArray]]

    def problem(self, limit_ms: float, settings: SearchSettings) -> Problem:
        """Returns the search under a limit."""
        return Problem(self.space, self.score, _OBJECTIVES, {"latency_ms": limit_ms}, settings)

    def score(self, picks: IntArray) -> dict[str, FloatArray]:
        """Returns accuracy and costs."""
        return {**self.costs(picks), "accuracy": self.predict(picks)}


def _cost_model(table: Path | None) -> tuple[str, AdditiveCost]:
    if table is not None and table.is_file():
        return "APQ's BitFusion table", LutCost(import_table("apq", table))
    return "the simulated array bitfusion-apq", BitFusionCost(BITFUSION_ARRAYS["bitfusion-apq"])


Search = Callable[[float], int]
"""limit in ms -> candidates that were scored."""


def _searches(functions: Functions, options: argparse.Namespace) -> dict[str, Search | None]:
    return {
        "functions alone": partial(_alone, functions, options),
        "apqkit": partial(_apqkit, functions, options),
        "pymoo NSGA-II": partial(_pymoo, functions, options) if _has_pymoo() else None,
        "Optuna NSGA-II": partial(_optuna, functions, options),
    }


def _alone(functions: Functions, options: argparse.Namespace, limit_ms: float) -> int:
    problem = functions.problem(limit_ms, SearchSettings())
    picks = draw_hierarchical(functions.space, options.population, np.random.default_rng(_SEED))
    rounds = options.pymoo_candidates // options.population
    for _ in range(rounds):
        problem.judged(picks)
    return rounds * int(options.population)


def _apqkit(functions: Functions, options: argparse.Namespace, limit_ms: float) -> int:
    settings = SearchSettings(
        population=options.population,
        generations=options.candidates // options.population - 1,
    )
    limits = {"latency_ms": limit_ms}
    found = evolve(
        functions.space,
        functions.predict,
        functions.costs,
        _OBJECTIVES,
        limits,
        settings=settings,
        seed=_SEED,
    )
    if found.violation > 0:
        raise SystemExit(f"nothing is below {limit_ms} ms")
    return found.evaluations


def _has_pymoo() -> bool:
    try:
        import pymoo  # noqa: F401
    except ImportError:
        print("pymoo is left out: pip install -c constraints.txt pymoo")
        return False
    return True


def _pymoo(functions: Functions, options: argparse.Namespace, limit_ms: float) -> int:
    from peers import pymoo_nsga2

    problem = functions.problem(limit_ms, SearchSettings())
    found = pymoo_nsga2(problem, options.population, options.pymoo_candidates, _SEED)
    return len(found)


def _optuna(functions: Functions, options: argparse.Namespace, limit_ms: float) -> int:
    problem = functions.problem(limit_ms, SearchSettings())
    return len(optuna_nsga2(problem, _SEED, evaluations=options.optuna_candidates))


def _median_rate(search: Search | None, limit: str, repeats: int) -> int | None:
    if search is None:
        return None
    rates = []
    for _ in range(repeats):
        began = time.process_time()
        count = search(_LIMITS_MS[limit])
        rates.append(count / (time.process_time() - began))
    return round(float(np.median(rates)))


def _shown(rate: int | None) -> str:
    return "-" if rate is None else f"{rate:,}"


if __name__ == "__main__":
    main()

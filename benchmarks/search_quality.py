"""How good a front is at equal numbers of evaluations, where the truth is known.

    python benchmarks/search_quality.py

The space is APQ's (131 dims). Accuracy and costs are synthetic and additive: every block adds to
an error sum that falls with its depth, kernel and hidden width and rises with the noise of its
formats; costs are bit operations (``bops``) and sizes (``size_kib``), which add up over layers by
nature. Limits are quantiles of the sampler's costs.

First table: hypervolume of the front of ``bops`` and error within limits, a search and a seed, at
the same number of distinct candidates, over that of all fronts together. pymoo's and Optuna's
NSGA-II get the same functions, limits and numbers; pymoo's also starts from the candidates that
apqkit draws first, which reach corners that uniform draws do not.

Second table: the least error under limits against the exact optimum. Blocks are priced one by one
and ``apqkit.cost.allocation`` solves the program of them all; blocks beyond the least depth may be
left out, the last of a stage first. Writes ``results/search_quality.json``.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from peers import pymoo_nsga2
from recording import write_result
from search_speed import apq_space

from apqkit.cost import compile_cost
from apqkit.cost.allocation import AllocationProblem, allocate
from apqkit.cost.network import layer_bops
from apqkit.cost.tensors import format_bits
from apqkit.errors import LimitError
from apqkit.search.evolution import evolve_problem
from apqkit.search.optuna_nsga2 import optuna_nsga2
from apqkit.search.pareto import hypervolume_2d, nondominated
from apqkit.search.problem import Problem, SearchSettings
from apqkit.spaces.draws import draw_hierarchical
from apqkit.types import BoolArray, FloatArray, IntArray, LayerTable, Space

_LIMITS = {"tight": 0.1, "middle": 0.35, "loose": 0.7}  # quantiles of the sampler's bops
_POPULATION, _EXACT_POPULATION = 100, 300
_FEWEST_BLOCKS = 2  # of a stage that is elastic


def main() -> None:
    """Runs all searches, prints two tables, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=2_000)
    parser.add_argument("--exact-evaluations", type=int, default=300_000)
    parser.add_argument("--limits", nargs="*", default=list(_LIMITS))
    options = parser.parse_args()
    truth = AdditiveTruth(apq_space())
    fronts = {limit: _fronts(truth, limit, options) for limit in options.limits}
    exact = {limit: _against_optimum(truth, limit, options) for limit in options.limits}
    record = {**vars(options), "hypervolume": fronts, "optimum": exact}
    print(write_result("search_quality", list(range(options.seeds)), record))


class Counts:
    """Bit operations and sizes of weights, which add up over rows."""

    metrics: tuple[str, ...] = ("bops", "size_kib")
    peaks: tuple[str, ...] = ()

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{metric: (n,)}``."""
        return {name: each.sum(axis=1) for name, each in self.layer_terms(table).items()}

    def layer_terms(self, table: LayerTable) -> dict[str, FloatArray]:
        """{metric: (n, L)} what each row adds."""
        sizes = table.weights * format_bits(table.weight_format) / 8192
        return {"bops": layer_bops(table), "size_kib": np.asarray(sizes, dtype=np.float64)}

    def totals(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns the sums as they are."""
        return dict(sums)


class AdditiveTruth:
    """An error that adds up over blocks, and costs that do by nature.

    The parts of a block: what a block of its stage leaves undone, less what kernel and width do,
    and the noise of each format times a weight of its own. Weights are drawn once.
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.space = space
        self.costs = compile_cost(Counts(), space)
        self._tables = [self._table(len(dim.choices), dim.role, rng) for dim in space.dims]
        self.blocks = _blocks(space)
        self._presence = {name: float(rng.lognormal(0.0, 0.3)) for name in self.blocks}

    @staticmethod
    def _table(choices: int, role: str, rng: np.random.Generator) -> FloatArray:
        """(c,) the error that each choice adds."""
        weight = float(rng.lognormal(0.0, 0.7))
        if role == "quant":
            bits = np.linspace(4.0, 8.0, choices)
            return weight * 4.0 ** (4.0 - bits)  # noise power falls four times a bit
        shares = np.linspace(0.0, 1.0, choices)
        return np.asarray((0.5 if role == "prune" else 0.2) * weight * (1.0 - np.sqrt(shares)))

    def block_error(self, name: str, picks: IntArray) -> FloatArray:
        """(n,) what a block adds if it is used: less than nothing if it does good."""
        total = np.full(len(picks), -self._presence[name])
        for column in self.blocks[name]:
            total += self._tables[column][picks[:, column]]
        return total

    def error(self, picks: IntArray) -> FloatArray:
        """(n,) the sum over blocks that are used."""
        active = self.space.active(picks)
        total = np.full(len(picks), float(len(self.blocks)))
        for name, columns in self.blocks.items():
            total += np.where(active[:, columns[0]], self.block_error(name, picks), 0.0)
        return total

    def score(self, picks: IntArray) -> dict[str, FloatArray]:
        """Returns error and costs."""
        return {"error": self.error(picks), **self.costs(picks)}

    def problem(self, limit: str, settings: SearchSettings) -> Problem:
        """Returns the search under the limits of that name."""
        values = self.costs(draw_hierarchical(self.space, 20_000, np.random.default_rng(1)))
        limits = {
            name: float(np.quantile(values[name], min(1.0, _LIMITS[limit] * factor)))
            for name, factor in (("bops", 1.0), ("size_kib", 1.2))
        }
        return Problem(self.space, self.score, {"error": "min", "bops": "min"}, limits, settings)


@dataclass(frozen=True)
class _Choices:
    """What a block may be.

    Attributes:
        error: (c,) what each adds.
        costs: (c, limits) what each costs.
        is_used: (c,) False where the block is left out.
    """

    error: FloatArray
    costs: FloatArray
    is_used: BoolArray


def _blocks(space: Space) -> dict[str, list[int]]:
    blocks: dict[str, list[int]] = {}
    for column, dim in enumerate(space.dims):
        if not dim.name.startswith("depth."):
            blocks.setdefault(".".join(dim.name.split(".")[1:3]), []).append(column)
    return blocks


def _apqkit(problem: Problem, evaluations: int, seed: int) -> IntArray:
    recorder = _Recorder(problem)
    evolve_problem(recorder.problem, None, seed)
    return np.concatenate(recorder.asked)[:evaluations]


class _Recorder:
    """Remembers what a search scores."""

    def __init__(self, problem: Problem) -> None:
        self.asked: list[IntArray] = []

        def score(picks: IntArray) -> dict[str, FloatArray]:
            self.asked.append(picks)
            return problem.score(picks)

        self.problem = replace(problem, score=score)


def _random(problem: Problem, evaluations: int, seed: int) -> IntArray:
    return draw_hierarchical(problem.space, evaluations, np.random.default_rng(seed))


def _pymoo_our_start(problem: Problem, evaluations: int, seed: int) -> IntArray:
    start = _random(problem, _POPULATION, seed)
    return pymoo_nsga2(problem, _POPULATION, evaluations, seed, initial=start)


_SEARCHES: dict[str, Callable[[Problem, int, int], IntArray]] = {
    "apqkit": _apqkit,
    "pymoo NSGA-II": lambda problem, count, seed: pymoo_nsga2(problem, _POPULATION, count, seed),
    "pymoo, our start": _pymoo_our_start,
    "Optuna NSGA-II": lambda problem, count, seed: optuna_nsga2(problem, seed, evaluations=count),
    "random": _random,
}


@dataclass(frozen=True)
class _Found:
    losses: FloatArray
    seconds: float


def _found(problem: Problem, picks: IntArray, evaluations: int, seconds: float) -> _Found:
    distinct = picks[np.sort(np.unique(picks, axis=0, return_index=True)[1])][:evaluations]
    losses, violations = problem.judged(distinct)
    losses = losses[violations <= 0]
    return _Found(losses[nondominated(losses)], seconds)


def _fronts(
    truth: AdditiveTruth, limit: str, options: argparse.Namespace
) -> dict[str, dict[str, object]]:
    settings = SearchSettings(_POPULATION, -(-options.evaluations // _POPULATION) + 3)
    problem = truth.problem(limit, settings)
    found: dict[str, list[_Found]] = {}
    for name, search in _SEARCHES.items():
        for seed in range(options.seeds):
            began = time.process_time()
            picks = search(problem, options.evaluations, seed)
            seconds = time.process_time() - began
            found.setdefault(name, []).append(_found(problem, picks, options.evaluations, seconds))
    everyone = np.concatenate([each.losses for runs in found.values() for each in runs])
    reference = everyone.max(axis=0)
    best = hypervolume_2d(everyone, reference)
    shares = {
        name: np.array([hypervolume_2d(each.losses, reference) / best for each in runs])
        for name, runs in found.items()
    }
    print(f"\n{limit}: hypervolume of {options.evaluations} candidates over that of all together")
    figures: dict[str, dict[str, object]] = {}
    for name, values in shares.items():
        wins = int((shares["apqkit"] > values).sum())
        seconds = float(np.median([each.seconds for each in found[name]]))
        figures[name] = {
            "shares": values.round(4).tolist(),
            "apqkit_is_better_on": wins,
            "median_seconds": round(seconds, 2),
        }
        print(
            f"{name:18}{np.median(values):8.3f} ({values.min():.3f} to {values.max():.3f})"
            f"{wins:6} of {options.seeds} worse than apqkit{seconds:10.2f} s"
        )
    return figures


def _against_optimum(
    truth: AdditiveTruth, limit: str, options: argparse.Namespace
) -> dict[str, object]:
    """Compares the least error under limits with the exact one."""
    generations = options.exact_evaluations // _EXACT_POPULATION - 1
    settings = SearchSettings(_EXACT_POPULATION, generations, islands=3, migrate_every=20)
    problem = replace(truth.problem(limit, settings), objectives={"error": "min"})
    exact = _exact_error(truth, problem)
    gaps = []
    for seed in range(options.seeds):
        found = evolve_problem(problem, None, seed)
        gaps.append(float(found.losses[0, 0]) / exact - 1.0)
    print(
        f"{limit}: least error within {100 * max(gaps):.2f} % of the exact {exact:.4f} "
        f"on all {options.seeds} seeds"
    )
    return {"exact": exact, "gaps": [round(each, 5) for each in gaps]}


def _exact_error(truth: AdditiveTruth, problem: Problem) -> float:
    """Returns the least error of the program of all blocks, each with all its combinations.

    Blocks are left out from the last of a stage on. Where the program leaves one out and uses the
    next, it is solved with either forced: branch and bound.
    """
    choices = {name: _choices_of(truth, problem, name) for name in truth.blocks}
    best, waiting = np.inf, [dict[str, bool]()]
    while waiting:
        forced = waiting.pop()
        error, used = _least_error(choices, problem, forced)
        if error >= best:
            continue
        torn = next((pair for pair in pairwise(truth.blocks) if _is_torn(pair, used)), None)
        if torn is None:
            best = error
        else:
            waiting += [{**forced, torn[0]: True}, {**forced, torn[1]: False}]
    return best


def _is_torn(pair: tuple[str, str], used: dict[str, bool]) -> bool:
    one, other = pair
    return one.partition(".")[0] == other.partition(".")[0] and used[other] and not used[one]


def _least_error(
    choices: dict[str, _Choices], problem: Problem, forced: dict[str, bool]
) -> tuple[float, dict[str, bool]]:
    """Returns the least error with some blocks forced in or out, and which blocks are used."""
    size = max(len(each.error) for each in choices.values())
    limits = list(problem.limits)
    sensitivity = np.full((len(choices), size), np.inf)
    costs = {name: np.full((len(choices), size), np.inf) for name in limits}
    for row, (block, each) in enumerate(choices.items()):
        allowed = each.is_used == forced[block] if block in forced else each.is_used >= 0
        count = len(each.error)
        sensitivity[row, :count] = np.where(allowed, each.error - each.error.min(), np.inf)
        for name, column in zip(limits, each.costs.T, strict=True):
            costs[name][row, :count] = column
    try:
        found = allocate(
            AllocationProblem(
                layers=list(choices),
                formats=[str(index) for index in range(size)],
                sensitivity=sensitivity,
                costs=costs,
                limits=dict(problem.limits),
            )
        )
    except LimitError:
        return np.inf, {}
    least = sum(float(each.error.min()) for each in choices.values())
    used = {
        block: bool(each.is_used[index])
        for (block, each), index in zip(choices.items(), found.choice, strict=True)
    }
    return len(choices) + least + found.sensitivity, used


def _choices_of(truth: AdditiveTruth, problem: Problem, name: str) -> _Choices:
    """Returns a block's combinations that none beats."""
    space, columns = truth.space, truth.blocks[name]
    counts = [len(space.dims[column].choices) for column in columns]
    everything = np.array([[len(dim.choices) - 1 for dim in space.dims]])  # all blocks are used
    picks = np.repeat(everything, int(np.prod(counts)), axis=0)
    picks[:, columns] = np.indices(counts).reshape(len(counts), -1).T
    table = space.network(picks)
    rows = [index for index, row in enumerate(table.names) if row.startswith(f"{name}.")]
    terms = Counts().layer_terms(table)
    values = [terms[each][:, rows].sum(axis=1) for each in problem.limits]
    choices = np.column_stack([truth.block_error(name, picks), *values])
    if int(name.partition(".b")[2]) >= _FEWEST_BLOCKS:
        choices = np.vstack([choices, np.zeros(choices.shape[1])])  # left out
    is_used = np.arange(len(choices)) < len(picks)
    kept = nondominated(choices)
    kept[len(picks) :] = True
    return _Choices(choices[kept, 0], choices[kept, 1:], is_used[kept])


if __name__ == "__main__":
    main()

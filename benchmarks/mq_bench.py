"""A benchmark of scores for bit settings, in the spirit of MQ-Bench-101 (Dong et al., ICCV 2023).

    python benchmarks/mq_bench.py build --data DIR [--settings 1000] [--network plain]
    python benchmarks/mq_bench.py score [--programs 10000] [--seeds 5]

``build`` trains two small networks on Fashion-MNIST and measures, for each, settings of 2, 3, 4 or
8 bits for the weights of every layer: batch norms folded, one scale a channel, no training
afterwards, inputs of all layers in 8 bits, accuracy on 5,000 images held out of training. It goes
on where it was cut short, and writes a table into ``mq_bench_tables``: the settings, statistics of
the layers, and the scores of ``SENSITIVITIES``.

``score`` reads the tables alone. It takes Spearman's rho of every score made by hand; evolves
proxies on training settings of the first network; and compares them on its held-out settings and
on the second network, which evolution never saw. The score to beat is the one made by hand that is
best on the same training settings; beside it stand the best of those that read no more than
formulas do, without a forward pass for each layer and format, and the best in hindsight. Prints
one table, writes ``results/mq_bench.json`` and the evolved proxy,
``mq_bench_tables/evolved.json``.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from mq_networks import NETWORKS
from mq_settings import FORMATS, HELD_OUT_IMAGES, SCHEME, Trained, measured, train_network
from mq_statistics import (
    BATCH,
    HESSIAN,
    Scores,
    activation_means,
    network_statistics,
    read_scores,
    sensitivity_scores,
    virtual_gradients,
    write_scores,
)
from numpy.typing import NDArray
from recording import write_result
from torch import Tensor

from apqkit.progress import RichProgress
from apqkit.training.evaluate import evaluate
from apqkit.types import Progress
from predictors.metrics import bootstrap_interval
from predictors.zerocost import LayerStatistics, ProxyError, assemble
from predictors.zerocost.evolution import (
    EvolutionResult,
    LayerInputs,
    Program,
    SettingTable,
    evolve,
    inputs_of,
    read_setting_table,
    save_program,
    write_setting_table,
)
from predictors.zerocost.evolution.ranking import unit_ranks

_TABLES = Path(__file__).parent / "mq_bench_tables"
_SCORES = "sensitivities.csv"
_TRAINED_ON = (50, 200, 500)
_TOP_SHARES = (0.2, 0.5, 1.0)
_DRAWS = 1000
_FROM_OUTPUTS = ("kl", "output_sqnr")  # a forward pass for each layer and format

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
_ByHand = Mapping[str, Mapping[str, float]]  # by set of settings, figures of one score


def main() -> None:
    """Builds tables, or scores those that there are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="train, measure, write the tables")
    build.add_argument("--data", default=os.environ.get("APQKIT_DATA"))
    build.add_argument("--network", choices=list(NETWORKS), action="append")
    build.add_argument("--settings", type=int, default=1000)
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--work", type=Path, default=Path("runs/mq_bench"))
    build.add_argument("--tables", type=Path, default=_TABLES)
    score = verbs.add_parser("score", help="compare scores on the tables")
    score.add_argument("--tables", type=Path, default=_TABLES)
    score.add_argument("--programs", type=int, default=10_000, help="of each evolution")
    score.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.verb == "build":
        _build(options)
    else:
        _score(options.tables, options.programs, list(range(options.seeds)))


def _build(options: argparse.Namespace) -> None:
    if options.data is None:
        raise SystemExit(
            "mq_bench build needs --data DIR or APQKIT_DATA with fashion_mnist/fashion_mnist.npz "
            "(https://github.com/zalandoresearch/fashion-mnist)"
        )
    images = Path(options.data) / "fashion_mnist" / "fashion_mnist.npz"
    for name in options.network or NETWORKS:
        work = options.work / name
        with RichProgress() as progress:
            trained = train_network(name, images, options.seed, work, progress)
            table, scores = _table(trained, options, work, progress)
        folder = options.tables / name
        write_setting_table(folder, table)
        write_scores(folder / _SCORES, table.inputs.layers, FORMATS, scores)
        print(
            f"{folder}: {len(table)} settings, accuracy {table.accuracy.mean():.3f} on average, "
            f"sd {table.accuracy.std():.3f}, fp32 {table.recipe['fp32_accuracy']:.3f}"
        )


def _table(
    trained: Trained, options: argparse.Namespace, work: Path, progress: Progress
) -> tuple[SettingTable, dict[str, Scores]]:
    settings, correct = measured(trained, options.settings, options.seed, work, progress)
    statistics, images = network_statistics(trained)
    table = SettingTable(
        name=f"fashion-mnist, {trained.name}",
        inputs=_layer_inputs(trained, statistics, images),
        settings=settings,
        accuracy=correct.sum(axis=1) / HELD_OUT_IMAGES,
        held_out=np.arange(len(settings)) % 2 == 1,
        recipe=_recipe(trained, options.seed, correct),
    )
    return table, sensitivity_scores(statistics)


def _recipe(trained: Trained, seed: int, correct: NDArray[np.int64]) -> dict[str, Any]:
    finetune = trained.config.finetune
    halves = _rank(correct[:, 0].astype(np.float64), correct[:, 1].astype(np.float64))
    return {
        "network": trained.name,
        "data": "Fashion-MNIST",
        "seed": seed,
        "epochs": finetune.epochs,
        "learning_rate": finetune.learning_rate,
        "batch_size": trained.config.supernet.batch_size,
        "weights_and_images": trained.digest,
        "images": f"{HELD_OUT_IMAGES} of the training split, held out of training",
        "weights": f"{SCHEME.weight_rule}, {SCHEME.weight_granularity}, batch norms folded",
        "activations": "int8 everywhere, ranges found once with int8 weights",
        "statistics_of": f"{BATCH} training images",
        "hessian_vectors": HESSIAN.most_vectors,
        "fp32_accuracy": float(evaluate(trained.model, trained.splits.validation).mean()),
        "spearman_of_two_halves_of_the_images": halves,
        "torch": metadata.version("torch"),
    }


def _layer_inputs(trained: Trained, statistics: LayerStatistics, images: Tensor) -> LayerInputs:
    layers, model = statistics.layers, trained.model
    return inputs_of(
        statistics,
        more={
            "activations": activation_means(model, images, layers),
            "virtual_gradients": virtual_gradients(model, images, layers),
        },
    )


@dataclass(frozen=True)
class _Rows:
    """Settings on which scores are compared.

    Attributes:
        name: Of the set.
        table: Where they are from.
        rows: (n,) which of its settings they are.
        scores: By name the scores of layers made by hand.
    """

    name: str
    table: SettingTable
    rows: BoolArray
    scores: Mapping[str, Scores]

    @property
    def truth(self) -> FloatArray:
        """(n,) accuracies."""
        return self.table.accuracy[self.rows]

    def by_hand(self, name: str) -> FloatArray:
        """Returns (n,) scores, more is better."""
        each = self.scores[name]
        return each.sign * assemble(each.values, self.table.settings[self.rows])

    def evolved(self, program: Program) -> FloatArray:
        """Returns (n,) scores, more is better; all 0 where the formula is broken."""
        sign = 1.0 if program.direction == "up" else -1.0
        try:
            return sign * program.score(self.table)[self.rows]
        except ProxyError:
            return np.zeros(int(self.rows.sum()))


def _score(tables: Path, programs: int, seeds: list[int]) -> None:
    first, second = (_read(tables, name) for name in NETWORKS)
    held_out = first[0].held_out
    sets = [
        _Rows(f"{first[0].name}: training", first[0], ~held_out, first[1]),
        _Rows(f"{first[0].name}: held out", first[0], held_out, first[1]),
        _Rows(second[0].name, second[0], np.ones(len(second[0]), dtype=np.bool_), second[1]),
    ]
    by_hand = {
        name: {each.name: _rho(each.truth, each.by_hand(name)) for each in sets}
        for name in first[1]
    }
    training = sets[0].name
    best = _best(by_hand, training)
    rivals = list(dict.fromkeys([best, _best(_cheap(by_hand), training)]))
    runs = _evolutions(first[0], programs, seeds)
    most = max(runs)
    evolved = [_evolved_figures(each, sets, rivals, by_hand) for each in runs[most]]
    winner = max(runs[most], key=lambda each: each.fitness)
    save_program(tables / "evolved.json", winner.program)
    figures = {
        "sets": {each.name: _facts(each) for each in sets},
        "by_hand": by_hand,
        "best_by_hand_on_training_settings": best,
        "best_without_passes_by_layer_and_format": rivals[-1],
        "programs": programs,
        "evolved": evolved,
        "winner": evolved[runs[most].index(winner)],
        "generalisation": {
            str(size): _generalisation(found, sets) for size, found in runs.items()
        },
    }
    _print(figures, [each.name for each in sets])
    print(write_result("mq_bench", seeds, figures))


def _read(tables: Path, name: str) -> tuple[SettingTable, dict[str, Scores]]:
    folder = tables / name
    if not folder.is_dir():
        raise SystemExit(f"there is no {folder}: run mq_bench.py build first")
    table = read_setting_table(folder)
    inputs = table.inputs
    return table, read_scores(folder / _SCORES, inputs.layers, inputs.formats)


def _rho(truth: FloatArray, score: FloatArray) -> dict[str, float]:
    """Returns Spearman's rho with its interval, and the mean over the top 20, 50 and 100 %."""
    interval = bootstrap_interval(_rank, truth, score)
    return {
        "rho": interval.value,
        "low": interval.low,
        "high": interval.high,
        "rho_of_top_shares": _top_rho(truth, score),
    }


def _top_rho(truth: FloatArray, score: FloatArray) -> float:
    order = np.argsort(-truth, kind="stable")
    parts = [order[: int(np.ceil(share * len(truth)))] for share in _TOP_SHARES]
    return float(np.mean([_rank(truth[each], score[each]) for each in parts]))


def _rank(truth: FloatArray, score: FloatArray) -> float:
    """Returns Spearman's rho; 0 for a score that ranks nothing."""
    return float(unit_ranks(truth) @ unit_ranks(score))


def _facts(each: _Rows) -> dict[str, float]:
    """Returns what the accuracies of a set are like, and what rho a perfect score could reach."""
    halves = float(each.table.recipe["spearman_of_two_halves_of_the_images"])
    reliability = 2.0 * halves / (1.0 + halves)
    return {
        "settings": len(each.truth),
        "mean_accuracy": float(each.truth.mean()),
        "sd_of_accuracy": float(each.truth.std(ddof=1)),
        "fp32_accuracy": float(each.table.recipe["fp32_accuracy"]),
        "spearman_of_two_halves_of_the_images": halves,
        "rho_that_noise_leaves": float(np.sqrt(reliability)),
    }


def _evolutions(
    table: SettingTable, programs: int, seeds: Sequence[int]
) -> dict[int, list[EvolutionResult]]:
    """Returns by number of training settings what evolution found with each seed.

    With every seed the smaller sets of training settings are parts of the larger ones.
    """
    training = np.flatnonzero(~table.held_out)
    sizes = [min(size, len(training)) for size in _TRAINED_ON]
    found: dict[int, list[EvolutionResult]] = {size: [] for size in sizes}
    with RichProgress() as progress:
        for seed in seeds:
            order = np.random.default_rng(seed).permutation(training)
            for size in found:
                label = f"seed {seed}, {size} settings"
                with progress.task(label, programs) as advance:
                    part = _with_training(table, order[:size])
                    result = evolve([part], programs=programs, seed=seed, progress=advance)
                    found[size].append(result)
    return found


def _with_training(table: SettingTable, rows: NDArray[np.int64]) -> SettingTable:
    """Returns the held-out settings and some of those for training."""
    kept = table.held_out.copy()
    kept[rows] = True
    return replace(
        table,
        settings=table.settings[kept],
        accuracy=table.accuracy[kept],
        held_out=table.held_out[kept],
    )


def _evolved_figures(
    found: EvolutionResult,
    sets: Sequence[_Rows],
    rivals: Sequence[str],
    by_hand: Mapping[str, _ByHand],
) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "formula": found.program.formula,
        "better": found.program.direction,
        "fitness": found.fitness,
        "programs_per_minute": round(found.programs_per_minute),
        "broken": found.broken,
    }
    for each in sets:
        score = each.evolved(found.program)
        hindsight = [_best(by_hand, each.name), _best(_cheap(by_hand), each.name)]
        figures[each.name] = {
            **_rho(each.truth, score),
            "best_in_hindsight": hindsight[0],
            "best_in_hindsight_without_passes_by_layer_and_format": hindsight[1],
            "minus": {
                name: _difference(each.truth, score, each.by_hand(name))
                for name in dict.fromkeys([*rivals, *hindsight])
            },
        }
    return figures


def _cheap(by_hand: Mapping[str, _ByHand]) -> dict[str, _ByHand]:
    return {name: each for name, each in by_hand.items() if name not in _FROM_OUTPUTS}


def _best(by_hand: Mapping[str, _ByHand], where: str) -> str:
    return max(by_hand, key=lambda name: by_hand[name][where]["rho"])


def _difference(truth: FloatArray, one: FloatArray, other: FloatArray) -> dict[str, float]:
    """Returns the difference of two scores' rho with the 95 % interval of a paired bootstrap."""
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(_DRAWS):
        rows = rng.integers(0, len(truth), len(truth))
        differences.append(_rank(truth[rows], one[rows]) - _rank(truth[rows], other[rows]))
    low, high = np.quantile(differences, [0.025, 0.975])
    value = _rank(truth, one) - _rank(truth, other)
    return {"value": value, "low": float(low), "high": float(high)}


def _generalisation(found: Sequence[EvolutionResult], sets: Sequence[_Rows]) -> dict[str, Any]:
    """Returns, over seeds, what fitness promised and what rho is where evolution did not look."""
    train = [next(iter(each.ranking.train.values())).value for each in found]
    others = [
        [_rank(part.truth, part.evolved(each.program)) for each in found] for part in sets[1:]
    ]
    top = [[_top_rho(p.truth, p.evolved(each.program)) for each in found] for p in sets[1:]]
    return {
        "rho_training": _mean_sd(train),
        **{f"rho_{part.name}": _mean_sd(rho) for part, rho in zip(sets[1:], others, strict=True)},
        "gap": _mean_sd([a - b for a, b in zip(train, others[0], strict=True)]),
        "fitness": _mean_sd([each.fitness for each in found]),
        **{
            f"rho_of_top_shares_{part.name}": _mean_sd(rho)
            for part, rho in zip(sets[1:], top, strict=True)
        },
    }


def _mean_sd(values: Sequence[float]) -> dict[str, float]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "sd": spread}


def _print(figures: Mapping[str, Any], sets: Sequence[str]) -> None:
    for name, facts in figures["sets"].items():
        print(
            f"{name}: {facts['settings']} settings, accuracy {facts['mean_accuracy']:.3f}, sd "
            f"{facts['sd_of_accuracy']:.3f} (fp32 {facts['fp32_accuracy']:.3f}); noise leaves a "
            f"rho of {facts['rho_that_noise_leaves']:.4f}"
        )
    print(f"\n{'Spearman (95 % interval)':26}" + "".join(f"{name:>34}" for name in sets))
    by_hand = figures["by_hand"]
    for name in sorted(by_hand, key=lambda each: -by_hand[each][sets[1]]["rho"]):
        print(f"{name:26}" + "".join(_cell(by_hand[name][each]) for each in sets))
    for seed, each in enumerate(figures["evolved"]):
        print(f"{f'evolved, seed {seed}':26}" + "".join(_cell(each[name]) for name in sets))
    keys = ("best_by_hand_on_training_settings", "best_without_passes_by_layer_and_format")
    for rival, key in {figures[key]: key for key in reversed(keys)}.items():
        print(f"\nevolved minus {rival} ({key.replace('_', ' ')})")
        for seed, each in enumerate(figures["evolved"]):
            cells = "".join(_difference_cell(each[name]["minus"][rival]) for name in sets)
            print(f"{f'seed {seed}':26}{cells}  {each['formula']}")
    print(f"winner by training fitness: {figures['winner']['formula']}")
    print("\ntraining settings, mean over seeds (sd):")
    for size, each in figures["generalisation"].items():
        shown = ", ".join(f"{k} {v['mean']:.3f} ({v['sd']:.3f})" for k, v in each.items())
        print(f"{size:>5}: {shown}")


def _cell(each: Mapping[str, float]) -> str:
    text = f"{each['rho']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
    return f"{text:>34}"


def _difference_cell(each: Mapping[str, float]) -> str:
    text = f"{each['value']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"
    return f"{text:>34}"


if __name__ == "__main__":
    main()

"""How fast candidates are priced, and how long a table of this machine takes to build.

    python benchmarks/lut_speed.py

First table: candidates a second, from picks to metrics, on one thread. "networks" builds network
tables and prices them, in parts small enough for the cache; "compiled" is
``apqkit.cost.compile_cost``. Three jobs: the shipped Fashion-MNIST space on a look-up table of
this machine with conversions between layers; the same space where fp32 is offered too, on a table
of made-up prices (they change no speed); the shipped digits space on the simulated array. Medians
of several repeats that take turns. Second table: building the look-up table in an empty cache, and
once more. Writes ``results/lut_speed.json``.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from recording import write_result

from apqkit.config import load_config
from apqkit.cost.bitfusion import BITFUSION_ARRAYS, BitFusionCost
from apqkit.cost.builder import build_lut
from apqkit.cost.compiled import CompiledCost, compile_cost
from apqkit.cost.lut import LookupTable, make_table
from apqkit.cost.lut_cost import BLOCK_HEADER, RUNTIME_HEADER, LutCost, wanted_keys
from apqkit.pipeline.cost_stage import typical_networks
from apqkit.progress import RichProgress
from apqkit.spaces import build_space
from apqkit.spaces.draws import draw_uniform
from apqkit.types import AdditiveCost, FloatArray, IntArray, Progress, Space

_SEED = 0
_PART = 2048  # networks; the plain way is slower in larger and in smaller parts
_BLOCK = 16
_MADE_UP_HEADER = {
    "device": "made-up prices",
    "units": "ms",
    "batch": "1",
    RUNTIME_HEADER: "onnxruntime",
    BLOCK_HEADER: str(_BLOCK),
}


@dataclass(frozen=True)
class _Job:
    space: Space
    model: AdditiveCost


def main() -> None:
    """Times both, prints two tables, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--plain-candidates", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with RichProgress() as progress:
        table, build = _host_table(progress)
    jobs = _jobs(table)
    figures = {}
    print(f"{'candidates a second':40}{'networks':>12}{'compiled':>12}{'compile s':>12}")
    for name, job in jobs.items():
        found = _speeds(job, options)
        figures[name] = found
        print(
            f"{name:40}{found['networks_per_s']:12,}{found['compiled_per_s']:12,}"
            f"{found['compile_s']:12.2f}"
        )
    print(f"\n{'table of this machine':40}{'rows':>12}{'seconds':>12}")
    for name, seconds in build["seconds"].items():
        print(f"{name:40}{build['rows']:12,}{seconds:12.2f}")
    print(write_result("lut_speed", [_SEED], {**vars(options), "jobs": figures, "build": build}))


def _space(name: str, image_shape: tuple[int, int, int], *, with_fp32: bool = False) -> Space:
    config = load_config(name).space
    if with_fp32:
        fields = ("weight_formats", "activation_formats", "first_last_formats")
        more = {field: (*getattr(config, field), "fp32") for field in fields}
        config = config.model_copy(update=more)
    return build_space(config, image_shape, 10)


def _host_table(progress: Progress) -> tuple[LookupTable, dict[str, object]]:
    """Returns the table of the Fashion-MNIST space here, and how long it took to build."""
    networks = typical_networks(_space("fashion-mnist", (1, 28, 28)), _SEED)
    batch = load_config("fashion-mnist").cost.batch
    seconds = {}
    with _empty_cache():
        for name in ("empty cache", "again"):
            began = time.perf_counter()
            table = build_lut(networks, batch=batch, progress=progress)
            seconds[name] = round(time.perf_counter() - began, 3)
    return table, {"rows": len(table.keys), "batch": batch, "seconds": seconds}


@contextmanager
def _empty_cache() -> Iterator[None]:
    before = os.environ.get("APQKIT_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["APQKIT_CACHE"] = folder
        yield
    if before is None:
        del os.environ["APQKIT_CACHE"]
    else:
        os.environ["APQKIT_CACHE"] = before


def _jobs(table: LookupTable) -> dict[str, _Job]:
    with_fp32 = _space("fashion-mnist", (1, 28, 28), with_fp32=True)
    rng = np.random.default_rng(_SEED)
    keys = wanted_keys(typical_networks(with_fp32, _SEED), block=_BLOCK).keys
    made_up = make_table(_MADE_UP_HEADER, keys, rng.uniform(0.01, 0.1, len(keys)))
    return {
        "fashion-mnist, table of this machine": _Job(
            _space("fashion-mnist", (1, 28, 28)), LutCost(table)
        ),
        "the same with fp32, made-up table": _Job(with_fp32, LutCost(made_up)),
        "digits, simulated array": _Job(
            _space("digits", (1, 8, 8)), BitFusionCost(BITFUSION_ARRAYS["bitfusion-2x4"])
        ),
    }


def _speeds(job: _Job, options: argparse.Namespace) -> dict[str, float]:
    began = time.perf_counter()
    compiled = compile_cost(job.model, job.space, seed=_SEED)
    compile_s = time.perf_counter() - began
    picks = draw_uniform(job.space, options.candidates, np.random.default_rng(_SEED))
    some = picks[: options.plain_candidates]
    plain = _by_networks(job, some)  # also the run that warms up
    difference = _largest_difference(plain, compiled(picks), len(some))
    seconds = _medians(
        {"plain": lambda: _by_networks(job, some), "compiled": lambda: compiled(picks)},
        options.repeats,
    )
    return {
        "networks_per_s": round(len(some) / seconds["plain"]),
        "compiled_per_s": round(len(picks) / seconds["compiled"]),
        "compile_s": round(compile_s, 3),
        "one_candidate_us": round(1e6 * _one_candidate_s(compiled, picks), 1),
        "networks_priced_to_compile": compiled.networks,
        "entries": compiled.entries,
        "largest_relative_difference": difference,
    }


def _by_networks(job: _Job, picks: IntArray) -> dict[str, FloatArray]:
    parts = [
        job.model.cost(job.space.network(picks[start : start + _PART]))
        for start in range(0, len(picks), _PART)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _largest_difference(
    plain: dict[str, FloatArray], compiled: dict[str, FloatArray], count: int
) -> float:
    tiny = np.finfo(np.float64).tiny
    return max(
        float(np.max(np.abs(compiled[name][:count] - values) / np.maximum(values, tiny)))
        for name, values in plain.items()
    )


def _one_candidate_s(compiled: CompiledCost, picks: IntArray) -> float:
    return _medians({"one": lambda: compiled(picks[:1])}, 101)["one"]


def _medians(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, call in timed.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(each)) for name, each in seconds.items()}


if __name__ == "__main__":
    main()

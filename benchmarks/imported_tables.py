"""What imported tables say of networks, and how well rows that they lack are estimated.

    python benchmarks/imported_tables.py --data DIR [--networks 2000] [--seeds 3]

Three published tables are imported. APQ's prices random networks of its own space. A 7x7 kernel on
4 bits has no price: of the networks as drawn the estimated share is reported; then such inputs are
given 6 bits, and totals are compared with the sum of rows of the file, written in plain loops. The
error of such estimates can be checked on 7x7 rows of other widths, estimated from 1x1, 3x3 and 5x5
rows. HAQ's table is asked whether more bits ever take less time. Of NSGANetV2's a fifth of the
block shapes is left out and estimated from the others. An error that is stated rightly holds about
two in three rows within one of it, and 19 in 20 within two. Prints one table, writes
``results/imported_tables.json``.
"""

import argparse
import csv
import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from recording import write_result

from apqkit.config import SpaceConfig
from apqkit.cost.importers import import_table
from apqkit.cost.interpolation import fit_interpolator
from apqkit.cost.keys import KEY_COLUMNS, TABLE_OPS, column
from apqkit.cost.lut import LookupTable
from apqkit.cost.lut_cost import LutCost
from apqkit.formats import FORMATS, format_code
from apqkit.spaces import build_space
from apqkit.spaces.draws import draw_uniform
from apqkit.types import BoolArray, Choice, IntArray, Space

_APQ = "apq_bitfusion_lut/apq_bitfusion_lut.csv.gz"
_HAQ = "haq_latency_lut/qmobilenetv2_imagenet100_batch16_latency_table.npz"
_NSGANET = "ofa_cpu_lut/ofa_mbv3_i7_8700k_lut.csv.gz"
_BITS = ("int4", "int6", "int8")
_WIDTHS, _STRIDES = (24, 40, 80, 96, 192, 320), (2, 2, 2, 1, 2, 1)  # of APQ's stages
_SHARE_LEFT_OUT = 5  # one in so many
_TOLERANCE = 1e-9


def main() -> None:
    """Imports, compares, prints a table, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("APQKIT_DATA"))
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    missing = [
        name
        for name in (_APQ, _HAQ, _NSGANET)
        if options.data is None or not (Path(options.data) / name).is_file()
    ]
    if missing:
        raise SystemExit(
            f"imported_tables needs --data DIR or APQKIT_DATA with {', '.join(missing)} (tables "
            "of github.com/mit-han-lab/apq, github.com/mit-han-lab/haq and "
            "github.com/mikelzc1990/nsganetv2)"
        )
    data, seeds = Path(options.data), list(range(options.seeds))
    figures = {
        "apq": _apq(data / _APQ, options.networks),
        "haq": _haq(data / _HAQ),
        "nsganetv2": _nsganet(data / _NSGANET, seeds),
    }
    print(f"{'table':12}{'figure':58}{'value':>12}")
    for table, found in figures.items():
        for name, value in found.items():
            shown = f"{value:12,}" if isinstance(value, int) else f"{value:12.4g}"
            print(f"{table:12}{name.replace('_', ' '):58}{shown}")
    print(write_result("imported_tables", seeds, {"networks": options.networks, **figures}))


def _apq(path: Path, networks: int) -> dict[str, float]:
    table = import_table("apq", path)
    config = SpaceConfig(name="apq", weight_formats=_BITS, activation_formats=_BITS)
    space = build_space(config, (3, 224, 224), 1000)
    picks = draw_uniform(space, networks, np.random.default_rng(0))
    model = LutCost(table)
    terms = model.layer_terms(space.network(picks))
    estimated = terms["error_ms"] > 0
    any_estimated = estimated.any(axis=1)
    share = (terms["latency_ms"] * estimated).sum(axis=1) / terms["latency_ms"].sum(axis=1)
    errors = np.array(list(model.coverage.error.values()))
    priced = _priced(space, picks)
    found = LutCost(table).cost(space.network(priced))
    both = np.stack([found["latency_ms"], found["energy_mj"]], axis=1)
    rows, ends = _plain_rows(path)
    sums = np.array([_plain_sum(values, rows, ends) for values in space.describe(priced)])
    equal = np.isclose(both, sums, rtol=_TOLERANCE, atol=0).all(axis=1)
    return {
        "rows": len(table),
        "share_of_networks_with_estimated_rows": float(any_estimated.mean()),
        "mean_estimated_share_of_their_latency": float(share[any_estimated].mean()),
        "distinct_rows_estimated": len(model.coverage.estimated),
        "median_stated_error_of_an_estimated_row": float(np.median(errors)),
        "networks_with_every_row_priced": len(priced),
        "of_these_equal_to_plain_sums_in_ms_and_mj": int(equal.sum()),
        **_large_kernels(table),
    }


def _priced(space: Space, picks: IntArray) -> IntArray:
    """Returns the same networks with 6-bit inputs where a 7x7 kernel reads 4 bits."""
    picks = picks.copy()
    columns = {dim.name: (index, dim.choices) for index, dim in enumerate(space.dims)}
    for name, (kernel, kernels) in columns.items():
        if name.startswith("kernel."):
            formats, offered = columns[f"a_format.{name.removeprefix('kernel.')}.depthwise"]
            unpriced = (picks[:, kernel] == kernels.index(7)) & (
                picks[:, formats] == offered.index("int4")
            )
            picks[unpriced, formats] = offered.index("int6")
    return space.repair(picks)


def _plain_rows(
    path: Path,
) -> tuple[dict[tuple[str, ...], tuple[float, float]], tuple[float, float]]:
    """Returns (latency, energy) by the nine texts of a row, and what head and tail add."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    if header[-2:] != ["latency", "energy"]:
        raise ValueError(f"{path} ends in the columns {header[-2:]}")
    ends = json.loads((path.parent / "head_tail.json").read_text(encoding="utf-8"))
    latency, energy = (ends["head"][name] + ends["tail"][name] for name in header[-2:])
    rows = {tuple(line[:9]): (float(line[9]), float(line[10])) for line in lines}
    return rows, (latency, energy)


def _plain_sum(
    values: Mapping[str, Choice],
    rows: Mapping[tuple[str, ...], tuple[float, float]],
    ends: tuple[float, float],
) -> tuple[float, float]:
    """Returns latency and energy of a network by value."""
    (latency, energy), channels, size = ends, 16, 112
    for stage, width in enumerate(_WIDTHS):
        for index in range(int(values.get(f"depth.s{stage}", 1))):
            block, stride = f"s{stage}.b{index}", _STRIDES[stage] if index == 0 else 1
            kernel, hidden = int(values[f"kernel.{block}"]), int(values[f"keep.{block}"])
            bits = {
                part: tuple(str(values[f"{side}_format.{block}.{part}"])[3:] for side in "wa")
                for part in ("pointwise", "depthwise")
            }
            for shape, part in (
                ((channels, hidden, size, 1, 1, 0, 1), "pointwise"),
                ((hidden, hidden, size, kernel, stride, kernel // 2, hidden), "depthwise"),
                ((hidden, width, size // stride, 1, 1, 0, 1), "pointwise"),
            ):
                price = rows[(*map(str, shape), *bits[part])]
                latency, energy = latency + price[0], energy + price[1]
            channels, size = width, size // stride
    return latency, energy


def _large_kernels(table: LookupTable) -> dict[str, float]:
    """Estimates 7x7 rows that have a price from all rows of their widths with smaller kernels."""
    keys = table.keys
    large = column(keys, "kernel") == 7
    found = []
    for weights in _BITS:
        for activations in _BITS[1:]:
            kind = (column(keys, "weight_format") == format_code(weights)) & (
                column(keys, "activation_format") == format_code(activations)
            )
            found.append(_left_out(table.take(kind), large[kind]))
    mean = np.mean(found, axis=0)
    names = ("mape", "share_within_one_stated_error", "share_within_two")
    return {
        f"7x7_rows_from_smaller_kernels_{n}": float(v) for n, v in zip(names, mean, strict=True)
    }


def _left_out(table: LookupTable, out: BoolArray) -> tuple[float, float, float]:
    """Returns the mean relative error of rows left out, and shares within stated errors."""
    process = fit_interpolator(table.keys[~out], table.latency_ms[~out])
    estimate, error = process.predict(table.keys[out])
    wrong = np.abs(estimate / table.latency_ms[out] - 1)
    return float(wrong.mean()), float((wrong <= error).mean()), float((wrong <= 2 * error).mean())


def _haq(path: Path) -> dict[str, float]:
    table = import_table("haq", path, {"ms_per_unit": 1.0})
    bits = np.array([each.bits for each in FORMATS.values()])
    formats = [KEY_COLUMNS.index(name) for name in ("weight_format", "activation_format")]
    _, shapes = np.unique(np.delete(table.keys, formats, axis=1), axis=0, return_inverse=True)
    grid = np.full((shapes.max() + 1, 9, 9), np.nan)
    grid[shapes, bits[table.keys[:, formats[0]]], bits[table.keys[:, formats[1]]]] = (
        table.latency_ms
    )
    steps = np.concatenate([np.diff(grid, axis=axis).ravel() for axis in (1, 2)])
    steps = steps[np.isfinite(steps)]
    return {
        "rows": len(table),
        "steps_of_one_bit": len(steps),
        "share_of_steps_that_take_no_less_time": float((steps >= 0).mean()),
    }


def _nsganet(path: Path, seeds: list[int]) -> dict[str, float]:
    table = import_table("nsganetv2", path)
    blocks = table.take(column(table.keys, "op") == TABLE_OPS.index("inverted_residual"))
    names = ("in_channels", "out_channels", "stride", "in_height", "residual", "squeeze_excite")
    shapes = np.stack([column(blocks.keys, name) for name in names], axis=1)
    _, index = np.unique(shapes, axis=0, return_inverse=True)
    count = int(index.max()) + 1
    found = []
    for seed in seeds:
        drawn = np.random.default_rng(seed).permutation(count)[: count // _SHARE_LEFT_OUT]
        found.append(_left_out(blocks, np.isin(index, drawn)))
    mape, within, within_two = np.array(found).T
    return {
        "rows": len(table),
        "block_rows": len(blocks),
        "block_shapes": count,
        "left_out_shapes_mape": float(mape.mean()),
        "left_out_shapes_mape_of_the_worst_seed": float(mape.max()),
        "left_out_shapes_share_within_one_stated_error": float(within.mean()),
        "left_out_shapes_share_within_two": float(within_two.mean()),
    }


if __name__ == "__main__":
    main()

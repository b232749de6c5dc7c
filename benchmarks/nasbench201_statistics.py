"""Zero-cost proxies of NAS-Bench-201 cells, whole and per layer, measured and kept in a file.

    python benchmarks/nasbench201_statistics.py --data DIR [--cells 600] [--out FILE]

Each cell is built as a network with fresh weights and scored by one ``ProxySession`` on random
images with random labels: the images of CIFAR-10 are not needed. The file is written every few
cells, and a second run goes on where the first ended; its recipe is inside. Letters: n cells, l
places of a layer, s statistics, p proxies.
"""

import argparse
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nasbench201_cells import (
    OPERATIONS,
    Benchmark,
    CellNetwork,
    data_folder,
    read_benchmark,
)
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from predictors.zerocost import ProxySession

__all__ = [
    "STATISTICS",
    "TABLE",
    "LayerTable",
    "draw_cells",
    "layer_places",
    "measure_cell",
    "read_table",
    "write_table",
]

TABLE = Path(__file__).parent / "nasbench201_layers" / "layers.npz"

STATISTICS = ("grad_norm", "snip", "plain", "fisher", "synflow", "l2_norm")
"""Proxies that have a value per weight; that of synflow is a logarithm."""

_SCORES = (
    *("params", "flops", "l2_norm", "grad_norm", "snip", "plain", "fisher", "fisher_channel"),
    *("synflow", "jacov", "epe_nas", "naswot", "naswot_mean", "swap"),
)
_IMAGES, _CLASSES, _SEED = 32, 10, 0
_SAVED_EVERY = 10  # cells
_ARRAYS = ("index", "places", "statistics", "values", "present", "score_names", "scores", "recipe")


@dataclass(frozen=True)
class LayerTable:
    """Statistics of every layer of some cells' networks.

    Attributes:
        index: (n,) number of the cell in NAS-Bench-201.
        places: l names of weights, in the order of the network whose edges all are convolutions.
        statistics: s names.
        values: (n, l, s) statistics, 0 where the cell has no weight in that place.
        present: (n, l) whether it has one.
        score_names: p names.
        scores: (n, p) proxies of the whole network.
        recipe: How all of this was measured.
    """

    index: NDArray[np.int64]
    places: tuple[str, ...]
    statistics: tuple[str, ...]
    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    score_names: tuple[str, ...]
    scores: NDArray[np.float64]
    recipe: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.index)

    def packed(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns values (n, l', s) and presence (n, l') with each cell's layers in front.

        This is the layout of a space whose layers have no fixed places: l' is the largest number
        of layers, shorter networks are filled up with zeros.
        """
        longest = int(self.present.sum(axis=1).max(initial=0))
        order = np.argsort(~self.present, axis=1, kind="stable")[:, :longest]
        present = np.take_along_axis(self.present, order, axis=1)
        return np.take_along_axis(self.values, order[:, :, None], axis=1), present


def main() -> None:
    """Measures the cells that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=None)
    parser.add_argument("--cells", type=int, default=600)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    try:
        benchmark = read_benchmark(data_folder(options.data))
        table = read_table(options.out) if options.out.exists() else empty_table()
        if dict(table.recipe) != _recipe():
            raise ValueError(f"{options.out} was measured otherwise: {json.dumps(table.recipe)}")
    except ValueError as error:
        raise SystemExit(f"nasbench201_statistics: {error}") from None
    _measure(benchmark, table, options.cells, options.out)
    print(options.out)


def draw_cells(benchmark: Benchmark, count: int) -> NDArray[np.int64]:
    """Returns rows (count,) of a seeded draw; fewer cells are the first of more."""
    return np.random.default_rng(_SEED).permutation(len(benchmark.index))[:count]


def layer_places() -> tuple[str, ...]:
    """Returns the names of all weights that the network of any cell can have."""
    network = CellNetwork(["nor_conv_3x3"] * 6)
    return tuple(name for name, each in network.named_parameters() if each.dim() >= 2)


def empty_table() -> LayerTable:
    """Returns a table of no cells."""
    places = layer_places()
    return LayerTable(
        index=np.zeros(0, dtype=np.int64),
        places=places,
        statistics=STATISTICS,
        values=np.zeros((0, len(places), len(STATISTICS)), dtype=np.float32),
        present=np.zeros((0, len(places)), dtype=np.bool_),
        score_names=_SCORES,
        scores=np.zeros((0, len(_SCORES))),
        recipe=_recipe(),
    )


def measure_cell(
    ops: Sequence[str], places: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Returns values (l, s), presence (l,) and scores (p,) of one cell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = CellNetwork(ops)
    scores = ProxySession(network, _batch(), seed=_SEED).compute(_SCORES)
    weights = {name for name, each in network.named_parameters() if each.dim() >= 2}
    present = np.array([place in weights for place in places])
    values = np.zeros((len(places), len(STATISTICS)), dtype=np.float32)
    for column, name in enumerate(STATISTICS):
        layers = scores[name].layers
        values[present, column] = [layers[each] for each in np.array(places)[present]]
    return values, present, np.array([scores[name].value for name in _SCORES])


def write_table(path: Path, table: LayerTable) -> None:
    """Writes a table under a name of its own first, so that a stop never leaves half of one."""
    arrays = {
        "index": table.index.astype(np.int32),
        "places": np.array(table.places),
        "statistics": np.array(table.statistics),
        "values": table.values,
        "present": table.present,
        "score_names": np.array(table.score_names),
        "scores": table.scores,
        "recipe": np.array(json.dumps(dict(table.recipe))),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    unfinished.replace(path)


def read_table(path: Path) -> LayerTable:
    """Reads a table.

    Raises:
        ValueError: The file is no such table, or damaged.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
        table = LayerTable(
            index=arrays["index"].astype(np.int64),
            places=tuple(map(str, arrays["places"])),
            statistics=tuple(map(str, arrays["statistics"])),
            values=arrays["values"],
            present=arrays["present"],
            score_names=tuple(map(str, arrays["score_names"])),
            scores=arrays["scores"],
            recipe=json.loads(str(arrays["recipe"])),
        )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no table of layer statistics, or damaged: {error}") from error
    _check_shapes(path, table)
    return table


def _check_shapes(path: Path, table: LayerTable) -> None:
    n, places = len(table.index), len(table.places)
    expected = {
        "values": (n, places, len(table.statistics)),
        "present": (n, places),
        "scores": (n, len(table.score_names)),
    }
    for name, shape in expected.items():
        found = getattr(table, name)
        if found.shape != shape:
            raise ValueError(f"{path}: {name} must have shape {shape}, got {found.shape}")
        if not np.isfinite(found).all():
            raise ValueError(f"{path}: {name} must be finite")
    if len(np.unique(table.index)) != n:
        raise ValueError(f"{path}: a cell is there twice")


def _measure(benchmark: Benchmark, table: LayerTable, cells: int, path: Path) -> None:
    done = set(table.index.tolist())
    rows = [row for row in draw_cells(benchmark, cells) if int(benchmark.index[row]) not in done]
    new: list[tuple[int, Any]] = []
    with Progress() as progress:
        for position, row in enumerate(progress.track(rows, description="cells"), start=1):
            ops = [OPERATIONS[code] for code in benchmark.codes[row]]
            new.append((int(benchmark.index[row]), measure_cell(ops, table.places)))
            if position % _SAVED_EVERY == 0 or position == len(rows):
                table, new = _extended(table, new), []
                write_table(path, table)


def _extended(table: LayerTable, new: Sequence[tuple[int, Any]]) -> LayerTable:
    values, present, scores = (np.stack(each) for each in zip(*(m for _, m in new), strict=True))
    return LayerTable(
        index=np.concatenate([table.index, [index for index, _ in new]]),
        places=table.places,
        statistics=table.statistics,
        values=np.concatenate([table.values, values]),
        present=np.concatenate([table.present, present]),
        score_names=table.score_names,
        scores=np.concatenate([table.scores, scores]),
        recipe=table.recipe,
    )


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(_IMAGES, 3, 32, 32, generator=generator)
    return images, torch.randperm(_IMAGES, generator=generator) % _CLASSES


def _recipe() -> dict[str, Any]:
    return {
        "network": "16, 32, 64 channels, 5 cells per stage, PyTorch's default weights",
        "inputs": "normal random numbers, 3x32x32",
        "labels": "random, as equally many of each class as the batch allows",
        "images": _IMAGES,
        "classes": _CLASSES,
        "seed": _SEED,
        "mode": "training",
    }


if __name__ == "__main__":
    main()

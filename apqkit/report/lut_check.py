"""Tables against whole networks: prices of exported subnets beside what they really take."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from apqkit.cost.kernels import OPENVINO
from apqkit.cost.lut import LookupTable
from apqkit.cost.lut_cost import RUNTIME_HEADER, LutCost
from apqkit.cost.openvino_runtime import openvino_run_times
from apqkit.errors import CostError
from apqkit.export import export_onnx, run_times
from apqkit.run import write_atomically, write_json
from apqkit.training.evaluate import calibrated_subnet
from apqkit.types import FloatArray, LayerTable, Progress, Supernet
from predictors import kendall_tau

__all__ = ["LutCheck", "check_lut", "draw_lut_check", "write_lut_check"]

_CALIBRATION_IMAGES = 32
_ROUNDS, _RUNS = 5, 20
_QUIET = 1.2  # a round is left out if its median exceeds that of the fastest by more
_FEWEST = 3  # networks that a correlation means anything for


@dataclass(frozen=True)
class LutCheck:
    """Prices of n networks beside their measured times, all in ms.

    Attributes:
        measured_ms: (n,) median of the runs; rounds that other work disturbed are left out.
        p10_ms: (n,) 10 % quantile of the runs.
        p90_ms: (n,) 90 % quantile of the runs.
        repeat_ms: (2, n) medians of the even and of the odd runs: what the table can reach.
        priced_ms: (n,) with conversions between layers.
        error_ms: (n,) the price's own error bar.
        additive_ms: (n,) without conversions, as additive tables have it.
    """

    measured_ms: FloatArray
    p10_ms: FloatArray
    p90_ms: FloatArray
    repeat_ms: FloatArray
    priced_ms: FloatArray
    error_ms: FloatArray
    additive_ms: FloatArray

    def figures(self) -> dict[str, dict[str, float]]:
        """Returns MAPE, bias, both relative, and Kendall's tau of each way to price.

        ``repeat`` compares two halves of the same measurements, the best that can be hoped for;
        ``within_1_error`` and ``within_2_errors`` are the shares of networks whose time lies so
        many error bars from the price.
        """
        even, odd = self.repeat_ms
        ways = {
            "with edges": _figures(self.priced_ms, self.measured_ms),
            "without edges": _figures(self.additive_ms, self.measured_ms),
            "repeat": _figures(odd, even),
        }
        distance = np.abs(self.priced_ms - self.measured_ms) / self.error_ms
        for times, name in ((1, "within_1_error"), (2, "within_2_errors")):
            ways["with edges"][name] = float((distance <= times).mean())
        return ways

    def to_frame(self) -> pd.DataFrame:
        """Returns one row a network."""
        columns = ("measured_ms", "p10_ms", "p90_ms", "priced_ms", "error_ms", "additive_ms")
        return pd.DataFrame({name: getattr(self, name) for name in columns})


def _figures(priced: FloatArray, measured: FloatArray) -> dict[str, float]:
    relative = priced / measured - 1.0
    return {
        "mape": float(np.abs(relative).mean()),
        "bias": float(relative.mean()),
        "tau": kendall_tau(measured, priced),
    }


def check_lut(
    table: LookupTable,
    networks: LayerTable,
    supernet: Supernet,
    image_shape: tuple[int, int, int],
    *,
    progress: Progress,
) -> LutCheck:
    """Exports networks, times them whole in the table's runtime and compares with its prices.

    Args:
        table: Of this machine; its header says the batch.
        networks: n networks, at least 3, whose every format has a kernel here.
        supernet: Gives them weights; which ones does not matter to time.
        image_shape: (channels, height, width).
        progress: Shows how far it is.

    Raises:
        CostError: Fewer than 3 networks, or one without a price.
    """
    if len(networks) < _FEWEST:
        raise CostError(f"a check needs at least {_FEWEST} networks, got {len(networks)}")
    costs = LutCost(table).cost(networks)
    additive = LutCost(table, edges=False).cost(networks)["latency_ms"]
    if np.isnan(costs["latency_ms"]).any():
        raise CostError("a network to be checked has a format that the table's device cannot run")
    rounds = _timed(networks, supernet, image_shape, table.header, progress)
    runs = [_undisturbed(each) for each in rounds]
    return LutCheck(
        measured_ms=np.array([np.median(each) for each in runs]),
        p10_ms=np.array([np.quantile(each, 0.1) for each in runs]),
        p90_ms=np.array([np.quantile(each, 0.9) for each in runs]),
        repeat_ms=np.array([[np.median(each[half::2]) for each in runs] for half in (0, 1)]),
        priced_ms=costs["latency_ms"],
        error_ms=costs["latency_error_ms"],
        additive_ms=additive,
    )


def _timed(
    networks: LayerTable,
    supernet: Supernet,
    image_shape: tuple[int, int, int],
    header: Mapping[str, str],
    progress: Progress,
) -> FloatArray:
    """(n, rounds, runs) times in ms; in a round, one run of each network in turn."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_CALIBRATION_IMAGES, *image_shape, generator=generator)
    paths = []
    with (
        tempfile.TemporaryDirectory() as folder,
        progress.task("timing whole networks", len(networks) + _ROUNDS) as advance,
    ):
        for index in range(len(networks)):
            layers = networks.take(slice(index, index + 1)).layers()
            paths.append(Path(folder) / f"{index}.onnx")
            export_onnx(calibrated_subnet(supernet, layers, images), image_shape, paths[-1], {})
            advance(1)
        run = openvino_run_times if header[RUNTIME_HEADER] == OPENVINO else run_times
        rounds = []
        for _ in range(_ROUNDS):
            rounds.append(run(paths, image_shape, batch=int(header["batch"]), runs=_RUNS))
            advance(1)
    return np.stack(rounds, axis=1)


def _undisturbed(rounds: FloatArray) -> FloatArray:
    """(runs,) of one network's rounds (rounds, runs), those that no other work disturbed."""
    medians = np.median(rounds, axis=1)
    return np.asarray(rounds[medians <= _QUIET * medians.min()].reshape(-1))


def draw_lut_check(check: LutCheck) -> Figure:
    """Price over measured time, with and without conversions, error bars of both."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    figures = check.figures()
    spread = np.abs(np.stack([check.p10_ms, check.p90_ms]) - check.measured_ms)
    axes.errorbar(
        check.measured_ms, check.priced_ms, yerr=check.error_ms, xerr=spread, fmt="o", ms=5,
        color="#3366aa", elinewidth=0.8, label=_label("with conversions", figures["with edges"]),
    )  # fmt: skip
    axes.plot(
        check.measured_ms, check.additive_ms, "x", color="#e07b00",
        label=_label("layers alone", figures["without edges"]),
    )  # fmt: skip
    ends = [0.0, float(max(check.measured_ms.max(), check.priced_ms.max())) * 1.05]
    axes.plot(ends, ends, ":", color="#9aa0a6", zorder=0)
    axes.set(xlim=ends, ylim=ends, xlabel="measured (ms)", ylabel="priced by the table (ms)")
    count, repeat = len(check.measured_ms), figures["repeat"]["tau"]
    axes.set_title(f"{count} whole networks; measured twice, tau {repeat:.2f}")
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _label(name: str, figures: dict[str, float]) -> str:
    return f"{name}: MAPE {figures['mape']:.1%}, tau {figures['tau']:.2f}"


def write_lut_check(check: LutCheck, folder: Path) -> Sequence[Path]:
    """Writes networks.csv, check.json and scatter.png into a folder and returns their paths."""
    picture = io.BytesIO()
    draw_lut_check(check).savefig(picture, format="png", dpi=110)
    paths = [folder / name for name in ("networks.csv", "check.json", "scatter.png")]
    write_atomically(paths[0], check.to_frame().to_csv(index=False, lineterminator="\n"))
    write_json(paths[1], {"networks": len(check.measured_ms), **check.figures()})
    write_atomically(paths[2], picture.getvalue())
    return paths

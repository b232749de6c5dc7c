"""The figures of a report, one function each, drawn without global state."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from apqkit.formats import FORMATS
from apqkit.report.data import LayerView, ReportData

__all__ = ["FIGURES", "figures_of"]

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#3366aa", "#e07b00", "#2e8b57", "#b03030", "#9aa0a6"
_BITS_COLOURS = {
    2: "#b2182b",
    3: "#ef8a62",
    4: "#fddbc7",
    5: "#e8e3f0",
    6: "#d1e5f0",
    7: "#a6cbe3",
    8: "#67a9cf",
    16: "#2166ac",
    32: "#bdbdbd",
}
_UNITS = {
    "latency_ms": "latency (ms)",
    "energy_mj": "energy (mJ)",
    "size_kib": "size (KiB)",
    "bops": "bit operations",
    "peak_activation_kib": "peak activation memory (KiB)",
    "macs": "multiply-accumulates",
    "params": "parameters",
}


def front(data: ReportData) -> Figure:
    """Accuracy over the searched cost: every measured candidate, the front, references."""
    figure, axes = _axes(8.6, 5.4)
    cost, evaluated, members = data.cost_axis, data.evaluated, data.front.members
    shown = axes.scatter(
        evaluated.costs[cost], evaluated.accuracy, c=data.round_of, cmap="Greys", vmin=-3, s=18,
        label="measured while searching (darker: later round)", zorder=2,
    )  # fmt: skip
    shown.set_edgecolor("none")
    order = np.argsort(members.costs[cost])
    x = members.costs[cost][order]
    axes.plot(x, members.accuracy[order], "-o", color=_BLUE, label="front, validation", zorder=4)
    axes.plot(x, members.test_accuracy[order], "--s", color=_ORANGE, ms=4, label="front, test")
    axes.plot(x, members.predicted[order], ":", color=_GREEN, label="front, predicted")
    _draw_references(axes, data)
    knee = data.front.knee()
    axes.annotate(
        f"knee {knee.keys[0]}", (knee.costs[cost][0], knee.accuracy[0]), (12, -22),
        textcoords="offset points", arrowprops={"arrowstyle": "-", "color": _BLUE}, color=_BLUE,
    )  # fmt: skip
    low = np.quantile(np.concatenate([evaluated.accuracy, members.accuracy]), 0.05)
    axes.set_ylim(min(low, members.accuracy.min()) - 0.01, None)
    axes.set_xscale("log")
    axes.set_xlabel(_UNITS.get(cost, cost))
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def formats(data: ReportData) -> Figure:
    """Number formats layer by layer, of chosen candidates."""
    names = list(dict.fromkeys(name for view in data.views for name in view.layers))
    names = data_order(data.views, names)
    width = 2.2 + 1.55 * len(data.views)
    figure, axes = _axes(width, 1.0 + 0.24 * len(names))
    for column, view in enumerate(data.views):
        by_layer = dict(zip(view.layers, view.formats, strict=True))
        for row, name in enumerate(names):
            if name in by_layer:
                _draw_format(axes, column, row, by_layer[name])
    axes.set_xlim(-0.5, len(data.views) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(data.views)), [view.key for view in data.views])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_title("weights x input; colour: bits (left weights, right input)", fontsize=9)
    return figure


def predicted_measured(data: ReportData) -> Figure:
    """Measured accuracy against what was predicted before measuring."""
    figure, axes = _axes(5.4, 5.0)
    rows = data.evaluated
    errors = np.abs(np.stack([rows.predicted - rows.predicted_low,
                              rows.predicted_high - rows.predicted]))  # fmt: skip
    axes.errorbar(
        rows.predicted, rows.accuracy, xerr=errors, fmt="none", ecolor="#d0d4da", lw=0.8, zorder=1
    )
    points = axes.scatter(rows.predicted, rows.accuracy, c=data.round_of, cmap="viridis", s=16)
    low, high = (f([*rows.predicted, *rows.accuracy]) for f in (np.nanmin, np.nanmax))
    axes.plot([low, high], [low, high], color=_GREY, lw=1)
    figure.colorbar(points, ax=axes, label="round", ticks=sorted(set(data.round_of)))
    axes.set_xlabel("predicted accuracy, with its interval")
    axes.set_ylabel("measured accuracy")
    return figure


def tau(data: ReportData) -> Figure:
    """Kendall's tau of predictors beside their baselines, and the learning curve."""
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.25, 1])
    for axes, kind in ((left, "fp32"), (middle, "mixed")):
        scores = data.scores[kind]["scores"]
        _draw_scores(axes, {name: each["tau"] for name, each in scores.items()})
        axes.set_title(f"{kind}: {data.scores[kind]['rows']} rows, out of fold", fontsize=9)
    curve = pd.DataFrame(list(data.learning_curve))
    for name, colour in (("transferred", _BLUE), ("from_scratch", _ORANGE)):
        label = name.replace("_", " ")
        right.errorbar(
            curve["mixed_samples"], curve[name], curve[f"{name}_sd"], fmt="-o", color=colour,
            capsize=3, label=label,
        )  # fmt: skip
    right.set_xlabel("mixed samples")
    right.set_ylabel("tau on held-out rows")
    right.set_title("learning curve, sd over splits", fontsize=9)
    right.legend(fontsize=8)
    for axes in (left, middle, right):
        _tidy(axes)
    return figure


def search_history(data: ReportData) -> Figure:
    """What each round added to the front, and how well it was predicted."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rounds = pd.DataFrame(list(data.rounds)).astype({"bias": float, "rmse": float})
    measured = rounds["measured"].cumsum()
    left.plot(measured, rounds["hypervolume"], "-o", color=_BLUE)
    left.set_xlabel("measured candidates")
    left.set_ylabel("hypervolume of the measured front")
    right.axhline(0, color=_GREY, lw=1)
    right.plot(rounds["round"], rounds["bias"], "-o", color=_ORANGE, label="measured - predicted")
    right.plot(rounds["round"], rounds["rmse"], "-s", color=_RED, label="RMSE")
    right.set_xticks(rounds["round"])
    right.set_xlabel("round")
    right.set_ylabel("accuracy")
    right.legend(fontsize=8)
    for axes in (left, right):
        _tidy(axes)
    return figure


def cost_breakdown(data: ReportData) -> Figure:
    """Where the device model spends the latency of chosen candidates."""
    columns = min(2, len(data.views))
    rows = -(-len(data.views) // columns)
    height = 0.8 + 0.17 * max(len(view.layers) for view in data.views)
    figure = Figure(figsize=(4.8 * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(data.views) :]:
        axes.set_axis_off()
    for axes, view in zip(grid, data.views, strict=False):
        places = np.arange(len(view.layers))
        axes.barh(places, np.nan_to_num(view.latency_ms), color=_BLUE)
        axes.set_yticks(places, view.layers, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("latency (ms)", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(f"{view.key}: {np.nansum(view.latency_ms):.4g} ms", fontsize=9)
        _tidy(axes)
    return figure


def stage_seconds(data: ReportData) -> Figure:
    """Time of each stage."""
    figure, axes = _axes(6.4, 2.6)
    names = list(data.stage_seconds)
    seconds = [data.stage_seconds[name] for name in names]
    axes.barh(names, seconds, color=_GREEN)
    for place, value in enumerate(seconds):
        axes.text(value, place, f" {value:.1f} s", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.margins(x=0.15)
    return figure


def training(data: ReportData) -> Figure:
    """Losses of the supernet over both phases."""
    figure, axes = _axes(7.4, 3.2)
    history = data.history.reset_index(drop=True)
    colours = {"largest": _BLUE, "smallest": _RED, "random": _ORANGE}
    for name, colour in colours.items():
        if f"loss_{name}" in history:
            axes.plot(history.index + 1, history[f"loss_{name}"], color=colour, label=name)
    switch = int((history["phase"] == "fp32").sum())
    if switch < len(history):
        axes.axvline(switch + 0.5, color=_GREY, ls="--", lw=1)
        top = axes.get_ylim()[1]
        axes.text(switch + 1, top, "random formats", va="top", fontsize=8, color="#555")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.legend(fontsize=8)
    return figure


def sample_spread(data: ReportData) -> Figure:
    """How measured samples spread, against the noise of the validation images."""
    figure, axes = _axes(7.0, 3.2)
    for (kind, values), colour in zip(data.samples.items(), (_BLUE, _ORANGE), strict=False):
        noise = data.noise[kind]
        label = (
            f"{kind}: sd {noise['deviation']:.3f}, paired noise {noise['noise']:.4f} "
            f"(ratio {noise['ratio']:.1f})"
        )
        axes.hist(values, bins=24, color=colour, alpha=0.55, label=label)
    axes.set_xlabel("validation accuracy of a sample")
    axes.set_ylabel("samples")
    axes.legend(fontsize=8, loc="upper left")
    return figure


def latency(data: ReportData) -> Figure:
    """Latency that the device model prices against the time in ONNX Runtime on this machine."""
    figure, axes = _axes(5.4, 4.4)
    timing = data.timing
    lower = timing["measured_ms"] - timing["p10_ms"]
    upper = timing["p90_ms"] - timing["measured_ms"]
    axes.errorbar(
        timing["latency_ms"], timing["measured_ms"], yerr=np.stack([lower, upper]), fmt="o",
        color=_BLUE, ecolor="#c4cbd6", ms=4,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"latency_ms on {data.facts.get('device', 'the device')}")
    axes.set_ylabel("measured here in ONNX Runtime (ms)")
    return figure


FIGURES: dict[str, tuple[str, Callable[[ReportData], Figure]]] = {
    "front": ("The front", front),
    "formats": ("Number formats layer by layer", formats),
    "cost_breakdown": ("Where the latency goes", cost_breakdown),
    "predicted_measured": ("Predicted and measured accuracy", predicted_measured),
    "tau": ("How well the predictors rank", tau),
    "search_history": ("Search, round by round", search_history),
    "latency": ("Priced and measured latency", latency),
    "sample_spread": ("Spread of the samples", sample_spread),
    "training": ("Training of the supernet", training),
    "stage_seconds": ("Time by stage", stage_seconds),
}
"""Every figure by file name: its heading and the function that draws it."""

_OF_SAMPLES = ("tau", "sample_spread")


def figures_of(data: ReportData) -> dict[str, tuple[str, Callable[[ReportData], Figure]]]:
    """Returns the figures that have something to show: those of samples only if there are any."""
    sampled = any(len(values) for values in data.samples.values())
    return {name: each for name, each in FIGURES.items() if sampled or name not in _OF_SAMPLES}


def data_order(views: Sequence[LayerView], names: Sequence[str]) -> list[str]:
    """Returns layer names in order of execution, over candidates of different depth."""
    longest = max(views, key=lambda view: len(view.layers))
    known = list(longest.layers)
    for name in names:
        if name not in known:
            block = name.rsplit(".", 1)[0]
            later = [i for i, each in enumerate(known) if each.rsplit(".", 1)[0] == block]
            known.insert(later[-1] + 1 if later else _place_of_block(known, block), name)
    return known


def _place_of_block(known: Sequence[str], block: str) -> int:
    """Where a block that is not there yet belongs: before the first later one, or the head."""
    for place, name in enumerate(known):
        if name == "head" or _numbers(name) > _numbers(block):
            return place
    return len(known)


def _numbers(layer: str) -> tuple[int, ...]:
    """Returns stage and block of a layer such as ``s10.b2.expand``; nothing for others."""
    return tuple(int(each) for each in re.findall(r"\b[sb](\d+)\b", layer))


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#eceff3", lw=0.8)
    axes.set_axisbelow(True)


def _draw_references(axes: Axes, data: ReportData) -> None:
    references, cost = data.front.references, data.cost_axis
    markers = iter("^vD*Ph")
    for index, name in enumerate(references.origins):
        x, y = references.costs[cost][index], references.accuracy[index]
        if np.isnan(x):
            axes.axhline(y, color=_RED, lw=0.8, ls="--", label=f"{name} (no price on this device)")
        else:
            axes.plot(x, y, next(markers), color=_RED, ms=8, label=name, zorder=5)


def _draw_scores(axes: Axes, scores: Mapping[str, Mapping[str, float]]) -> None:
    names = list(scores)
    values = np.array([scores[name]["value"] for name in names])
    low = np.array([scores[name]["low"] for name in names])
    high = np.array([scores[name]["high"] for name in names])
    learned = [name not in ("bops", "macs", "params") for name in names]
    axes.barh(names, values, color=[_BLUE if each else _GREY for each in learned])
    axes.errorbar(
        values, range(len(names)), xerr=np.abs(np.stack([values - low, high - values])),
        fmt="none", ecolor="#222", lw=1,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel("Kendall's tau, 95 % interval")
    axes.tick_params(axis="y", labelsize=8)


def _draw_format(axes: Axes, column: int, row: int, text: str) -> None:
    weights, _, source = text.rpartition(" x ")
    halves = [(weights, -0.5, 0.5), (source, 0.0, 0.5)] if weights else [(source, -0.5, 1.0)]
    for name, left, width in halves:
        colour = _BITS_COLOURS.get(FORMATS[name].bits, "#ffffff")
        axes.add_patch(
            Rectangle((column + left, row - 0.5), width, 1.0, facecolor=colour, edgecolor="white")
        )
        middle = column + left + width / 2
        axes.text(middle, row, name, ha="center", va="center", fontsize=6)

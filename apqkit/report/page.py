"""The report as one HTML page that opens offline: figures inside, tables with units."""

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from apqkit.front import Evaluated
from apqkit.report.data import ReportData
from apqkit.report.figures import figures_of
from apqkit.run import write_atomically

__all__ = ["front_table", "write_report"]

_DPI = 110
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2330; margin: 0 auto; max-width: 1080px;
       padding: 24px; }
h1 { font-size: 26px; margin-bottom: 4px; } h2 { font-size: 19px; margin-top: 40px; }
p.lead { color: #556; margin-top: 0; }
table { border-collapse: collapse; font-size: 13px; margin: 8px 0 16px; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid #e4e7ec; }
th { background: #f5f7fa; } td:first-child, th:first-child { text-align: left; }
tr.knee td { background: #eef4ff; font-weight: 600; }
img { max-width: 100%; } .scroll { overflow-x: auto; }
nav a { margin-right: 14px; } li { margin: 2px 0; }
"""

_COLUMNS = {
    "key": "key",
    "origin": "proposed by",
    "accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "predicted": "predicted (interval)",
    "latency_ms": "latency (ms)",
    "energy_mj": "energy (mJ)",
    "size_kib": "size (KiB)",
    "peak_activation_kib": "peak activations (KiB)",
    "bops": "bit operations (M)",
}


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes index.html and figures/*.png into a folder and returns the page's path."""
    images = {}
    for name, (_, draw) in figures_of(data).items():
        buffer = io.BytesIO()
        draw(data).savefig(buffer, format="png", dpi=_DPI)
        images[name] = buffer.getvalue()
        write_atomically(folder / "figures" / f"{name}.png", images[name])
    page = folder / "index.html"
    write_atomically(page, _page(data, images))
    return page


def front_table(evaluated: Evaluated) -> pd.DataFrame:
    """Returns the columns that people compare, with readable names and rounded figures."""
    rows = []
    for index in range(len(evaluated)):
        figures = {name: values[index] for name, values in evaluated.costs.items()}
        predicted = evaluated.predicted[index]
        low, high = evaluated.predicted_low[index], evaluated.predicted_high[index]
        rows.append(
            {
                "key": evaluated.keys[index],
                "origin": evaluated.origins[index],
                "accuracy": f"{evaluated.accuracy[index]:.4f}",
                "test_accuracy": f"{evaluated.test_accuracy[index]:.4f}",
                "predicted": f"{predicted:.3f} ({low:.3f}-{high:.3f})"
                if predicted == predicted
                else "-",
                "latency_ms": _figure(figures["latency_ms"], "{:.4f}"),
                **(
                    {"energy_mj": _figure(figures["energy_mj"], "{:.4f}")}
                    if "energy_mj" in figures
                    else {}
                ),
                "size_kib": _figure(figures["size_kib"], "{:.2f}"),
                "peak_activation_kib": _figure(figures["peak_activation_kib"], "{:.2f}"),
                "bops": _figure(figures["bops"] / 1e6, "{:.2f}"),
            }
        )
    return pd.DataFrame(rows).rename(columns=_COLUMNS)


def _page(data: ReportData, images: Mapping[str, bytes]) -> str:
    sections = [
        _section("The front", _front_section(data)),
        *(
            _section(heading, _image(name, heading, images[name]) + _beside(name, data))
            for name, (heading, _) in figures_of(data).items()
        ),
        _section("Exported models", _exports(data)),
        _section("Finetuned members", _finetuned(data)),
        _section("Versions and seeds", _pairs(data.facts)),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(data.title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(data.title)}</h1>{_lead(data)}" + "".join(sections) + "</body></html>\n"
    )


def _lead(data: ReportData) -> str:
    goals = ", ".join(f"{name} {way}" for name, way in data.front.objectives.items())
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in data.notes)
    return (
        f"<p class='lead'>{len(data.front)} members on the front; objectives: "
        f"{html.escape(goals)}; {len(data.evaluated)} candidates measured.</p><ul>{notes}</ul>"
    )


def _front_section(data: ReportData) -> str:
    members = _table(front_table(data.front.members), highlight=data.front.knee_key)
    references = _table(front_table(data.front.references).drop(columns=_COLUMNS["predicted"]))
    return (
        "<p>Validation accuracy chose the front; test images were read afterwards. "
        "The highlighted row is the knee.</p>"
        f"{members}<h3>For scale</h3>{references}"
    )


def _beside(name: str, data: ReportData) -> str:
    """Returns the tables that belong to a figure."""
    if name == "latency":
        return _table(data.timing.round(4)) + _totals(data)
    if name == "tau":
        tables = [_scores(kind, data.scores[kind]) for kind in ("fp32", "mixed")]
        return "".join(tables) + _budget(data.budget)
    if name == "search_history":
        return _table(pd.DataFrame(list(data.rounds)).round(4))
    if name == "training":
        return _table(pd.DataFrame(data.check).T.round(4).reset_index(names="fp32 subnet"))
    if name == "sample_spread":
        return _table(pd.DataFrame(data.noise).T.round(4).reset_index(names="kind"))
    if name == "cost_breakdown":
        return "".join(_layers_table(view) for view in data.views[:1])
    return ""


def _layers_table(view: Any) -> str:
    frame = pd.DataFrame(
        {
            "layer": view.layers,
            "shape": view.shapes,
            "formats": view.formats,
            "latency_ms": [_figure(each, "{:.5f}") for each in view.latency_ms],
        }
    )
    return f"<h3>{html.escape(view.key)}, layer by layer</h3>{_table(frame)}"


def _totals(data: ReportData) -> str:
    return "<h3>One format throughout</h3>" + _table(data.totals.round(4))


def _scores(kind: str, scores: Mapping[str, Any]) -> str:
    rows = []
    for name, metrics in scores["scores"].items():
        row = {"predictor or baseline": name}
        for metric, each in metrics.items():
            row[metric] = f"{each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
        rows.append(row)
    return f"<h3>{kind}, {scores['rows']} rows</h3>{_table(pd.DataFrame(rows))}"


def _budget(advice: Mapping[str, Any] | None) -> str:
    """Returns both accountings of transfer; nothing where there are no samples."""
    if advice is None:
        return ""
    seconds, split = advice["seconds_a_sample"], advice["split"]
    text = (
        f"An fp32 sample takes {seconds['fp32']:.4f} s, a mixed one {seconds['mixed']:.4f} s. "
        f"For another {advice['budget_s']:.1f} s, what the samples at hand have cost: "
        f"{advice['text']}."
    )
    return (
        f"<h3>What more samples would bring</h3><p>{html.escape(text)}</p>"
        f"{'' if split is None else _table(_options(split))}"
    )


def _options(split: Mapping[str, Any]) -> pd.DataFrame:
    """Returns what each way to spend a budget of samples is expected to reach."""
    taus = {
        f"best split: {split['fp32']} fp32 and {split['mixed']} mixed samples": "tau",
        "mixed samples alone, transferred from the fp32 samples at hand": "tau_mixed_only",
        "mixed samples alone, from scratch": "tau_scratch",
        "the same, the cost of the fp32 samples at hand spent on mixed ones too": (
            "tau_scratch_at_equal_cost"
        ),
    }
    return pd.DataFrame(
        [{"budget": what, "expected tau": f"{split[name]:.3f}"} for what, name in taus.items()]
    )


def _exports(data: ReportData) -> str:
    rows = [
        {
            "key": check["key"],
            "weights stored": check["carrier"],
            "file (KiB)": check["file_kib"],
            "torch accuracy": f"{check['torch_accuracy']:.4f}",
            "ONNX accuracy": f"{check['optimised']['accuracy']:.4f}",
            "other class, unoptimised": check["unoptimised"]["images_with_other_class"],
            "other class, optimised": check["optimised"]["images_with_other_class"],
            "of these beyond a step": check["optimised"]["beyond_one_step"],
            "largest difference": f"{check['unoptimised']['largest_difference']:.4g}",
            "images": f"{check['images']} ({check['split']})",
            "latency (ms)": _latency(check["latency"]),
            "same network in fp32 (ms)": _latency(check["reference_latency"]),
            "note": check["note"],
        }
        for check in data.exports
    ]
    return _table(pd.DataFrame(rows)) if rows else "<p>None yet.</p>"


def _latency(found: Mapping[str, Any]) -> str:
    low, high = found["p10_ms"], found["p90_ms"]
    return f"{found['median_ms']:.3f} ({low:.3f} to {high:.3f}), batch {found['batch']}"


def _finetuned(data: ReportData) -> str:
    rows = [
        {
            "key": each["key"],
            "epochs": each["epochs"],
            **{
                f"{split}, {when}": f"{each[when][split]:.4f}"
                for split in ("validation", "test")
                for when in ("before", "after")
            },
        }
        for each in data.finetuned
    ]
    hint = "<p>None yet: <code>apqkit finetune DIR --pick KEY</code> trains a member.</p>"
    return _table(pd.DataFrame(rows)) if rows else hint


def _pairs(facts: Mapping[str, Any]) -> str:
    frame = pd.DataFrame({"what": list(facts), "value": [str(each) for each in facts.values()]})
    return _table(frame)


def _table(frame: pd.DataFrame, highlight: str | None = None) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in frame.columns)
    body = []
    for row in frame.itertuples(index=False):
        mark = " class='knee'" if highlight is not None and row[0] == highlight else ""
        cells = "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row)
        body.append(f"<tr{mark}>{cells}</tr>")
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(body)}</table></div>"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return "-"
    return f"{value:.0f}" if value.is_integer() and abs(value) >= 2 else str(value)


def _section(heading: str, content: str) -> str:
    return f"<h2>{html.escape(heading)}</h2>{content}"


def _image(name: str, heading: str, png: bytes) -> str:
    source = base64.b64encode(png).decode()
    return f"<img id='{name}' alt='{html.escape(heading)}' src='data:image/png;base64,{source}'>"


def _figure(value: float, pattern: str) -> str:
    return pattern.format(value) if value == value else "-"

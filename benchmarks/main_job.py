"""Times whole ``apqkit run-search`` processes and records what they found.

    python benchmarks/main_job.py digits --repeats 3
    python benchmarks/main_job.py fashion-mnist --data DIR

Prints one table and writes ``results/main_job_CONFIG.json``. Each repeat is a fresh process and a
fresh run directory; the look-up table of the machine is built anew in the first repeat only.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from recording import RESULTS, write_result

import apqkit
from apqkit.config import load_config
from predictors import kendall_tau


def main() -> None:
    """Runs the jobs, prints one table, writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--data", default=os.environ.get("APQKIT_DATA"))
    parser.add_argument("--keep", type=Path, help="keep the last run directory here")
    options = parser.parse_args()
    overrides = _overrides(options.config, options.data)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["APQKIT_CACHE"] = str(Path(scratch) / "cache")
        runs = []
        for repeat in range(options.repeats):
            path = Path(scratch) / f"run{repeat}"
            runs.append(_timed_run(options.config, path, overrides))
            print(f"{options.config}, run {repeat + 1}: {runs[-1]['wall_s']:.1f} s", flush=True)
        figures = {"config": options.config, "repeats": runs, **_summary(runs), **_found(path)}
        shutil.copyfile(
            path / "report" / "figures" / "front.png", RESULTS / f"{options.config}_front.png"
        )
        if options.keep:
            shutil.copytree(path, options.keep, dirs_exist_ok=True)
    written = write_result(f"main_job_{options.config}", [0], figures)
    _print(figures)
    print(written)


def _overrides(config: str, data: str | None) -> list[str]:
    if config != "fashion-mnist":
        return []
    if data is None:
        raise SystemExit(
            "fashion-mnist needs --data DIR or APQKIT_DATA with fashion_mnist/fashion_mnist.npz "
            "(https://github.com/zalandoresearch/fashion-mnist)"
        )
    return ["--set", f"data.path={Path(data) / 'fashion_mnist' / 'fashion_mnist.npz'}"]


def _timed_run(config: str, path: Path, overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "apqkit", "run-search", config, "--out", str(path)]
    load = os.getloadavg()[0]
    began = time.perf_counter()
    subprocess.run([*command, *overrides], check=True, capture_output=True)
    wall = time.perf_counter() - began
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    manifest = json.loads((path / "manifest.json").read_text())
    return {
        "wall_s": round(wall, 1),
        "load_before": round(load, 2),
        "peak_memory_mib": round(peak_kib / 1024),
        "stage_s": {name: each["seconds"] for name, each in manifest["stages"].items()},
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    stages = runs[0]["stage_s"]
    return {
        "median_wall_s": statistics.median(each["wall_s"] for each in runs),
        "median_stage_s": {
            name: statistics.median(each["stage_s"][name] for each in runs) for name in stages
        },
        "peak_memory_mib": max(each["peak_memory_mib"] for each in runs),
    }


def _found(path: Path) -> dict[str, Any]:
    front = apqkit.read_front(path)
    timing = pd.read_csv(path / "export" / "timing.csv", dtype={"key": str, "note": str})
    timing = timing.fillna({"note": ""})
    members = timing[timing["key"].isin(front.members.keys)]
    comparable = members[members["note"] == ""]
    return {
        "limits": dict(load_config(path / "config.toml").search.limits),
        "members": _rows(front.members),
        "knee": front.knee_key,
        "references": _rows(front.references),
        "latency": {
            "rows": json.loads(timing.to_json(orient="records")),
            "members_emulated": len(members) - len(comparable),
            "tau_of_members": _tau(comparable),
        },
        "supernet": _json(path / "supernet" / "check.json"),
        "noise": _json(path / "samples" / "noise.json"),
        "scores": _json(path / "predictor" / "scores.json"),
        "learning_curve": _json(path / "predictor" / "learning_curve.json"),
        "proxies": _json(path / "predictor" / "proxies.json"),
        "rounds": _json(path / "search" / "rounds.json"),
        "totals": json.loads(pd.read_csv(path / "cost" / "totals.csv").to_json(orient="records")),
        "coverage": _json(path / "cost" / "coverage.json"),
        "exports": {
            each.parent.name: _json(each) for each in sorted(path.glob("export/*/check.json"))
        },
    }


def _tau(timing: pd.DataFrame) -> float | None:
    """Kendall's tau of priced and measured latency; None where too few are comparable."""
    if len(timing) < 3:
        return None
    return float(kendall_tau(timing["latency_ms"], timing["measured_ms"]))


def _rows(evaluated: apqkit.Evaluated) -> list[dict[str, Any]]:
    frame = evaluated.to_frame().drop(columns="candidate")
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return rows


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _print(figures: dict[str, Any]) -> None:
    stages = figures["median_stage_s"]
    rows = {
        "wall time, median (s)": figures["median_wall_s"],
        **{f"stage {name}, median (s)": seconds for name, seconds in stages.items()},
        "peak memory (MiB)": figures["peak_memory_mib"],
        "members on the front": len(figures["members"]),
        "largest fp32, validation": figures["supernet"]["largest"]["accuracy"],
        "tau fp32 predictor": figures["scores"]["fp32"]["scores"]["predictor"]["tau"]["value"],
        **{
            f"tau mixed, {name}": each["tau"]["value"]
            for name, each in figures["scores"]["mixed"]["scores"].items()
        },
        **{f"spread / noise, {k}": each["ratio"] for k, each in figures["noise"].items()},
        "tau priced-measured latency": figures["latency"]["tau_of_members"],
    }
    for name, value in rows.items():
        print(f"{name:34}{'-' if value is None else format(value, '12.4g'):>12}")


if __name__ == "__main__":
    main()

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apqkit.front import Evaluated, ParetoSet
from apqkit.report.data import LayerView, ReportData

SCORES = {
    name: {
        metric: {"value": value, "low": value - 0.1, "high": value + 0.1}
        for metric in ("tau", "spearman", "top_quartile_tau", "rmse")
    }
    for name, value in (("predictor", 0.75), ("macs", 0.5), ("params", 0.25))
}


def evaluated(count, origin="evolution"):
    """Candidates whose accuracy falls with their latency, with round figures."""
    order = np.arange(count, dtype=float)
    accuracy = 0.9 - order / 100
    return Evaluated(
        keys=tuple(f"key{index}" for index in range(count)),
        origins=(origin,) * count,
        candidates=({"width.s0": 4},) * count,
        accuracy=accuracy,
        predicted=accuracy + 0.02,
        predicted_low=accuracy - 0.03,
        predicted_high=accuracy + 0.07,
        test_accuracy=accuracy - 0.01,
        costs={
            "latency_ms": 0.5 - order / 20,
            "size_kib": 8.0 - order,
            "peak_activation_kib": 2.0 - order / 10,
            "bops": (8.0 - order) * 1e6,
            "macs": 1e5 - order,
            "params": 1e3 - order,
        },
    )


def references():
    """Two networks for scale; the first one has no price on the device."""
    nan = np.full(2, np.nan)
    rows = replace(
        evaluated(2), keys=("largest-fp32", "smallest-int8"),
        origins=("largest, fp32", "smallest, int8"),
        predicted=nan, predicted_low=nan, predicted_high=nan,
    )  # fmt: skip
    costs = {name: values.copy() for name, values in rows.costs.items()}
    costs["latency_ms"][0] = np.nan
    return replace(rows, costs=costs)


@pytest.fixture(scope="session")
def data():
    """A small report with round figures in every part."""
    views = [
        LayerView(
            key="key1",
            layers=["stem", "s0.b0.expand", "s0.b0.add", "head"],
            formats=["int8 x uint8", "int4 x fp8_e4m3", "int8", "int2 x int8"],
            shapes=["conv 3x3, 1 to 8, 8x8, stride 1", "conv 1x1", "add", "conv 1x1"],
            latency_ms=np.array([0.125, 0.25, 0.0, 0.0625]),
        ),
        LayerView(
            key="key0",
            layers=["stem", "s0.b0.expand", "s1.b0.expand", "head"],
            formats=["int8 x uint8"] * 4,
            shapes=["conv 3x3"] * 4,
            latency_ms=np.array([0.125, 0.25, np.nan, 0.0625]),
        ),
    ]
    return ReportData(
        title="digits <on> a device",
        front=ParetoSet(
            members=evaluated(4),
            references=references(),
            objectives={"accuracy": "max", "latency_ms": "min"},
            knee_key="key1",
            path=Path("runs/small"),
        ),
        evaluated=evaluated(6),
        rounds=[
            {"round": 0, "measured": 4, "bias": 0.5, "rmse": 0.25, "share_inside_interval": 1.0,
             "hypervolume": 0.125},
            {"round": 1, "measured": 2, "bias": 0.0, "rmse": 0.125, "share_inside_interval": 0.5,
             "hypervolume": 0.375},
        ],
        round_of=[0, 0, 0, 0, 1, 1],
        scores={kind: {"rows": rows, "scores": SCORES} for kind, rows in
                (("fp32", 24), ("mixed", 25))},
        learning_curve=[
            {"mixed_samples": 6, "transferred": 0.5, "from_scratch": 0.25, "transferred_sd": 0.1,
             "from_scratch_sd": 0.2},
            {"mixed_samples": 12, "transferred": 0.75, "from_scratch": 0.5, "transferred_sd": 0.1,
             "from_scratch_sd": 0.2},
        ],
        samples={"fp32": np.linspace(0.5, 0.9, 9), "mixed": np.linspace(0.4, 0.8, 9)},
        noise={
            kind: {"deviation": 0.125, "noise": 0.0625, "ratio": 2.0} for kind in ("fp32", "mixed")
        },
        history=pd.DataFrame({
            "phase": ["fp32", "fp32", "quantized"], "epoch": [0, 1, 0],
            "loss_largest": [2.0, 1.0, 1.5], "loss_smallest": [2.5, 1.5, 2.0],
            "loss_random": [2.25, 1.25, 1.75],
        }),
        check={"largest": {"accuracy": 0.875}, "smallest": {"accuracy": 0.625}},
        timing=pd.DataFrame({
            "key": ["key0", "key1"], "origin": ["evolution"] * 2, "latency_ms": [0.5, 0.25],
            "measured_ms": [0.05, 0.04], "p10_ms": [0.04, 0.03], "p90_ms": [0.07, 0.06],
            "batch": [1, 1], "note": ["", ""],
        }),
        totals=pd.DataFrame({"network": ["largest"], "formats": ["int8"], "latency_ms": [0.75]}),
        views=views,
        stage_seconds={"supernet": 12.5, "search": 3.25},
        facts={"seed": 17, "torch": "2.99.1", "machine": "a <b> machine"},
        notes=["what <b>figures</b> mean"],
    )  # fmt: skip

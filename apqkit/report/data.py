"""What a report shows, as plain frames and mappings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from apqkit.front import Evaluated, ParetoSet
from apqkit.types import FloatArray

__all__ = ["LayerView", "ReportData"]


@dataclass(frozen=True)
class LayerView:
    """One candidate layer by layer.

    Attributes:
        key: The candidate's name.
        layers: Names of its layers in order.
        formats: For each layer ``WEIGHTS x INPUT``, or the input's format alone.
        shapes: For each layer its size in words.
        latency_ms: (layers,) what the device model says.
    """

    key: str
    layers: Sequence[str]
    formats: Sequence[str]
    shapes: Sequence[str]
    latency_ms: FloatArray


@dataclass(frozen=True)
class ReportData:
    """Everything that the pages and figures read.

    Attributes:
        title: Heading of the page.
        front: Members and references.
        evaluated: Every measured candidate, in order.
        rounds: Round of each measured candidate, then its share of the report.
        round_of: (n,) round number of each measured candidate.
        scores: Predictor scores by kind of sample.
        learning_curve: Tau against the number of mixed samples.
        samples: Accuracies of samples by kind.
        noise: Spread against noise by kind of sample.
        history: Training losses by phase and epoch.
        check: Accuracy of largest, smallest and random subnets in fp32.
        timing: Priced and measured latency of finalists.
        totals: Costs of the largest and smallest network with one format throughout.
        views: Chosen candidates layer by layer.
        stage_seconds: Time of each finished stage.
        exports: Check of each exported model, with the member's key.
        finetuned: Result of each finetuned member.
        facts: Versions, seeds, device and the like.
        notes: What a reader must know about the figures.
        budget: What a further budget of samples should buy; None where there are no samples.
    """

    title: str
    front: ParetoSet
    evaluated: Evaluated
    rounds: Sequence[Mapping[str, Any]]
    round_of: Sequence[int]
    scores: Mapping[str, Any]
    learning_curve: Sequence[Mapping[str, float]]
    samples: Mapping[str, FloatArray]
    noise: Mapping[str, Mapping[str, float]]
    history: pd.DataFrame
    check: Mapping[str, Mapping[str, float]]
    timing: pd.DataFrame
    totals: pd.DataFrame
    views: Sequence[LayerView]
    stage_seconds: Mapping[str, float]
    exports: Sequence[Mapping[str, Any]] = ()
    finetuned: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    budget: Mapping[str, Any] | None = None

    @property
    def cost_axis(self) -> str:
        """The cost that the front is drawn over: the first objective beside accuracy."""
        costs = [name for name in self.front.objectives if name != "accuracy"]
        return costs[0] if costs else "latency_ms"

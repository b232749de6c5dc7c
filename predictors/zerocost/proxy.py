"""What a proxy is and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from predictors.zerocost.passes import Need, Passes
from predictors.zerocost.recorder import Recorder

__all__ = ["Direction", "Proxy", "ProxyScore"]

Direction: TypeAlias = Literal["up", "down"]


@dataclass(frozen=True)
class ProxyScore:
    """The score of one network by one proxy.

    Attributes:
        value: The score, finite; the proxy's ``convention`` says what it is made of.
        layers: Its part per layer, in the model's order, finite; empty where the proxy has none.
    """

    value: float
    layers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Proxy:
    """One zero-cost proxy: facts, and the function that computes it.

    Attributes:
        name: The name in the table ``PROXIES``.
        direction: ``up``: a larger value predicts a better network; ``down``: a smaller one does.
        log: True if the value is on a logarithmic scale already; False if it is linear, so that
            a model of accuracy does well to take its logarithm.
        needs: The passes it reads; ``own`` if it runs one of its own.
        needs_labels: Whether labels change the score.
        source: Paper, venue and year.
        convention: The formula as it is computed here, and how ``layers`` relate to ``value``.
        score: Returns the score from the passes it asks for.
        recorder: What must watch the model's forward pass for it, if anything.
    """

    name: str
    direction: Direction
    log: bool
    needs: frozenset[Need]
    needs_labels: bool
    source: str
    convention: str
    score: Callable[[Passes], ProxyScore]
    recorder: type[Recorder] | None = None

"""Number of parameters: the baseline that every report of a proxy must print."""

import math

from predictors.zerocost.passes import Passes
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["PARAMS"]


def _score(passes: Passes) -> ProxyScore:
    layers = {name: float(each.numel()) for name, each in passes.model.named_parameters()}
    return ProxyScore(math.fsum(layers.values()), layers)


PARAMS = Proxy(
    name="params",
    direction="up",
    log=False,
    needs=frozenset(),
    needs_labels=False,
    source="Krishnakumar et al., NAS-Bench-Suite-Zero, NeurIPS 2022 (as a baseline)",
    convention="number of all parameters, frozen ones, biases and normalisations included; "
    "layers: per parameter, they sum to the value",
    score=_score,
)

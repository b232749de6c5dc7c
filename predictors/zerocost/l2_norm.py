"""Norm of the weights: a baseline that sees neither data nor architecture."""

import math

import torch

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, named_weights
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["L2_NORM"]


def _score(passes: Passes) -> ProxyScore:
    layers = {
        name: float(torch.linalg.vector_norm(each.detach(), dtype=torch.float64))
        for name, each in named_weights(passes.model).items()
    }
    value = math.fsum(layers.values())
    if not value < math.inf:
        broken = next(name for name, norm in layers.items() if not norm < math.inf)
        raise ProxyError(f"the weight {broken!r} is not finite")
    return ProxyScore(value, layers)


L2_NORM = Proxy(
    name="l2_norm",
    direction="up",
    log=False,
    needs=frozenset(),
    needs_labels=False,
    source="Krishnakumar et al., NAS-Bench-Suite-Zero, NeurIPS 2022 (as a baseline)",
    convention="sum over weights with 2 or more axes of norm2(w); "
    "layers: per weight, they sum to the value",
    score=_score,
)

"""How much the loss feels the removal of each weight, to first order."""

import math

import torch

from predictors.zerocost.passes import Passes, loss_pass
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["SNIP"]


def _score(passes: Passes) -> ProxyScore:
    loss = passes.of(loss_pass)
    layers = {
        name: float((gradient * loss.weights[name]).abs().sum(dtype=torch.float64))
        for name, gradient in loss.gradients.items()
    }
    return ProxyScore(math.fsum(layers.values()), layers)


SNIP = Proxy(
    name="snip",
    direction="up",
    log=False,
    needs=frozenset({"L"}),
    needs_labels=True,
    source="Lee et al., SNIP, ICLR 2019; as a proxy: Abdelfattah et al., "
    "Zero-Cost Proxies for Lightweight NAS, ICLR 2021",
    convention="sum of abs(g * w) over weights w with 2 or more axes that a gradient g of the "
    "batch's loss reaches, not normalised; layers: per weight, they sum to the value",
    score=_score,
)

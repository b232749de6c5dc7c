"""Gradient times weight, with its sign."""

import math

from predictors.zerocost.passes import Passes, loss_pass
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["PLAIN"]


def _score(passes: Passes) -> ProxyScore:
    loss = passes.of(loss_pass)
    layers = {
        name: float((gradient.double() * loss.weights[name]).sum())
        for name, gradient in loss.gradients.items()
    }
    return ProxyScore(math.fsum(layers.values()), layers)


PLAIN = Proxy(
    name="plain",
    direction="down",
    log=False,
    needs=frozenset({"L"}),
    needs_labels=True,
    source="Mozer and Smolensky, Skeletonization, NIPS 1988; as a proxy: Abdelfattah et al., "
    "Zero-Cost Proxies for Lightweight NAS, ICLR 2021",
    convention="sum of g * w, signed, over weights w with 2 or more axes that a gradient g of the "
    "batch's loss reaches; smaller is better on NAS-Bench-201; layers: per weight, they sum to "
    "the value",
    score=_score,
)

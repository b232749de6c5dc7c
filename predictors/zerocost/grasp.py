"""How much removing each weight would weaken the flow of gradients, to first order."""

import math

from predictors.zerocost.passes import Passes, curvature_pass
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["GRASP"]


def _score(passes: Passes) -> ProxyScore:
    layers = {name: -each for name, each in passes.of(curvature_pass).items()}
    return ProxyScore(math.fsum(layers.values()), layers)


GRASP = Proxy(
    name="grasp",
    direction="up",
    log=False,
    needs=frozenset({"L", "H"}),
    needs_labels=True,
    source="Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, "
    "ICLR 2020; as a proxy: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021",
    convention="-sum of w * (H g) over weights w with 2 or more axes that a gradient g of the "
    "batch's loss reaches, H the Hessian of that loss for those weights; one batch for both, "
    "temperature 1; layers: per weight, they sum to the value",
    score=_score,
)

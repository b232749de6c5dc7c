"""Norm of the gradient of the loss."""

import math

import torch

from predictors.zerocost.passes import Passes, loss_pass
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["GRAD_NORM"]


def _score(passes: Passes) -> ProxyScore:
    layers = {
        name: float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        for name, gradient in passes.of(loss_pass).gradients.items()
    }
    return ProxyScore(math.fsum(layers.values()), layers)


GRAD_NORM = Proxy(
    name="grad_norm",
    direction="up",
    log=False,
    needs=frozenset({"L"}),
    needs_labels=True,
    source="Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021",
    convention="sum over weights with 2 or more axes that a gradient g of the batch's loss "
    "reaches of norm2(g); layers: per weight, they sum to the value",
    score=_score,
)

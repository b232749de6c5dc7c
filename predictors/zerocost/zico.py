"""How large gradients are, and how little they differ between batches."""

import math

import torch

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import LossPass, Passes, loss_passes
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["ZICO"]


def _score(passes: Passes) -> ProxyScore:
    found = passes.of(loss_passes)
    names = [name for name in found[0].gradients if all(name in each.gradients for each in found)]
    layers = {name: math.log(ratio) for name in names if (ratio := _ratio(name, found)) > 0.0}
    if not layers:
        raise ProxyError("zico is not defined: all batches give the same gradients")
    return ProxyScore(math.fsum(layers.values()), layers)


def _ratio(name: str, found: list[LossPass]) -> float:
    """Returns the sum over the entries of a weight of mean over standard deviation."""
    gradients = torch.stack([each.gradients[name] for each in found]).double()
    mean, deviation = gradients.abs().mean(0), gradients.std(0, correction=0)
    differ = deviation > 0.0
    return float((mean[differ] / deviation[differ]).sum())


ZICO = Proxy(
    name="zico",
    direction="up",
    log=True,
    needs=frozenset({"L", "batches"}),
    needs_labels=True,
    source="Li et al., ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients, "
    "ICLR 2023",
    convention="sum over weights with 2 or more axes of log(sum over entries of mean(abs(g)) / "
    "std(g)), mean and population standard deviation over batches, entries with std 0 left out; "
    "layers: per weight, they sum to the value",
    score=_score,
)

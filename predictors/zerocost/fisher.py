"""How much the loss feels each channel, counted once for every weight that makes it."""

import math

from predictors.zerocost.activation_gradients import ChannelRecorder
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, loss_pass
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["FISHER"]


def _score(passes: Passes) -> ProxyScore:
    channels = passes.of(loss_pass).forward.record(ChannelRecorder).channels
    if not channels:
        raise ProxyError("fisher saw no layer: no owner of one trainable weight returns a tensor")
    layers = {
        name: float(each.fisher().sum()) * each.filter_size for name, each in channels.items()
    }
    return ProxyScore(math.fsum(layers.values()), layers)


FISHER = Proxy(
    name="fisher",
    direction="up",
    log=False,
    needs=frozenset({"L"}),
    needs_labels=True,
    source="Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018; "
    "as a proxy: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021",
    convention="sum over channels k of D_k * (weights that make k), D_k = 1/2 mean over samples "
    "of (sum over places of a * dL/da)**2, a the outputs of a module that owns one trainable "
    "weight with 2 or more axes, L the loss of the batch, a mean unless another is given; large "
    "filters count more; calls of a shared module add up before the square; layers: per weight, "
    "they sum to the value",
    score=_score,
    recorder=ChannelRecorder,
)

"""How many different ways of switching a network's units show on a batch."""

import torch
from torch import Tensor

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, forward_pass
from predictors.zerocost.proxy import Proxy, ProxyScore
from predictors.zerocost.signs import PatternRecorder

__all__ = ["SWAP"]


def _score(passes: Passes) -> ProxyScore:
    patterns = passes.of(forward_pass).record(PatternRecorder).patterns
    if not patterns:
        raise ProxyError("swap saw no rectifier: the model calls no ReLU or its like")
    distinct = {name: _distinct(each) for name, each in patterns.items()}
    layers = {name: float(each.shape[1]) for name, each in distinct.items()}
    every = _distinct(torch.cat(list(distinct.values()), dim=1))
    return ProxyScore(float(every.shape[1]), layers)


def _distinct(words: Tensor) -> Tensor:
    """Returns the distinct columns of (words, units) numbers."""
    if len(words) == 1:
        single: Tensor = words.unique().unsqueeze(0)
        return single
    codes = torch.zeros_like(words[0])
    for row in words:
        values, place = row.unique(return_inverse=True)
        codes = (codes * len(values) + place).unique(return_inverse=True)[1]
    first = torch.full((int(codes.max()) + 1,), words.shape[1], device=words.device)
    units = torch.arange(words.shape[1], device=words.device)
    distinct: Tensor = words[:, first.scatter_reduce(0, codes, units, "amin")]
    return distinct


SWAP = Proxy(
    name="swap",
    direction="up",
    log=False,
    needs=frozenset({"F"}),
    needs_labels=False,
    source="Peng et al., SWAP-NAS: Sample-Wise Activation Patterns for Ultra-Fast NAS, ICLR 2024",
    convention="number of different patterns among all units of all rectifiers, a pattern being "
    "for which samples of the batch the unit's input is above 0; not weighted by the number of "
    "parameters; layers: different patterns within each rectifier, their sum being at least that",
    score=_score,
    recorder=PatternRecorder,
)

"""Zero-cost proxies: scores of a network from one batch, with as few passes as they need.

>>> import torch
>>> from predictors.zerocost import ProxySession
>>> model = torch.nn.Linear(2, 3, bias=False)
>>> session = ProxySession(model, (torch.ones(4, 2), torch.zeros(4, dtype=torch.long)))
>>> session.compute(["params"])["params"].value
6.0
"""

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import ForwardPass, LossPass, Need, Passes, Recorder
from predictors.zerocost.proxies import PROXIES
from predictors.zerocost.proxy import Direction, Proxy, ProxyScore
from predictors.zerocost.session import ProxySession

__all__ = [
    "PROXIES",
    "Direction",
    "ForwardPass",
    "LossPass",
    "Need",
    "Passes",
    "Proxy",
    "ProxyError",
    "ProxyScore",
    "ProxySession",
    "Recorder",
]

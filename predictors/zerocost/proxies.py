"""The table of proxies. A new one is a file beside this one and a line in the dict."""

from predictors.zerocost.grad_norm import GRAD_NORM
from predictors.zerocost.l2_norm import L2_NORM
from predictors.zerocost.naswot import NASWOT
from predictors.zerocost.params import PARAMS
from predictors.zerocost.proxy import Proxy
from predictors.zerocost.snip import SNIP
from predictors.zerocost.sqnr import SQNR
from predictors.zerocost.synflow import SYNFLOW

__all__ = ["PROXIES"]

PROXIES: dict[str, Proxy] = {
    "params": PARAMS,
    "l2_norm": L2_NORM,
    "grad_norm": GRAD_NORM,
    "snip": SNIP,
    "synflow": SYNFLOW,
    "naswot": NASWOT,
    "sqnr": SQNR,
}
"""All proxies by name; whoever adds one puts it in here."""

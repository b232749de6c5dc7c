"""The table of proxies. A new one is a file beside this one and a line in the dict."""

from predictors.zerocost.epe_nas import EPE_NAS
from predictors.zerocost.fisher import FISHER
from predictors.zerocost.fisher_channel import FISHER_CHANNEL
from predictors.zerocost.flops import FLOPS
from predictors.zerocost.grad_norm import GRAD_NORM
from predictors.zerocost.grasp import GRASP
from predictors.zerocost.jacov import JACOV
from predictors.zerocost.l2_norm import L2_NORM
from predictors.zerocost.meco import MECO
from predictors.zerocost.naswot import NASWOT
from predictors.zerocost.naswot_mean import NASWOT_MEAN
from predictors.zerocost.params import PARAMS
from predictors.zerocost.plain import PLAIN
from predictors.zerocost.proxy import Proxy
from predictors.zerocost.snip import SNIP
from predictors.zerocost.sqnr import SQNR
from predictors.zerocost.swap import SWAP
from predictors.zerocost.synflow import SYNFLOW
from predictors.zerocost.zen import ZEN
from predictors.zerocost.zico import ZICO

__all__ = ["PROXIES"]

PROXIES: dict[str, Proxy] = {
    "params": PARAMS,
    "flops": FLOPS,
    "l2_norm": L2_NORM,
    "grad_norm": GRAD_NORM,
    "snip": SNIP,
    "plain": PLAIN,
    "fisher": FISHER,
    "fisher_channel": FISHER_CHANNEL,
    "grasp": GRASP,
    "zico": ZICO,
    "synflow": SYNFLOW,
    "jacov": JACOV,
    "epe_nas": EPE_NAS,
    "naswot": NASWOT,
    "naswot_mean": NASWOT_MEAN,
    "swap": SWAP,
    "meco": MECO,
    "zen": ZEN,
    "sqnr": SQNR,
}
"""All proxies by name; whoever adds one puts it in here."""

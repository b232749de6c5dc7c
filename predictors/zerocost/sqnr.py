"""How far quantization moves the outputs: signal-to-quantization-noise ratio."""

import math

import torch
from torch import Tensor

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, forward_pass, reference_pass
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["MAX_SQNR_DB", "SQNR"]

MAX_SQNR_DB = 120.0
"""Highest ratio that is returned, in dB: what is left beyond it is the rounding of fp32."""


def _score(passes: Passes) -> ProxyScore:
    outputs = passes.of(forward_pass).outputs
    expected = passes.of(reference_pass)
    if outputs.shape != expected.shape:
        raise ProxyError(
            f"sqnr needs equal outputs: the model returns {tuple(outputs.shape)}, "
            f"the reference {tuple(expected.shape)}"
        )
    for owner, values in (("model", outputs), ("reference", expected)):
        if not bool(torch.isfinite(values).all()):
            raise ProxyError(f"the outputs of the {owner} are not finite")
    return ProxyScore(_ratio_db(expected.double(), outputs.double()))


def _ratio_db(signal: Tensor, quantized: Tensor) -> float:
    power = float(signal.square().sum())
    noise = float((signal - quantized).square().sum())
    if noise == 0.0:
        return MAX_SQNR_DB
    if power == 0.0:
        raise ProxyError("sqnr is not defined: all outputs of the reference are 0")
    return min(10.0 * math.log10(power / noise), MAX_SQNR_DB)


SQNR = Proxy(
    name="sqnr",
    direction="up",
    log=True,
    needs=frozenset({"F", "reference"}),
    needs_labels=False,
    source="Lin et al., Fixed Point Quantization of Deep Convolutional Networks, ICML 2016 "
    "(as a measure of quantization noise)",
    convention="10 * log10(sum(ref**2) / sum((ref - out)**2)) in dB, over all outputs of the "
    f"batch, at most {MAX_SQNR_DB:.0f} (also where both are equal); no layers",
    score=_score,
)

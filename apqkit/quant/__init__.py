"""Quantizers, ranges and quantized layers.

The names below are loaded when first used, since some modules here need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apqkit.quant.calibration import calibrate
    from apqkit.quant.learned import (
        dorefa_weight,
        lsq,
        lsq_gradient_scale,
        lsq_step,
        pact,
    )
    from apqkit.quant.observers import OBSERVERS, Observer
    from apqkit.quant.preparation import (
        LayerFormats,
        fold_batch_norms,
        keep_batch_norms,
        prepare,
    )
    from apqkit.quant.qparams import Granularity, QuantParams, qparams_for
    from apqkit.quant.quantize import fake_quantize
    from apqkit.quant.weights import QuantScheme

_HOMES = {
    "Granularity": "qparams",
    "LayerFormats": "preparation",
    "OBSERVERS": "observers",
    "Observer": "observers",
    "QuantParams": "qparams",
    "QuantScheme": "weights",
    "calibrate": "calibration",
    "dorefa_weight": "learned",
    "fake_quantize": "quantize",
    "fold_batch_norms": "preparation",
    "keep_batch_norms": "preparation",
    "lsq": "learned",
    "lsq_gradient_scale": "learned",
    "lsq_step": "learned",
    "pact": "learned",
    "prepare": "preparation",
    "qparams_for": "qparams",
}

__all__ = [
    "OBSERVERS",
    "Granularity",
    "LayerFormats",
    "Observer",
    "QuantParams",
    "QuantScheme",
    "calibrate",
    "dorefa_weight",
    "fake_quantize",
    "fold_batch_norms",
    "keep_batch_norms",
    "lsq",
    "lsq_gradient_scale",
    "lsq_step",
    "pact",
    "prepare",
    "qparams_for",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'apqkit.quant' has no attribute {name!r}")
    return getattr(import_module(f"apqkit.quant.{_HOMES[name]}"), name)

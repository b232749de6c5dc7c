"""What a formula may read about the layers of a network.  Letters: L layers, F formats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from predictors.zerocost.arrays import FloatArray, fixed
from predictors.zerocost.errors import ProxyError

__all__ = ["NUMBERS", "STATISTICS", "LayerInputs"]

STATISTICS = ("weights", "gradients", "activations", "hessian", "virtual_gradients")
"""Inputs with any number of values a layer."""

NUMBERS = ("errors", "parameters", "bits")
"""Inputs with one number for each layer and format, for each layer, for each format."""


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What formulas read about one network. All arrays are copied and read-only.

    Attributes:
        layers: (L,) names.
        formats: (F,) names.
        bits: (F,) bits of a weight, above 0.
        parameters: (L,) numbers of weights, above 0.
        errors: (L, F) norm2(W - Q(W))**2 of each layer's weights W in each format Q, 0 or more.
        statistics: Some of :data:`STATISTICS`, each with one float32 array of one axis or more
            for every layer, which may differ in length: weights, gradients of a loss with respect
            to them, activations that enter the layer, the Hessian's diagonal or trace, and the
            virtual gradients dR/dw of synflow.

    Raises:
        ProxyError: Shapes that do not fit, values that are not finite or out of range, or an
            unknown kind of statistics.
    """

    layers: tuple[str, ...]
    formats: tuple[str, ...]
    bits: FloatArray
    parameters: FloatArray
    errors: FloatArray
    statistics: Mapping[str, tuple[NDArray[np.float32], ...]]

    def __post_init__(self) -> None:
        """Copies, freezes and checks."""
        for names in ("layers", "formats"):
            object.__setattr__(self, names, _names(names, getattr(self, names)))
        L, F = len(self.layers), len(self.formats)
        for name, shape in (("bits", (F,)), ("parameters", (L,)), ("errors", (L, F))):
            array = fixed(np.asarray(getattr(self, name), dtype=np.float64))
            _check_numbers(name, array, shape)
            object.__setattr__(self, name, array)
        held = {
            kind: _arrays(kind, arrays, self.layers) for kind, arrays in self.statistics.items()
        }
        object.__setattr__(self, "statistics", MappingProxyType(held))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the inputs that there are."""
        return (*(each for each in STATISTICS if each in self.statistics), *NUMBERS)


def _names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    found = tuple(names)
    if not found or isinstance(names, str) or not all(isinstance(each, str) for each in found):
        raise ProxyError(f"{what} must be names, one or more, got {names!r}")
    repeated = [name for place, name in enumerate(found) if name in found[:place]]
    if repeated:
        raise ProxyError(f"each of {what} may stand once, got {repeated[0]!r} again")
    return found


def _check_numbers(name: str, array: FloatArray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ProxyError(f"{name} must have shape {shape}, got {array.shape}")
    positive = name != "errors"
    if not np.isfinite(array).all() or (array <= 0.0 if positive else array < 0.0).any():
        allowed = "above 0" if positive else "0 or more"
        wrong = ~(np.isfinite(array) & (array > 0.0 if positive else array >= 0.0))
        raise ProxyError(f"{name} must be finite and {allowed}, got {array[wrong][0]}")


def _arrays(
    kind: str, arrays: Sequence[ArrayLike], layers: Sequence[str]
) -> tuple[NDArray[np.float32], ...]:
    if kind not in STATISTICS:
        raise ProxyError(f"no statistics named {kind!r}; there are: {', '.join(STATISTICS)}")
    if len(arrays) != len(layers):
        raise ProxyError(f"{kind} must have {len(layers)} arrays (layers), got {len(arrays)}")
    found = []
    for layer, values in zip(layers, arrays, strict=True):
        with np.errstate(over="ignore"):  # it is found below
            array = np.array(values, dtype=np.float32).ravel()
        if not array.size or not np.isfinite(array).all():
            got = "none" if not array.size else array[~np.isfinite(array)][0]
            raise ProxyError(f"{kind} of {layer!r} must be finite values, 1 or more, got {got}")
        array.setflags(write=False)
        found.append(array)
    return tuple(found)

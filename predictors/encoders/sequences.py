"""Candidates as sequences of layers. Letters: n candidates, k dims, L layers, p features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.encoders.columns import noise_columns, ordinal
from predictors.encoders.dims import DimLike

__all__ = ["LayerSequence", "layer_sequence"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class LayerSequence:
    """Features of layers, padded to one length.

    Attributes:
        features: (n, L, p); 0 where there is no layer.
        mask: (n, L) whether there is one.
        layers: (L,) where each stands.
        kinds: (p,) what each feature says.
    """

    features: FloatArray
    mask: BoolArray
    layers: tuple[str, ...]
    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = (len(self.mask), len(self.layers), len(self.kinds))
        if self.features.shape != shape or self.mask.shape != shape[:2]:
            raise ValueError(
                f"a sequence of {shape[1]} layers and {shape[2]} kinds needs features {shape} and "
                f"mask {shape[:2]}, got {self.features.shape} and {self.mask.shape}"
            )

    def rows(self) -> FloatArray:
        """(n, L p + L) features, layer after layer, then the mask."""
        flat = self.features.reshape(len(self.mask), -1)
        return np.hstack([flat, self.mask.astype(np.float64)])


def layer_sequence(
    dims: Sequence[DimLike],
    noise: Mapping[str, FloatArray],
    picks: IntArray,
    active: BoolArray,
) -> LayerSequence:
    """Returns candidates as sequences: a layer for each place that dims name, in their order.

    A dim ``w_format.s2.b1.expand`` is the feature ``w_format`` of the layer ``s2.b1.expand``.
    Precision dims show the noise of their format, others their choice as a share of the largest.
    A layer is there if one of its dims is active.

    Args:
        dims: The k dims; names without a dot make a layer of their own, with an empty name.
        noise: As in :func:`predictors.encoders.noise_columns`.
        picks: (n, k).
        active: (n, k).

    Raises:
        ValueError: Picks do not fit the dims, or noise is missing.
    """
    values = ordinal(dims, picks, active)
    slots = [index for index, dim in enumerate(dims) if dim.role == "quant"]
    values[:, slots] = noise_columns(dims, noise, picks, active)
    names = [dim.name.partition(".")[::2] for dim in dims]
    kinds = tuple(dict.fromkeys(kind for kind, _ in names))
    layers = tuple(dict.fromkeys(layer for _, layer in names))
    features = np.zeros((len(picks), len(layers), len(kinds)))
    mask = np.zeros((len(picks), len(layers)), dtype=bool)
    for index, (kind, layer) in enumerate(names):
        place = layers.index(layer)
        features[:, place, kinds.index(kind)] = values[:, index]
        mask[:, place] |= active[:, index]
    return LayerSequence(features, mask, layers, kinds)

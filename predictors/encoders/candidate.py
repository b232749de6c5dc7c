"""Candidates as columns of numbers. Letters: n candidates, k dims, d columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.encoders.columns import noise_columns, one_hot, slot_aggregates
from predictors.encoders.dims import DimLike, check_picks, choice_shares

__all__ = ["CandidateEncoder"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class CandidateEncoder:
    """Turns picks into feature columns.

    Architecture and pruning dims become one-hot columns and, where their choices are numbers, one
    column with the value as a share of the largest. Precision dims become the quantization noise
    of the format that was picked; the noise is summed, also in logs, and its largest value taken,
    per kind of slot and per stage. Noise beats one-hot formats by far when labels are few, and it
    reaches formats that no row shows.

    Attributes:
        dims: The k dims in column order.
        noise: For each precision dim by name, the noise of each of its choices.
    """

    dims: Sequence[DimLike]
    noise: Mapping[str, FloatArray]

    def architecture(self, picks: IntArray, active: BoolArray) -> FloatArray:
        """(n, d) columns of architecture and pruning dims; they know nothing of formats."""
        check_picks(self.dims, picks, active)
        columns = [np.zeros((len(picks), 0))]
        for index, dim in enumerate(self.dims):
            if dim.role == "quant":
                continue
            one = slice(index, index + 1)
            columns.append(one_hot([dim], picks[:, one], active[:, one]))
            if all(isinstance(choice, int) for choice in dim.choices):
                columns.append(choice_shares(dim)[picks[:, one]] * active[:, one])
        return np.hstack(columns)

    def precision(self, picks: IntArray, active: BoolArray) -> FloatArray:
        """(n, d) columns of precision dims: noise per slot, and aggregates per kind and stage."""
        slots = [index for index, dim in enumerate(self.dims) if dim.role == "quant"]
        noise = noise_columns(self.dims, self.noise, picks, active)
        names = [self.dims[index].name for index in slots]
        return np.hstack([noise, slot_aggregates(names, noise, active[:, slots])])

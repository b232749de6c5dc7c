"""Candidates as columns of numbers. Letters: n candidates, k dims, d columns.

An encoder reads dims (anything with ``name``, ``choices`` and ``role``), picks (n, k) and activity
(n, k). What is inactive leaves no trace, so equal networks have equal rows. Vocabularies come from
the dims, never from training rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CandidateEncoder", "DimLike", "log_columns", "signed_log"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class DimLike(Protocol):
    """A searchable decision."""

    @property
    def name(self) -> str:
        """Dotted: what is decided, then where, such as ``w_format.s2.b1.expand``."""

    @property
    def choices(self) -> Sequence[int | str]:
        """The values it can take."""

    @property
    def role(self) -> str:
        """``arch``, ``prune`` or ``quant``."""


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
        columns = []
        for index, dim in enumerate(self.dims):
            if dim.role == "quant":
                continue
            used = active[:, index]
            hot = picks[:, index, None] == np.arange(len(dim.choices))
            columns.append((hot & used[:, None]).astype(np.float64))
            if all(isinstance(choice, int) for choice in dim.choices):
                values = np.array(dim.choices, dtype=np.float64)
                shares = values / max(values.max(), 1.0)
                columns.append((shares[picks[:, index]] * used)[:, None])
        return np.hstack(columns) if columns else np.zeros((len(picks), 0))

    def precision(self, picks: IntArray, active: BoolArray) -> FloatArray:
        """(n, d) columns of precision dims: noise per slot, and aggregates per kind and stage."""
        slots = [index for index, dim in enumerate(self.dims) if dim.role == "quant"]
        if not slots:
            return np.zeros((len(picks), 0))
        noise = np.stack(
            [self.noise[self.dims[i].name][picks[:, i]] * active[:, i] for i in slots], axis=1
        )
        used = active[:, slots]
        groups = _groups([self.dims[index].name for index in slots]).values()
        aggregates = [_aggregates(noise[:, each], used[:, each]) for each in groups]
        return np.hstack([noise, *aggregates])


def log_columns(costs: Mapping[str, FloatArray]) -> FloatArray:
    """(n, c) natural logarithms of positive costs, in the order of the mapping."""
    return np.asarray(np.log(np.stack([np.maximum(c, 1e-12) for c in costs.values()], axis=1)))


def signed_log(values: FloatArray) -> FloatArray:
    """Returns sign(x) * log(1 + abs(x)): tames the range of proxy scores and keeps their order."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Slots by kind (first part), by kind and place (first and last), by kind and stage."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        parts = name.split(".")
        for label in dict.fromkeys((parts[0], f"{parts[0]}..{parts[-1]}", ".".join(parts[:2]))):
            groups.setdefault(label, []).append(index)
    return {label: members for label, members in groups.items() if len(members) > 1}


def _aggregates(noise: FloatArray, used: BoolArray) -> FloatArray:
    """(n, 4) sum, sum of squares, largest and sum of logs over the active slots of a group."""
    logs = np.where(used, np.log(np.maximum(noise, 1e-4)) - np.log(1e-4), 0.0)
    return np.stack(
        [noise.sum(axis=1), (noise**2).sum(axis=1), noise.max(axis=1), logs.sum(axis=1)], axis=1
    )

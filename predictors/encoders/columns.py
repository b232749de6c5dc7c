"""Columns of numbers, by functions that can be put together.

Letters: n candidates, k dims, L layers, s slots, q proxies, r reference rows, d columns. What is
inactive leaves no trace.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from predictors.encoders.dims import DimLike, check_picks, choice_shares

__all__ = [
    "layer_costs",
    "log_columns",
    "noise_columns",
    "one_hot",
    "ordinal",
    "proxy_columns",
    "rank_scaled",
    "signed_log",
    "slot_aggregates",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def one_hot(dims: Sequence[DimLike], picks: IntArray, active: BoolArray) -> FloatArray:
    """Returns (n, d) a column for each choice of each dim; all 0 for an inactive dim.

    Args:
        dims: The k dims; their choices are the vocabulary, whatever rows show.
        picks: (n, k).
        active: (n, k).

    Raises:
        ValueError: Picks do not fit the dims.
    """
    check_picks(dims, picks, active)
    columns = [
        (picks[:, index, None] == np.arange(len(dim.choices))) & active[:, index, None]
        for index, dim in enumerate(dims)
    ]
    return np.hstack(columns).astype(np.float64) if columns else np.zeros((len(picks), 0))


def ordinal(dims: Sequence[DimLike], picks: IntArray, active: BoolArray) -> FloatArray:
    """Returns (n, k) one column a dim: a share of the largest choice, 0 for an inactive dim.

    Choices that are no numbers count by their place, the last being 1.

    Raises:
        ValueError: Picks do not fit the dims.
    """
    check_picks(dims, picks, active)
    columns = [choice_shares(dim)[picks[:, index]] for index, dim in enumerate(dims)]
    return np.stack(columns, axis=1) * active if columns else np.zeros((len(picks), 0))


def noise_columns(
    dims: Sequence[DimLike],
    noise: Mapping[str, FloatArray],
    picks: IntArray,
    active: BoolArray,
) -> FloatArray:
    """Returns (n, s) the quantization noise of the format in each slot, 0 where inactive.

    Args:
        dims: The k dims; those of role ``quant`` are the s slots.
        noise: For each slot by its name, the noise (choices,) of each of its choices, such as the
            root mean squared error of the format on a normal distribution.
        picks: (n, k).
        active: (n, k).

    Raises:
        ValueError: Picks do not fit the dims, or a slot lacks a finite noise for a choice.
    """
    check_picks(dims, picks, active)
    slots = [index for index, dim in enumerate(dims) if dim.role == "quant"]
    columns = [
        _noise_of(dims[index], noise)[picks[:, index]] * active[:, index] for index in slots
    ]
    return np.stack(columns, axis=1) if columns else np.zeros((len(picks), 0))


def slot_aggregates(names: Sequence[str], values: FloatArray, used: BoolArray) -> FloatArray:
    """Returns (n, 4 g) aggregates of slots by kind, by kind and place, and by kind and stage.

    For each of the g groups with more than one slot: sum, sum of squares, largest, and sum of
    logs over the slots in use.

    Args:
        names: (s,) dotted: kind, then stage, block and place, as in ``w_format.s2.b1.expand``.
        values: (n, s) such as noise, 0 or more.
        used: (n, s).
    """
    groups = [members for members in _groups(names).values() if len(members) > 1]
    columns = [_aggregates(values[:, each], used[:, each]) for each in groups]
    return np.hstack(columns) if columns else np.zeros((len(values), 0))


def layer_costs(
    params: FloatArray,
    macs: FloatArray,
    weight_bits: FloatArray,
    activation_bits: FloatArray,
    active: BoolArray,
    *,
    low_bits: float = 3.0,
) -> dict[str, FloatArray]:
    """Returns costs (n,) that follow from layers, to be put through :func:`log_columns`.

    Args:
        params: (n, L) weights of each layer.
        macs: (n, L) multiply-accumulates.
        weight_bits: (n, L).
        activation_bits: (n, L) of each layer's input.
        active: (n, L).
        low_bits: Weights or activations of so many bits or fewer make a low-bit layer.

    Returns:
        ``params``, ``macs``, ``bops`` (macs times both bits), ``size_bits`` (weights times their
        bits) and ``low_bit_layers``.

    Raises:
        ValueError: The arrays differ in shape.
    """
    given = (params, macs, weight_bits, activation_bits, active)
    if len({np.shape(each) for each in given}) != 1 or np.ndim(params) != 2:
        shapes = ", ".join(str(np.shape(each)) for each in given)
        raise ValueError(f"costs of layers need arrays of one shape (n, L), got {shapes}")
    low = np.minimum(weight_bits, activation_bits) <= low_bits
    columns = {
        "params": params,
        "macs": macs,
        "bops": macs * weight_bits * activation_bits,
        "size_bits": params * weight_bits,
        "low_bit_layers": low.astype(np.float64),
    }
    return {name: np.where(active, each, 0.0).sum(axis=1) for name, each in columns.items()}


def log_columns(costs: Mapping[str, FloatArray]) -> FloatArray:
    """(n, c) natural logarithms of positive costs, in the order of the mapping."""
    return np.asarray(np.log(np.stack([np.maximum(c, 1e-12) for c in costs.values()], axis=1)))


def signed_log(values: FloatArray) -> FloatArray:
    """Returns sign(x) * log(1 + abs(x)): tames the range of proxy scores and keeps their order."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def rank_scaled(values: FloatArray, reference: FloatArray) -> FloatArray:
    """Returns (n,) the share of reference values (r,) that lie below, ties counting half.

    New rows are placed among those that a predictor was fitted on.

    Raises:
        ValueError: There is no reference value.
    """
    if not len(reference):
        raise ValueError("rank_scaled needs at least 1 reference value, got 0")
    ordered = np.sort(reference)
    below = np.searchsorted(ordered, values, "left")
    up_to = np.searchsorted(ordered, values, "right")
    return np.asarray(0.5 * (below + up_to) / len(ordered))


def proxy_columns(scores: FloatArray, reference: FloatArray) -> FloatArray:
    """Returns (n, 2 q) proxies as signed logs, then as ranks among reference rows.

    Logs keep distances, ranks bear any outlier.

    Args:
        scores: (n, q).
        reference: (r, q) scores of the rows that a predictor is fitted on.

    Raises:
        ValueError: The numbers of proxies differ, or a score is not finite.
    """
    if np.ndim(scores) != 2 or np.shape(scores)[1:] != np.shape(reference)[1:]:
        raise ValueError(
            f"scores and reference must have shapes (n, q) and (r, q), got {np.shape(scores)} "
            f"and {np.shape(reference)}"
        )
    if not (np.isfinite(scores).all() and np.isfinite(reference).all()):
        raise ValueError("proxy scores must be finite")
    ranks = [rank_scaled(a, b) for a, b in zip(scores.T, reference.T, strict=True)]
    return np.column_stack([signed_log(scores), *ranks])


def _noise_of(dim: DimLike, noise: Mapping[str, FloatArray]) -> FloatArray:
    values = np.asarray(noise.get(dim.name, ()), dtype=np.float64)
    if values.shape != (len(dim.choices),) or not np.isfinite(values).all():
        raise ValueError(
            f"noise of dim {dim.name!r} must be {len(dim.choices)} finite numbers, one a choice, "
            f"got {values.tolist() if dim.name in noise else 'none'}"
        )
    return values


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Slots by kind (first part), by kind and place (first and last), by kind and stage."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        parts = name.split(".")
        for label in dict.fromkeys((parts[0], f"{parts[0]}..{parts[-1]}", ".".join(parts[:2]))):
            groups.setdefault(label, []).append(index)
    return groups


def _aggregates(noise: FloatArray, used: BoolArray) -> FloatArray:
    """(n, 4) sum, sum of squares, largest and sum of logs over the active slots of a group."""
    logs = np.where(used, np.log(np.maximum(noise, 1e-4)) - np.log(1e-4), 0.0)
    return np.stack(
        [noise.sum(axis=1), (noise**2).sum(axis=1), noise.max(axis=1), logs.sum(axis=1)], axis=1
    )

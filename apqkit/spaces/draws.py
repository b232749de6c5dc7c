"""Random candidates: uniform, hierarchical, with one format throughout."""

from collections.abc import Sequence

import numpy as np

from apqkit.types import Dim, IntArray, Space

__all__ = ["draw_hierarchical", "draw_uniform", "draw_uniform_formats", "with_format"]

_KEEP_CHANCES = (0.5, 0.8, 1.0)  # how strongly a candidate's slots follow its base choice


def draw_uniform(space: Space, count: int, rng: np.random.Generator) -> IntArray:
    """(count, k) candidates with every dim drawn uniformly, in canonical form."""
    columns = [rng.integers(0, len(dim.choices), count) for dim in space.dims]
    return space.repair(np.stack(columns, axis=1).astype(np.int64))


def draw_uniform_formats(space: Space, count: int, rng: np.random.Generator) -> IntArray:
    """(count, k) candidates with one weight and one activation format each, drawn uniformly."""
    picks = draw_uniform(space, count, rng)
    for prefix in ("w_format.", "a_format."):
        columns = _columns(space.dims, prefix)
        share = rng.random(count)
        for column in columns:
            picks[:, column] = _at_share(space.dims[column], share)
    return space.repair(picks)


def draw_hierarchical(space: Space, count: int, rng: np.random.Generator) -> IntArray:
    """(count, k) candidates that reach the corners of the space.

    Each candidate has a base size, a base weight format and a base activation format; each slot
    keeps its base with a chance of the candidate's own. Independent slots would put nearly every
    candidate in the middle: medium size, a mixture of all formats.
    """
    picks = draw_uniform(space, count, rng)
    for prefix in ("w_format.", "a_format.", ""):
        columns = _columns(space.dims, prefix)
        share = rng.random(count)
        chance = rng.choice(_KEEP_CHANCES, count)
        for column in columns:
            keeps = rng.random(count) < chance
            near = share if prefix else np.clip(share + rng.normal(0.0, 0.15, count), 0.0, 1.0)
            picks[:, column] = np.where(
                keeps, _at_share(space.dims[column], near), picks[:, column]
            )
    return space.repair(picks)


def with_format(space: Space, picks: IntArray, weights: str, activations: str) -> IntArray:
    """(n, k) the same architectures with one format for all weights, one for all activations.

    A dim that does not offer the format takes its last choice, the widest.
    """
    picks = picks.copy()
    for prefix, name in (("w_format.", weights), ("a_format.", activations)):
        for column in _columns(space.dims, prefix):
            choices = space.dims[column].choices
            picks[:, column] = choices.index(name) if name in choices else len(choices) - 1
    return space.repair(picks)


def _columns(dims: Sequence[Dim], prefix: str) -> list[int]:
    """Columns of a prefix; those of architecture and pruning for an empty one."""
    return [
        column
        for column, dim in enumerate(dims)
        if (dim.name.startswith(prefix) if prefix else dim.role != "quant")
    ]


def _at_share(dim: Dim, share: np.ndarray) -> IntArray:
    """(n,) the pick at a share 0..1 of the way through the choices."""
    return np.minimum((share * len(dim.choices)).astype(np.int64), len(dim.choices) - 1)

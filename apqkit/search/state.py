"""How far an evolution is, as plain arrays. Letters: p parents, k dims, m objectives."""

import io
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apqkit.errors import RunError
from apqkit.run import write_atomically
from apqkit.types import FloatArray, IntArray

__all__ = ["EvolutionState", "read_state", "write_state"]

_SCHEMA = 1


@dataclass(frozen=True)
class EvolutionState:
    """An evolution between two generations; each draws from a generator of (seed, generation).

    Attributes:
        seed: Of all draws.
        generation: How many were bred.
        picks: (p, k) parents, island after island, the fittest of each first.
        losses: (p, m) theirs.
        violations: (p,) how far they exceed limits.
        island: (p,) where they breed.
        archive_picks: (a, k) candidates that none found beats, or the least infeasible one.
        archive_losses: (a, m) theirs.
        archive_violation: 0, or how far the one candidate exceeds limits.
        seen: (e,) marks of all candidates that were scored, sorted.
        reference: (m,) the corner from which hypervolume counts, NaN before there is one.
        ideal: (m,) the opposite one.
        progress: Hypervolume when it last grew; less than 0, the violation, before that.
        progress_generation: When that was.
    """

    seed: int
    generation: int
    picks: IntArray
    losses: FloatArray
    violations: FloatArray
    island: IntArray
    archive_picks: IntArray
    archive_losses: FloatArray
    archive_violation: float
    seen: NDArray[np.uint64]
    reference: FloatArray
    ideal: FloatArray
    progress: float
    progress_generation: int

    @classmethod
    def empty(cls, seed: int, dims: int, objectives: int) -> "EvolutionState":
        """Returns a state without candidates."""
        no_picks = np.zeros((0, dims), dtype=np.int64)
        no_losses, unknown = np.zeros((0, objectives)), np.full(objectives, np.nan)
        return cls(
            seed=seed,
            generation=0,
            picks=no_picks,
            losses=no_losses,
            violations=np.zeros(0),
            island=np.zeros(0, dtype=np.int64),
            archive_picks=no_picks,
            archive_losses=no_losses,
            archive_violation=float("inf"),
            seen=np.zeros(0, dtype=np.uint64),
            reference=unknown,
            ideal=unknown,
            progress=-float("inf"),
            progress_generation=0,
        )


def write_state(path: Path, state: EvolutionState) -> None:
    """Writes a state in one piece."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        field.name: np.asarray(getattr(state, field.name)) for field in fields(state)
    }
    np.savez_compressed(buffer, schema=np.asarray(_SCHEMA), **arrays)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path) -> EvolutionState:
    """Reads what :func:`write_state` wrote.

    Raises:
        RunError: There is no such file, or it is none of these, or of another version.
    """
    names = [field.name for field in fields(EvolutionState)]
    try:
        content = io.BytesIO(path.read_bytes())  # np.load leaves a broken file open
        with np.load(content, allow_pickle=False) as file:
            schema = int(file["schema"])
            arrays = {name: file[name] for name in names}
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise RunError(f"{path} holds no state of an evolution: start the search anew") from None
    if schema != _SCHEMA:
        raise RunError(f"{path} has schema {schema}, this version reads {_SCHEMA}")
    state = EvolutionState(**arrays)
    return replace(
        state,
        seed=int(state.seed),
        generation=int(state.generation),
        archive_violation=float(state.archive_violation),
        progress=float(state.progress),
        progress_generation=int(state.progress_generation),
    )

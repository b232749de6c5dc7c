"""Proxies of many subnets, for proxies that are no sum over layers.

Letters: n subnets, p proxies.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from predictors.zerocost.arrays import FloatArray
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.proxies import PROXIES
from predictors.zerocost.session import ProxySession

__all__ = ["BatchScores", "score_subnets"]


@dataclass(frozen=True, eq=False)
class BatchScores:
    """Scores of many subnets.

    Attributes:
        names: (p,) of the proxies.
        values: (n, p) scores, NaN where there is none.
        failures: Why there is none, in order: ``subnet 3: ...``, counted from 0.
    """

    names: tuple[str, ...]
    values: FloatArray
    failures: tuple[str, ...]


def score_subnets(
    subnets: Iterable[Callable[[], ProxySession]],
    names: Sequence[str],
    *,
    progress: Callable[[int], None] | None = None,
) -> BatchScores:
    """Returns proxies of subnets, one after the other; one that fails does not end the rest.

    Args:
        subnets: Functions that make a session each. They are called in turn, so that a supernet
            may hand out one subnet after the other and only one is held in memory.
        names: Names in ``PROXIES``.
        progress: Called with 1 after each subnet.

    Raises:
        ProxyError: The names are one text, repeat or are unknown.
    """
    _check_names(names)
    rows: list[list[float]] = []
    failures: list[str] = []
    for subnet in subnets:
        row, reasons = _scores(subnet, names)
        failures += [f"subnet {len(rows)}: {reason}" for reason in reasons]
        rows.append(row)
        if progress is not None:
            progress(1)
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return BatchScores(tuple(names), values, tuple(failures))


def _scores(
    subnet: Callable[[], ProxySession], names: Sequence[str]
) -> tuple[list[float], list[str]]:
    """Returns the scores of one subnet, and why some are NaN."""
    try:
        session = subnet()
    except (RuntimeError, ValueError) as error:
        return [math.nan] * len(names), [_first_line(error)]
    try:
        found = session.compute(names)
    except (RuntimeError, ValueError):
        return _scores_one_by_one(session, names)
    return [found[name].value for name in names], []


def _scores_one_by_one(
    session: ProxySession, names: Sequence[str]
) -> tuple[list[float], list[str]]:
    """Returns what there is: a proxy that fails must not take the others with it."""
    row, reasons = [], []
    for name in names:
        try:
            row.append(session.compute([name])[name].value)
        except (RuntimeError, ValueError) as error:
            row.append(math.nan)
            reasons.append(f"{name}: {_first_line(error)}")
    return row, reasons


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise ProxyError(f"names must be a list, got the text {names!r}")
    for name in names:
        if name not in PROXIES:
            raise ProxyError(f"no proxy named {name!r}; there are: {', '.join(sorted(PROXIES))}")
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise ProxyError(f"each name may stand once, got {repeated[0]!r} again")

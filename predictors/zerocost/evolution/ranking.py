"""Spearman's rank correlation, fast enough to be taken thousands of times.

Letters: n settings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from predictors.metrics import Interval, bootstrap_interval
from predictors.zerocost.arrays import BoolArray, FloatArray
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.program import Program
from predictors.zerocost.evolution.setting_table import SettingTable

__all__ = ["Ranking", "in_steps", "rank_settings", "unit_ranks"]

_STEPS = 1e10


@dataclass(frozen=True)
class Ranking:
    """Spearman's rho of a program, positive where its direction is right, with 95 % intervals.

    Attributes:
        train: By table, of the training settings.
        held_out: By table, of the settings that evolution did not see.
        others: By table, of all settings of networks that evolution did not see.
    """

    train: Mapping[str, Interval]
    held_out: Mapping[str, Interval]
    others: Mapping[str, Interval]


def rank_settings(
    program: Program, tables: Sequence[SettingTable], others: Sequence[SettingTable] = ()
) -> Ranking:
    """Returns how well a program ranks training, held-out and other networks' settings.

    Rho is NaN where the program is broken or scores all settings alike.

    Args:
        program: To rank by.
        tables: Networks that are trained on, with or without held-out settings.
        others: Networks that are not.
    """
    return Ranking(
        train={each.name: _rho(program, each, ~each.held_out) for each in tables},
        held_out={
            each.name: _rho(program, each, each.held_out) for each in tables if each.held_out.any()
        },
        others={each.name: _rho(program, each, each.held_out | True) for each in others},
    )


def unit_ranks(values: FloatArray) -> FloatArray:
    """Returns (n,) ranks, ties sharing their mean, centred and of norm 1; zeros if all are equal.

    The product of two such arrays is Spearman's rho.
    """
    order = values.argsort()
    ordered = values[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(values))
    ranks = np.empty(len(values))
    if len(ends) == len(values):
        ranks[order] = np.arange(len(values))
    else:
        counts = ends.copy()
        counts[1:] -= ends[:-1]
        ranks[order] = np.repeat(ends - 0.5 * (counts + 1), counts)
    ranks -= 0.5 * (len(values) - 1)
    norm = math.sqrt(float(ranks @ ranks))
    return ranks / norm if norm > 0.0 else ranks


def in_steps(scores: FloatArray) -> FloatArray:
    """Returns scores (n,) in 1e10 steps of their range, so that what differs by rounding ties.

    Scores are finite; all zeros if they are equal.
    """
    least, most = scores.min(), scores.max()
    if not most > least:
        return np.zeros_like(scores)
    steps: FloatArray = np.rint((scores - least) / (most - least) * _STEPS)
    return steps


def _rho(program: Program, table: SettingTable, rows: BoolArray) -> Interval:
    try:
        scores = program.score(table)[rows]
    except ProxyError:  # broken on this network
        return Interval(np.nan, np.nan, np.nan)
    signed = in_steps(scores if program.direction == "up" else -scores)
    return bootstrap_interval(_spearman, table.accuracy[rows], signed)


def _spearman(truth: FloatArray, predicted: FloatArray) -> float:
    one, other = unit_ranks(truth), unit_ranks(predicted)
    return float(one @ other) if one.any() and other.any() else math.nan

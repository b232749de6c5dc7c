"""What a search strategy is given: the space, the scores, the objectives, the limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from apqkit.errors import ConfigError
from apqkit.registry import did_you_mean
from apqkit.search.pareto import losses_of, violations_of
from apqkit.spaces.base import smallest_picks
from apqkit.types import BoolArray, FloatArray, IntArray, Space

__all__ = [
    "MutationRates",
    "Problem",
    "Score",
    "SearchSettings",
    "check_metrics",
    "checked_score",
]

Score = Callable[[IntArray], dict[str, FloatArray]]
"""(n, k) picks -> {metric: (n,)}: predicted accuracy and every cost."""


@dataclass(frozen=True)
class MutationRates:
    """How much a child changes.

    Attributes:
        arch: Expected changes among the dims of architecture.
        prune: Among those of pruning.
        quant: Among those of formats.
        base_format: Chance that a stage, or the whole network, takes one format throughout.
    """

    arch: float = 1.0
    prune: float = 1.5
    quant: float = 2.5
    base_format: float = 0.1


@dataclass(frozen=True)
class SearchSettings:
    """How long a strategy looks before it proposes, and how.

    Attributes:
        population: Candidates a generation, of all islands together.
        generations: How many, at the most.
        islands: Parts of the population that breed by themselves.
        migrate_every: Generations after which the best of each island visit the next one.
        patience: Generations in which the hypervolume may stand still before the search stops;
            None never stops early.
        rates: How much children change.
    """

    population: int = 200
    generations: int = 60
    islands: int = 1
    migrate_every: int = 10
    patience: int | None = None
    rates: MutationRates = MutationRates()

    def __post_init__(self) -> None:
        for name in ("population", "islands", "migrate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search {name} must be at least 1, got {getattr(self, name)}")
        if self.population < 2 * self.islands:
            raise ConfigError(
                f"search population must be at least 2 on each of {self.islands} islands, "
                f"got {self.population}"
            )


@dataclass(frozen=True)
class Problem:
    """One joint search.

    Attributes:
        space: Where candidates come from.
        score: Predicts accuracy and costs.
        objectives: Direction ("max" or "min") of each metric.
        limits: The most that each cost may be; for accuracy the least.
        settings: How long to look.
    """

    space: Space
    score: Score
    objectives: Mapping[str, str]
    limits: Mapping[str, float]
    settings: SearchSettings

    def losses(self, values: Mapping[str, FloatArray]) -> FloatArray:
        """(n, m) objectives as losses."""
        return losses_of(values, self.objectives)

    def violations(self, values: Mapping[str, FloatArray]) -> FloatArray:
        """(n,) how far limits are exceeded; 0 is feasible."""
        return violations_of(values, self.limits)

    def judged(self, picks: IntArray) -> tuple[FloatArray, FloatArray]:
        """Returns losses (n, m) and violations (n,) of candidates.

        Where an objective is no finite number the violation is infinite: such a candidate cannot
        be compared.
        """
        values = self.score(picks)
        losses, violations = self.losses(values), self.violations(values)
        return losses, np.where(np.isfinite(losses).all(axis=1), violations, np.inf)

    def dims_of(self, *roles: str) -> BoolArray:
        """(k,) True for the dims of these roles."""
        return np.array([dim.role in roles for dim in self.space.dims])

    def check(self) -> None:
        """Checks objectives and limits against what the smallest candidate's score holds.

        Raises:
            ConfigError: A metric or a direction is wrong.
        """
        values = self.score(self.space.repair(smallest_picks(self.space.dims)))
        check_metrics(
            self.objectives, self.limits, tuple(name for name in values if name != "accuracy")
        )


def check_metrics(
    objectives: Mapping[str, str], limits: Mapping[str, float], metrics: tuple[str, ...]
) -> None:
    """Checks that objectives and limits name metrics that exist.

    Raises:
        ConfigError: One does not, there is no objective, or a direction is missing or wrong.
    """
    if not objectives:
        raise ConfigError("search.objectives must name at least one metric")
    known = ("accuracy", *metrics)
    for section, names in (("objectives", objectives), ("limits", limits)):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"search.{section}.{name} is no metric{did_you_mean(name, known)}; "
                    f"there are: {', '.join(known)}"
                )
    for name, direction in objectives.items():
        if direction not in ("max", "min"):
            raise ConfigError(
                f"search.objectives.{name} must be 'max' or 'min', got {direction!r}"
            )
        if (direction == "max") != (name == "accuracy"):
            right = "max" if name == "accuracy" else "min"
            raise ConfigError(f"search.objectives.{name} must be {right!r}, got {direction!r}")


def checked_score(
    predict: Callable[[IntArray], FloatArray],
    costs: Callable[[IntArray], Mapping[str, FloatArray]],
) -> Score:
    """Returns a score that refuses what cannot be right.

    Args:
        predict: (n, k) picks -> (n,) accuracy, finite.
        costs: (n, k) picks -> {metric: (n,)}.
    """

    def score(picks: IntArray) -> dict[str, FloatArray]:
        accuracy = _column("the prediction", predict(picks), len(picks))
        broken = int((~np.isfinite(accuracy)).sum())
        if broken:
            raise ConfigError(
                f"the prediction must be finite, got NaN or infinity for {broken} of "
                f"{len(picks)} candidates"
            )
        found = {
            name: _column(f"cost {name!r}", values, len(picks))
            for name, values in costs(picks).items()
        }
        return {**found, "accuracy": accuracy}

    return score


def _column(what: str, values: FloatArray, count: int) -> FloatArray:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (count,):
        raise ConfigError(f"{what} must have shape ({count},), got {column.shape}")
    return column

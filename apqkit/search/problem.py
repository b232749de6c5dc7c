"""What a search strategy is given: the space, the scores, the objectives, the limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from apqkit.search.pareto import losses_of, violations_of
from apqkit.types import BoolArray, FloatArray, IntArray, Space

__all__ = ["Problem", "Score", "SearchSettings"]

Score = Callable[[IntArray], dict[str, FloatArray]]
"""(n, k) picks -> {metric: (n,)}: predicted accuracy and every cost."""


@dataclass(frozen=True)
class SearchSettings:
    """How long a strategy looks before it proposes.

    Attributes:
        population: Candidates a generation.
        generations: How many.
    """

    population: int = 200
    generations: int = 60


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

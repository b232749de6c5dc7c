"""Whether limits can be met at all, and if not, which one binds."""

from collections.abc import Callable, Mapping

import numpy as np

from apqkit.errors import ConfigError, LimitError
from apqkit.registry import did_you_mean
from apqkit.search.evolution import evolve
from apqkit.search.problem import Problem, SearchSettings
from apqkit.spaces.base import smallest_picks
from apqkit.types import FloatArray, IntArray, Space

__all__ = ["check_limits", "check_metrics"]

_SETTINGS = SearchSettings(population=60, generations=25)


def check_metrics(
    objectives: Mapping[str, str], limits: Mapping[str, float], metrics: tuple[str, ...]
) -> None:
    """Checks that objectives and limits name metrics that exist.

    Raises:
        ConfigError: One does not, or accuracy is to be made small.
    """
    known = ("accuracy", *metrics)
    for section, names in (("objectives", objectives), ("limits", limits)):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"search.{section}.{name} is no metric{did_you_mean(name, known)}; "
                    f"there are: {', '.join(known)}"
                )
    for name, direction in objectives.items():
        if (direction == "max") != (name == "accuracy"):
            right = "max" if name == "accuracy" else "min"
            raise ConfigError(f"search.objectives.{name} must be {right!r}, got {direction!r}")


def check_limits(
    space: Space,
    costs: Callable[[IntArray], Mapping[str, FloatArray]],
    limits: Mapping[str, float],
) -> None:
    """Checks that some candidate meets every limit on costs.

    Each cost is made as small as a short evolution can, first alone, then all together.

    Raises:
        LimitError: It names the limit that binds and the best value found.
    """
    limits = {name: limit for name, limit in limits.items() if name != "accuracy"}
    rng = np.random.default_rng(0)

    def score(picks: IntArray) -> dict[str, FloatArray]:
        return dict(costs(picks))

    for name, limit in limits.items():
        problem = Problem(space, score, {name: "min"}, {}, _SETTINGS)
        best = float(evolve(problem, smallest_picks(space.dims), rng).losses[:, 0].min())
        if np.isinf(best):
            raise LimitError(
                f"no candidate meets search.limits.{name} <= {limit:g}: "
                f"none that was tried has a finite {name}"
            )
        if best > limit:
            raise LimitError(
                f"no candidate meets search.limits.{name} <= {limit:g}: "
                f"the smallest attainable value is about {best:.4g}"
            )
    if len(limits) < 2:
        return
    problem = Problem(space, score, dict.fromkeys(limits, "min"), limits, _SETTINGS)
    found = evolve(problem, smallest_picks(space.dims), rng)
    if found.violation > 0:
        values = {name: float(each[0]) for name, each in score(found.picks[:1]).items()}
        over = {name: values[name] for name, limit in limits.items() if not values[name] <= limit}
        binding = ", ".join(f"{n} <= {limits[n]:g} (best {v:.4g})" for n, v in over.items())
        raise LimitError(
            f"no candidate meets all of search.limits together; the nearest one exceeds {binding}"
        )

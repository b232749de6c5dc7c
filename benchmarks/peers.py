"""Other people's searches on the same problems; they are installed for benchmarks alone."""

import numpy as np

from apqkit.search.problem import Problem
from apqkit.types import IntArray

__all__ = ["pymoo_nsga2"]


def pymoo_nsga2(
    problem: Problem,
    population: int,
    evaluations: int,
    seed: int,
    *,
    initial: IntArray | None = None,
) -> IntArray:
    """(n, k) the candidates that pymoo's NSGA-II scored, in canonical form and in order.

    Operators are those that pymoo recommends for integers: simulated binary crossover and
    polynomial mutation, rounded. It starts from ``initial`` (population, k), or from its own
    uniform draws.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem as PymooProblem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    scored: list[IntArray] = []

    class Search(PymooProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            highest = np.array([len(dim.choices) - 1 for dim in problem.space.dims])
            super().__init__(
                n_var=len(highest),
                n_obj=len(problem.objectives),
                n_ieq_constr=1,
                xl=0,
                xu=highest,
                vtype=int,
            )

        def _evaluate(self, x: IntArray, out: dict[str, object], *_: object, **__: object) -> None:
            picks = problem.space.repair(np.asarray(x, dtype=np.int64))
            losses, violations = problem.judged(picks)
            scored.append(picks)
            out["F"], out["G"] = np.minimum(losses, 1e9), np.minimum(violations, 1e9)[:, None]

    rounded = RoundingRepair()
    algorithm = NSGA2(
        pop_size=population,
        sampling=IntegerRandomSampling() if initial is None else initial,
        crossover=SBX(prob=0.9, eta=15, vtype=float, repair=rounded),
        mutation=PM(eta=20, vtype=float, repair=rounded),
        eliminate_duplicates=True,
    )
    minimize(Search(), algorithm, ("n_eval", evaluations), seed=seed, verbose=False)
    return np.concatenate(scored)[:evaluations]

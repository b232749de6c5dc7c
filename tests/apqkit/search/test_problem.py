from dataclasses import replace

import numpy as np


def test_candidates_are_judged_by_losses_and_violations(toy_problem, toy_space):
    problem = replace(toy_problem, limits={"size_kib": 20.0})
    picks = toy_space.everyone()[:50]
    values = problem.score(picks)
    losses, violations = problem.judged(picks)
    assert np.array_equal(losses, np.stack([-values["accuracy"], values["size_kib"]], axis=1))
    assert np.allclose(violations, np.maximum(values["size_kib"] / 20.0 - 1.0, 0.0))
    assert np.array_equal(problem.losses(values), losses)
    assert np.array_equal(problem.violations(values), violations)
    assert (violations > 0).any()


def test_what_has_no_figure_for_an_objective_violates_infinitely(toy_problem, toy_space):
    def score(picks):
        values = toy_problem.score(picks)
        values["size_kib"][::3] = np.nan
        return values

    picks = toy_space.everyone()[:30]
    losses, violations = replace(toy_problem, score=score).judged(picks)
    broken = np.arange(30) % 3 == 0
    assert np.array_equal(violations, np.where(broken, np.inf, 0.0))
    assert np.array_equal(np.isinf(losses[:, 1]), broken)


def test_dims_are_chosen_by_role(toy_problem):
    chosen = toy_problem.dims_of("arch", "quant")
    assert chosen.tolist() == [True, False, False, False, True, True, True]
    assert not toy_problem.dims_of("none").any()

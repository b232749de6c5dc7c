"""Evolution of programs, and what its winner is worth where it was not trained.

Letters: n settings.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.breeding import (
    Odds,
    crossover,
    first_odds,
    mutation,
    raised_odds,
    random_one,
)
from predictors.zerocost.evolution.canonical import canonical, without_sign
from predictors.zerocost.evolution.expressions import Binary, Expression, Input, Unary
from predictors.zerocost.evolution.fitness import Fitness, TrainingSettings, fitness
from predictors.zerocost.evolution.program import Program
from predictors.zerocost.evolution.ranking import Ranking, rank_settings
from predictors.zerocost.evolution.setting_table import SettingTable

__all__ = ["BASELINES", "EvolutionResult", "Member", "after_selection", "evolve"]

BASELINES: dict[str, Program] = {
    "sum of bits": Program(Input("bits"), "up"),
    "size": Program(Binary("product", Input("parameters"), Input("bits")), "up"),
    "errors": Program(Input("errors"), "down"),
    "errors x trace": Program(
        Binary("product", Unary("mean", Input("hessian")), Input("errors")), "down"
    ),
}
"""Rules made by hand, with the direction that theory gives them; the last is HAWQ-V2's."""

_FEWEST_SETTINGS = 20
_ATTEMPTS = 20  # at a newcomer that is sound and was not met before
_BARREN_STEPS = 500  # without anything new: there is nothing left to find
_ODDS_EVERY = 20  # steps
_REPORT_EVERY = 100  # programs


@dataclass(frozen=True)
class Member:
    """A member of the population.

    Attributes:
        expression: In its canonical form.
        fitness: On the training settings.
        origin: How it came to be; ``fresh`` is drawn at random.
    """

    expression: Expression
    fitness: Fitness
    origin: Literal["fresh", "mutation", "crossover"]


@dataclass(frozen=True, eq=False)
class EvolutionResult:
    """What evolution found.

    Attributes:
        program: The winner on the training settings, with the direction that fits them.
        fitness: Mean of Spearman's rho over tables and the top 20, 50 and 100 % of the training
            settings: what was maximised, so an optimistic figure.
        ranking: Of the winner.
        baselines: Of rules made by hand, those whose inputs there are.
        gap: Mean rho of the training settings less that of the held-out ones of the same tables;
            NaN without held-out settings.
        population: The last one, best first.
        history: (programs evaluated, best fitness) at every improvement.
        evaluated: Different programs that were looked at.
        broken: How many of them were broken.
        seconds: Of evolution, without the final ranking.
    """

    program: Program
    fitness: float
    ranking: Ranking
    baselines: Mapping[str, Ranking]
    gap: float
    population: tuple[Member, ...]
    history: tuple[tuple[int, float], ...]
    evaluated: int
    broken: int
    seconds: float

    @property
    def programs_per_minute(self) -> float:
        """Different programs evaluated in a minute."""
        return 60.0 * self.evaluated / self.seconds


def evolve(
    tables: Sequence[SettingTable],
    *,
    held_out: Sequence[SettingTable] = (),
    programs: int = 20_000,
    population: int = 60,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> EvolutionResult:
    """Finds a formula that ranks settings by accuracy, after EMQ (Dong et al., ICCV 2023).

    Each step makes two newcomers, an offspring of members of the better half (by crossover or
    mutation) and a program drawn at random; the worst member leaves and the better newcomer takes
    its place. Programs that equal one met before are not evaluated again, broken ones are screened
    on four settings, and operations of good programs are drawn more often. Only training settings
    steer it.

    Args:
        tables: Networks to train on: their settings that are not held out.
        held_out: Networks for the report only.
        programs: Different programs to evaluate, broken ones included.
        population: Members, 4 or more.
        seed: Of all draws.
        progress: Called with the number of programs since the last call.

    Raises:
        ProxyError: No table, one with fewer than 20 training settings, tables of one name,
            nothing that is held out, equal accuracies, numbers out of range, or no sound program
            was found.
    """
    _check(tables, held_out, programs, population)
    search = _Search(tables, held_out, programs, seed, progress)
    started = time.perf_counter()
    members = _evolved(search, population)
    seconds = time.perf_counter() - started
    best = members[0]
    program = Program(best.expression, best.fitness.direction)
    ranking = rank_settings(program, tables, held_out)
    return EvolutionResult(
        program=program,
        fitness=best.fitness.value,
        ranking=ranking,
        baselines={
            name: rank_settings(each, tables, held_out)
            for name, each in BASELINES.items()
            if set(each.inputs) <= search.inputs
        },
        gap=_gap(ranking),
        population=members,
        history=tuple(search.history),
        evaluated=len(search.met),
        broken=sum(each is None for each in search.met.values()),
        seconds=seconds,
    )


def after_selection(
    members: Sequence[Member], offspring: Member | None, newcomer: Member | None
) -> tuple[Member, ...]:
    """Returns the population after a step, best first.

    The worst member leaves, however good the newcomers are, and the better of the two takes its
    place. One that ranks exactly as a member is no newcomer; without any the population stays.

    Args:
        members: Best first.
        offspring: None if none was found.
        newcomer: Drawn at random; None if none was found.
    """
    known = {each.fitness.value for each in members}
    found = [
        each
        for each in (offspring, newcomer)
        if each is not None and each.fitness.value not in known
    ]
    if not found:
        return tuple(members)
    better = max(found, key=_value)
    return tuple(sorted((*members[:-1], better), key=_value, reverse=True))


@dataclass(eq=False)
class _Search:
    """The state of one evolution.

    Attributes:
        met: Fitness by key of all programs met, None for broken ones.
    """

    tables: Sequence[SettingTable]
    others: Sequence[SettingTable]
    programs: int
    seed: int
    progress: Callable[[int], None] | None
    met: dict[str, Fitness | None] = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)
    reported: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.settings = [TrainingSettings.of(each) for each in self.tables]
        kinds = [set(each.inputs.kinds) for each in (*self.tables, *self.others)]
        self.inputs = set.intersection(*kinds)
        names = [name for name in self.tables[0].inputs.kinds if name in self.inputs]
        self.start = self.odds = first_odds(names)

    @property
    def is_over(self) -> bool:
        """Whether all programs that were asked for are evaluated."""
        return len(self.met) >= self.programs

    def member(
        self,
        draw: Callable[[np.random.Generator, Odds], Expression],
        origin: Literal["fresh", "mutation", "crossover"],
    ) -> Member | None:
        """Returns the first drawn program that is sound and new; None after some attempts."""
        for _ in range(_ATTEMPTS):
            if self.is_over:
                return None
            expression = without_sign(canonical(draw(self.rng, self.odds)))
            if expression.key in self.met or not expression.sees_format:
                continue
            found = self.met[expression.key] = fitness(expression, self.settings)
            self._report()
            if found is not None:
                self._remember(found)
                return Member(expression, found, origin)
        return None

    def _remember(self, found: Fitness) -> None:
        if not self.history or found.value > self.history[-1][1]:
            self.history.append((len(self.met), found.value))

    def _report(self) -> None:
        waiting = len(self.met) - self.reported
        if self.progress is not None and (waiting >= _REPORT_EVERY or self.is_over):
            self.progress(waiting)
            self.reported = len(self.met)


def _evolved(search: _Search, population: int) -> tuple[Member, ...]:
    members = _first_members(search, population)
    step = barren = 0
    while not search.is_over and barren < _BARREN_STEPS:
        if step % _ODDS_EVERY == 0:
            good = members[: max(1, len(members) // 2)]
            search.odds = raised_odds(search.start, [each.expression for each in good])
        before = len(search.met)
        members = after_selection(
            members, _offspring(search, members), search.member(random_one, "fresh")
        )
        barren = 0 if len(search.met) > before else barren + 1
        step += 1
    return members


def _first_members(search: _Search, population: int) -> tuple[Member, ...]:
    members: dict[float, Member] = {}
    for _ in range(_BARREN_STEPS):
        if len(members) >= population or search.is_over:
            break
        found = search.member(random_one, "fresh")
        if found is not None:
            members.setdefault(found.fitness.value, found)
    if not members:
        raise ProxyError(f"none of {len(search.met)} programs was sound on the training settings")
    return tuple(sorted(members.values(), key=_value, reverse=True))


def _offspring(search: _Search, members: Sequence[Member]) -> Member | None:
    better = members[: max(2, len(members) // 2)]

    def parent(rng: np.random.Generator) -> Expression:
        return better[int(rng.integers(0, len(better)))].expression

    if search.rng.random() < 0.5:
        return search.member(
            lambda rng, odds: crossover(rng, parent(rng), parent(rng)), "crossover"
        )
    return search.member(lambda rng, odds: mutation(rng, odds, parent(rng)), "mutation")


def _value(member: Member) -> float:
    return member.fitness.value


def _gap(ranking: Ranking) -> float:
    if not ranking.held_out:
        return float("nan")
    return float(
        np.mean(
            [ranking.train[name].value - held.value for name, held in ranking.held_out.items()]
        )
    )


def _check(
    tables: Sequence[SettingTable],
    held_out: Sequence[SettingTable],
    programs: int,
    population: int,
) -> None:
    if not tables:
        raise ProxyError("evolution needs a table to train on, got none")
    names = [each.name for each in (*tables, *held_out)]
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise ProxyError(f"tables must have different names, got {repeated[0]!r} again")
    for table in tables:
        _check_training_settings(table)
    if not held_out and not any(table.held_out.any() for table in tables):
        raise ProxyError("nothing is held out: neither settings of a table nor a table")
    if population < 4:
        raise ProxyError(f"population must be 4 or more, got {population}")
    if programs < population:
        raise ProxyError(f"programs must be {population} (population) or more, got {programs}")


def _check_training_settings(table: SettingTable) -> None:
    accuracy = table.accuracy[~table.held_out]
    if len(accuracy) < _FEWEST_SETTINGS:
        raise ProxyError(
            f"{table.name!r} must have at least {_FEWEST_SETTINGS} training settings, "
            f"got {len(accuracy)}"
        )
    if np.ptp(accuracy) == 0.0:
        raise ProxyError(
            f"the training settings of {table.name!r} must differ in accuracy, "
            f"all have {accuracy[0]}"
        )

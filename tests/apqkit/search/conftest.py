from collections.abc import Callable

import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.search.problem import Problem, SearchSettings
from apqkit.spaces.base import TableSpace
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions
from apqkit.types import Dim

FORMATS = ("int2", "int4", "int8")
BITS = np.array([2.0, 4.0, 8.0])


class ToySpace(TableSpace):
    """Blocks with a width and a format each; depth says how many of them there are."""

    name = "toy"

    def __init__(self, blocks: int = 3) -> None:
        self.blocks = blocks
        slots = range(blocks)
        super().__init__(
            [
                Dim("depth.s0", tuple(range(1, blocks + 1)), "arch"),
                *(Dim(f"width.s0.b{each}", (2, 4, 6), "prune") for each in slots),
                *(
                    Dim(f"w_format.s0.b{each}", ("int2", "int4", "int8"), "quant")
                    for each in slots
                ),
            ]
        )

    def active(self, picks):
        used = np.arange(self.blocks) <= picks[:, :1]
        return np.hstack([np.ones((len(picks), 1), bool), used, used])

    def network(self, picks):
        raise NotImplementedError

    def everyone(self):
        """Returns every distinct candidate, canonical."""
        sizes = [len(dim.choices) for dim in self.dims]
        every = np.indices(sizes).reshape(len(sizes), -1).T
        return np.unique(self.repair(every), axis=0)


class ToyScore:
    """Accuracy and costs in which blocks interact; it remembers every row that was asked for."""

    def __init__(self, space: ToySpace) -> None:
        self.space = space
        self.asked: list[np.ndarray] = []

    def __call__(self, picks):
        self.asked.append(picks)
        blocks = self.space.blocks
        used = self.space.active(picks)[:, 1 : blocks + 1]
        width = (2.0 + 2.0 * picks[:, 1 : blocks + 1]) * used
        bits = BITS[picks[:, blocks + 1 :]] * used
        weight = np.array([0.2, 2.5, 0.6, 1.4, 0.1])[np.arange(blocks) % 5]  # blocks differ
        noise = (weight * used / np.exp2(np.maximum(bits, 1.0))).sum(axis=1)
        capacity = 3.0 * np.sqrt(width * weight).mean(axis=1)
        odd = 0.2 * (picks[:, 1] == picks[:, blocks]) * (picks[:, 0] > 0)
        return {
            "accuracy": 1.0 / (1.0 + np.exp(2.0 * noise + odd - 0.4 * capacity)),
            "size_kib": (width * bits).sum(axis=1),
            "latency_ms": (width * np.where(bits == 4.0, 3.0, bits)).sum(axis=1) + picks[:, 0],
        }

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate(self.asked)


@pytest.fixture
def toy_space() -> ToySpace:
    return ToySpace()


@pytest.fixture
def wide_toy_space() -> ToySpace:
    """Far too many candidates to score them all."""
    return ToySpace(blocks=10)


@pytest.fixture
def toy_problem(toy_space) -> Problem:
    return Problem(
        toy_space,
        ToyScore(toy_space),
        {"accuracy": "max", "size_kib": "min"},
        {},
        SearchSettings(population=60, generations=150),
    )


@pytest.fixture
def score_of() -> Callable[[ToySpace], ToyScore]:
    return ToyScore


@pytest.fixture(scope="session")
def mobilenet() -> MobileNetSpace:
    stages = (StageOptions(width=8, depth=2), StageOptions(width=16, depth=2, stride=2))
    config = SpaceConfig(
        weight_formats=("int2", "int4", "int8"), activation_formats=("int2", "int4", "int8")
    )
    options = MobileNetOptions(stages=stages, hidden_choices=4)
    return MobileNetSpace(config, options, (1, 8, 8), 10)

"""Synthetic tables: accuracies come from a planted formula and noise, not from any network."""

import numpy as np
import pytest

from predictors.zerocost.evolution import LayerInputs, SettingTable

FORMATS = ("int2", "int3", "int4", "int8")
BITS = np.array([2.0, 3.0, 4.0, 8.0])


def synthetic_inputs(seed: int, layers: int = 8, values: int = 40) -> LayerInputs:
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(0.0, 1.0, (5, layers)))
    statistics = {
        "weights": tuple(rng.normal(0, scale, values) for scale in scales[0]),
        "gradients": tuple(rng.normal(0, scale, values + 1) for scale in scales[1]),
        "activations": tuple(np.abs(rng.normal(0, scale, 7)) for scale in scales[2]),
        "hessian": tuple([scale] for scale in scales[3]),
        "virtual_gradients": tuple(rng.exponential(scale, values) for scale in scales[4]),
    }
    parameters = rng.integers(100, 10_000, layers).astype(float)
    powers = np.array([np.mean(np.square(each)) for each in statistics["weights"]]) * parameters
    return LayerInputs(
        tuple(f"layer{each}" for each in range(layers)),
        FORMATS,
        BITS,
        parameters,
        powers[:, None] * 4.0**-BITS,
        statistics,
    )


def planted(inputs: LayerInputs) -> np.ndarray:
    """What no baseline has: the norm of the gradients times an error per weight."""
    norms = [np.linalg.norm(each.astype(float)) for each in inputs.statistics["gradients"]]
    return np.array(norms)[:, None] * np.sqrt(inputs.errors)


def synthetic_table(
    seed: int, settings: int = 300, noise: float = 0.01, name: str | None = None, layers: int = 8
) -> SettingTable:
    rng = np.random.default_rng([seed, 1])
    inputs = synthetic_inputs(seed, layers)
    picks = rng.integers(0, len(FORMATS), (settings, layers))
    damage = planted(inputs)[np.arange(layers), picks].sum(axis=1)
    ranks = damage.argsort().argsort() / settings
    accuracy = np.clip(0.9 - 0.5 * ranks + rng.normal(0.0, noise, settings), 0.0, 1.0)
    held_out = np.arange(settings) % 3 == 0
    recipe = {"made by": "synthetic_table", "seed": seed}
    return SettingTable(name or f"synthetic {seed}", inputs, picks, accuracy, held_out, recipe)


@pytest.fixture(scope="session")
def make_table():
    return synthetic_table


@pytest.fixture(scope="session")
def table() -> SettingTable:
    return synthetic_table(1)


@pytest.fixture(scope="session")
def other_table() -> SettingTable:
    return synthetic_table(2, layers=6)


@pytest.fixture(scope="session")
def planted_numbers():
    return planted

from contextlib import contextmanager

import pytest

from apqkit.config import Config
from apqkit.data import load_splits
from apqkit.spaces import build_space
from apqkit.types import SilentProgress

TREE = {
    "data": {"validation": 60, "test": 60, "limit": 96, "augment_noise": 0.1},
    "space": {
        "weight_formats": ["int4", "int8", "fp8_e4m3"],
        "activation_formats": ["int4", "int8"],
        "options": {
            "stem": 4,
            "stages": [{"width": 8, "depth": 2, "stride": 2}],
            "hidden_choices": 3,
            "head": 12,
        },
    },
    "supernet": {"epochs": 3, "quantized_epochs": 2, "batch_size": 32, "learning_rate": 1e-2},
    "finetune": {"epochs": 3},
}


class KilledError(Exception):
    """Stands for the end of the process."""


class KillingProgress(SilentProgress):
    """Ends the work after so many epochs in all, each right after its checkpoint."""

    def __init__(self, epochs):
        self.left = epochs

    @contextmanager
    def task(self, label, total):
        def advance(steps):
            self.left -= steps
            if self.left <= 0:
                raise KilledError

        yield advance


class PoisonProgress(SilentProgress):
    """Makes a weight of the model NaN after so many epochs in all."""

    def __init__(self, model, epochs):
        self.model, self.left = model, epochs

    @contextmanager
    def task(self, label, total):
        def advance(steps):
            self.left -= steps
            if self.left == 0:
                next(self.model.parameters()).data.fill_(float("nan"))

        yield advance


@pytest.fixture(scope="session")
def poison():
    return PoisonProgress


@pytest.fixture(scope="session")
def make_config():
    """A small configuration; keys of sections replace those above."""

    def make(**sections):
        tree = {name: {**TREE.get(name, {}), **sections.get(name, {})} for name in TREE}
        seed = sections.get("seed", 0)
        return Config.model_validate({**tree, "seed": seed}, strict=False)

    return make


@pytest.fixture(scope="session")
def splits(make_config):
    """Real digits."""
    return load_splits(make_config().data, 0)


@pytest.fixture(scope="session")
def space(make_config, splits):
    return build_space(make_config().space, splits.image_shape, splits.classes)


@pytest.fixture(scope="session")
def killing():
    """Returns a progress that ends the work after so many epochs, and what it raises."""
    return KillingProgress, KilledError


@pytest.fixture(scope="session")
def same_tensors():
    """Compares tensors by name, bit for bit."""

    def bits(tensor):
        return tensor.detach().numpy().tobytes()

    def same(first, second):
        assert first.keys() == second.keys()
        return all(bits(tensor) == bits(second[name]) for name, tensor in first.items())

    return same

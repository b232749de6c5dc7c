import pytest

from apqkit.config import SpaceConfig
from apqkit.spaces import build_space

WEIGHTS = ["int8", "int2", "fp8_e4m3", "int4"]
ACTIVATIONS = ["int4", "int8", "fp8_e4m3"]
OPTIONS = {
    "stages": [
        {"width": 8, "depth": 2},
        {"width": 16, "depth": 3, "stride": 2, "min_depth": 2},
        {"width": 16, "depth": 1, "kernels": [3], "width_shares": [1.0]},
    ],
    "hidden_choices": 4,
    "head": 16,
}


@pytest.fixture(scope="session")
def make_space():
    """Builds a small mobilenet: options and fields of [space] replace those above."""

    def make(image_shape=(1, 8, 8), options=None, **fields):
        settings = {"weight_formats": WEIGHTS, "activation_formats": ACTIVATIONS, **fields}
        settings = {name: tuple(each) for name, each in settings.items()}
        config = SpaceConfig(options={**OPTIONS, **(options or {})}, **settings)
        return build_space(config, image_shape, 10)

    return make


@pytest.fixture(scope="session")
def space(make_space):
    return make_space()

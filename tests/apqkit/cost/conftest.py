import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.spaces.draws import draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions


@pytest.fixture(scope="session")
def tiny_space():
    """An input pool, residuals, strides, and formats of every kind."""
    options = MobileNetOptions(
        pool=2,
        stages=(StageOptions(width=8, depth=2), StageOptions(width=12, depth=2, stride=2)),
        hidden_choices=3,
        head=16,
        depthwise_formats=("int8", "fp32"),
    )
    config = SpaceConfig(
        weight_formats=("int4", "int8", "fp8_e4m3", "fp32"),
        activation_formats=("int3", "int8", "fp4_e2m1", "fp32"),
        first_last_formats=("int8", "fp32"),
    )
    return MobileNetSpace(config, options, (3, 14, 10), 5)


@pytest.fixture(scope="session")
def tiny_networks(tiny_space):
    return tiny_space.network(draw_uniform(tiny_space, 40, np.random.default_rng(0)))

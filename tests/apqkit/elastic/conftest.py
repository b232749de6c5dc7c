import numpy as np
import pytest
import torch

from apqkit.config import SpaceConfig
from apqkit.spaces.draws import draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions

WEIGHTS = ("int2", "int4", "int8", "fp8_e4m3", "fp4_e2m1")
ACTIVATIONS = ("int3", "int8", "fp8_e4m3", "fp4_e2m1", "fp32")


@pytest.fixture(scope="session")
def space():
    """Residuals, an input pool, and formats of every family."""
    options = MobileNetOptions(
        pool=2,
        stages=(StageOptions(width=8, depth=2), StageOptions(width=16, depth=3, stride=2)),
        hidden_choices=4,
        head=16,
    )
    config = SpaceConfig(
        weight_formats=WEIGHTS, activation_formats=ACTIVATIONS, first_last_formats=("int8", "fp32")
    )
    return MobileNetSpace(config, options, (3, 14, 10), 5)


@pytest.fixture(scope="session")
def picks(space):
    return draw_uniform(space, 8, np.random.default_rng(0))


@pytest.fixture
def supernet(space):
    """With offsets and a classifier that differ from their first values."""
    net = space.supernet(0).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith((".beta", ".bias")):
                parameter.uniform_(-0.5, 0.5, generator=generator)
    return net


@pytest.fixture
def images():
    drawn = torch.rand(12, 3, 14, 10, generator=torch.Generator().manual_seed(2))
    return drawn.contiguous(memory_format=torch.channels_last)

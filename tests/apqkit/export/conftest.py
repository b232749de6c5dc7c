import pytest
import torch

from apqkit.config import DataConfig, SpaceConfig
from apqkit.data import load_splits
from apqkit.quant.calibration import calibrate
from apqkit.spaces.base import largest_picks
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions

FORMATS = ("int2", "int3", "int4", "int6", "int8", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1")


@pytest.fixture(scope="session")
def splits():
    """Real digits."""
    return load_splits(DataConfig(validation=300, test=50), 0)


@pytest.fixture(scope="session")
def space():
    """Residuals, depthwise convolutions and every format in every slot."""
    options = MobileNetOptions(
        stages=(StageOptions(width=8, depth=2), StageOptions(width=8, depth=3, stride=2)),
        hidden_choices=4,
        head=16,
        depthwise_formats=FORMATS,
    )
    config = SpaceConfig(
        weight_formats=FORMATS, activation_formats=FORMATS, first_last_formats=FORMATS
    )
    return MobileNetSpace(config, options, (1, 8, 8), 10)


@pytest.fixture(scope="session")
def supernet(space, splits):
    """Random weights whose classes differ from image to image."""
    net = space.supernet(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith((".beta", ".bias")):
                parameter.uniform_(-0.5, 0.5, generator=generator)
        net.get_parameter("units.classifier.weight").normal_(generator=generator)
        net.select(space.network(largest_picks(space.dims)).in_fp32().layers())
        logits = net.train()(splits.calibration_images(128).images())
        net.get_parameter("units.classifier.bias").sub_(logits.mean(dim=0))
        for name in ("weight", "bias"):
            parameter = net.get_parameter(f"units.classifier.{name}")
            parameter.div_(logits.std(dim=0).view(-1, *[1] * (parameter.dim() - 1)))
    return net


@pytest.fixture(scope="session")
def frozen(space, supernet, splits):
    """Returns a frozen network: of one weight and one activation format, or of given rows."""

    def freeze(weights="int8", activations="int8", layers=None):
        if layers is None:
            table = space.network(largest_picks(space.dims))
            layers = table.with_formats(weights, activations).layers()
        model = supernet.extract(layers)
        calibrate(model, splits.calibration_images(128).images())
        return model

    return freeze

import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.cost.tensors import format_bits, output_bits, stored_tensors
from apqkit.formats import FORMATS, format_code
from apqkit.spaces.draws import draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions

NAMES = ("int2", "int4", "int8", "fp8_e4m3")


@pytest.fixture(scope="module")
def table():
    stages = (StageOptions(width=8, depth=2), StageOptions(width=8, depth=3, stride=2))
    config = SpaceConfig(weight_formats=NAMES, activation_formats=NAMES, first_last_formats=NAMES)
    space = MobileNetSpace(config, MobileNetOptions(stages=stages), (1, 8, 8), 10)
    return space.network(draw_uniform(space, 20, np.random.default_rng(0)))


def test_bits_are_those_of_the_format_and_none_without_one():
    codes = np.array([[format_code(name) for name in ("int4", "fp8_e5m2", "bf16")], [-1, 0, 0]])
    assert format_bits(codes).tolist() == [[4, 8, 16], [0, 32, 32]]
    assert format_bits(np.arange(len(FORMATS))).tolist() == [f.bits for f in FORMATS.values()]


def test_an_output_is_stored_as_its_first_reader_wants_it(table):
    """Against a walk over the layers of each network, one after the other."""
    bits, last_reader = stored_tensors(table)
    assert np.array_equal(bits, output_bits(table))
    for candidate in range(len(table)):
        layers = table.layers(candidate)
        for layer in layers:
            readers = [each for each in layers if layer.row in each.producers]
            if readers:
                first = FORMATS[min(readers, key=lambda each: each.row).activation_format].bits
            else:
                first = 32
            assert bits[candidate, layer.row] == first
            last = max((each.row for each in readers), default=layer.row)
            assert last_reader[candidate, layer.row] == last

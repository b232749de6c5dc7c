import math

import numpy as np
import pytest

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.quantization_entropy import quantization_entropy, rounded_deviation

# STD_BITS_LUT of github.com/alibaba/lightweight-neural-architecture-search, blocks_basic.py,
# for 2, 3, 4 and 5 bits
PUBLISHED = {
    1: [1.0089193649965897, 1.0408034134404924, 1.0408329944621844, 1.0408329944621846],
    2: [1.470493611987268, 1.9441392428674842, 2.020625612100753, 2.020725942163689],
    4: [1.7388228634059972, 2.8903940182483057, 3.8504712566997665, 4.010172973403067],
    5: [1.7924496624207404, 3.112192524683381, 4.528190206368193, 5.0020480504267],
    16: [1.936748155491386, 3.7306952212335203, 6.888695319518398, 11.498183425186014],
}


@pytest.mark.parametrize("deviation", PUBLISHED)
def test_equals_the_published_table(deviation) -> None:
    found = [rounded_deviation(float(deviation), bits) for bits in (2, 3, 4, 5)]
    assert found == pytest.approx(PUBLISHED[deviation], rel=1e-9)


def test_equals_the_deviation_of_rounded_draws() -> None:
    draws = np.random.default_rng(0).normal(0.0, 3.0, 400_000)
    for bits in (2, 4):
        clipped = np.clip(np.round(draws), -(2 ** (bits - 1)), 2 ** (bits - 1))
        assert rounded_deviation(3.0, bits) == pytest.approx(clipped.std(), rel=5e-3)


def test_a_deviation_of_1_cannot_see_bits_and_one_of_4_can() -> None:
    blind = [rounded_deviation(1.0, bits) for bits in (3, 4, 6, 8)]
    seeing = [rounded_deviation(4.0, bits) for bits in (3, 4, 6, 8)]
    assert max(blind) / min(blind) < 1.0001
    assert max(seeing) / min(seeing) > 1.3


@pytest.mark.parametrize("bits", [12.0, 16.0, 32.0, 64.0, 1e4])
def test_wide_formats_only_round(bits) -> None:
    assert rounded_deviation(5.0, bits) == pytest.approx(math.sqrt(25.0 + 1.0 / 12.0), rel=1e-12)


def test_adds_up_what_the_formula_says() -> None:
    found = quantization_entropy(np.array([9.0, 64.0]), np.array([2.0, 8.0]), np.array([4.0, 8.0]))
    int2 = math.log(1.7388228634059972 * 4.528190206368193 / 5.0)
    int8 = math.log(4.010403138505321 * 5.008326400438906 / 5.0)
    expected = [[math.log(3.0) + int2, math.log(3.0) + int8], [math.log(8.0) + int2] * 2]
    expected[1][1] = math.log(8.0) + int8
    assert found == pytest.approx(np.array(expected), rel=1e-9)


def test_takes_other_deviations() -> None:
    ones = np.ones(1)
    found = quantization_entropy(
        ones, 4 * ones, 4 * ones, weight_deviation=2.0, activation_deviation=1.0
    )
    assert found[0, 0] == pytest.approx(math.log(2.020625612100753 * 1.0408329944621844))


@pytest.mark.parametrize(
    ("deviation", "bits", "message"),
    [
        (0.0, 4.0, "a deviation must be above 0 and finite, got 0.0"),
        (math.inf, 4.0, "a deviation must be above 0 and finite, got inf"),
        (math.nan, 4.0, "a deviation must be above 0 and finite, got nan"),
        (4.0, 0.5, "bits must be 1 or more, got 0.5"),
    ],
)
def test_says_what_is_out_of_range(deviation, bits, message) -> None:
    with pytest.raises(ProxyError) as caught:
        rounded_deviation(deviation, bits)
    assert str(caught.value) == message

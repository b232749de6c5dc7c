from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from apqkit.config import SpaceConfig
from apqkit.cost.array_energy import array_energy
from apqkit.cost.bitfusion import (
    BITFUSION_ARRAYS,
    CAPABILITY,
    BitFusionArray,
    BitFusionCost,
    SystolicLayers,
    SystolicResult,
    simulate,
    systolic_energy,
    systolic_table,
)
from apqkit.cost.capability import native_formats, non_native
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_uniform, with_format
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace
from apqkit.types import OPS, CostModel, LayerTable

EYERISS_LIKE = BITFUSION_ARRAYS["bitfusion-16x32"]
WIDE = BITFUSION_ARRAYS["bitfusion-16x32-wide"]
SMALL = BITFUSION_ARRAYS["bitfusion-2x4"]
TIGHT = BitFusionArray(2, 4, 1, 1, 1, 32, 500.0)  # buffers so small that most tensors overflow
FORMATS = ("int2", "int3", "int4", "int8", "fp8_e4m3", "fp4_e2m1")

# Source of the next three tables: results/bitfusion-eyeriss-sim-sweep.csv of hsharma35/bitfusion,
# what the published BitFusion simulator (ISCA 2018) gives for layers of its own benchmark networks
# at batch 16; AlexNet is the wide, ungrouped variant. Kernel, output side, stride, input and
# output channels, activation and weight bits, im2col -> on the 16 x 32 array total cycles, stalls,
# DRAM bits read, DRAM bits written.
GOLDEN = {
    "rnn": ((1, 1, 1, 4096, 4096, 4, 4, False), (394583, 263511, 71565312, 4194304)),
    "lstm": ((1, 1, 1, 3600, 3600, 4, 4, False), (337175, 231383, 62836736, 1900544)),
    "alexnet_fc1": (
        (1, 1, 1, 18432, 8192, 4, 4, False),
        (3545090, 2365442, 642908160, 37748736),
    ),
    "alexnet_fc2": ((1, 1, 1, 8192, 8192, 4, 4, False), (1575596, 1051308, 285736960, 16777216)),
    "alexnet_fc3": ((1, 1, 1, 8192, 1000, 8, 8, False), (398679, 136535, 72351744, 4194304)),
    "lenet_conv0": ((5, 32, 1, 1, 32, 2, 2, True), (179116, 162732, 17612800, 16777216)),
    "lenet_conv1": ((5, 16, 1, 32, 64, 2, 2, False), (205635, 835, 21626880, 8388608)),
    "lenet_fc1": ((1, 1, 1, 4096, 512, 2, 2, False), (25259, 21163, 4587520, 262144)),
    "lenet_fc2": ((1, 1, 1, 512, 10, 2, 2, False), (342, 310, 43008, 16384)),
    "alexnet_conv4": ((3, 13, 1, 384, 384, 4, 4, False), (2436097, 403969, 352124928, 115605504)),
    "alexnet_conv2": ((5, 28, 1, 96, 256, 4, 4, False), (5018849, 1249, 671219712, 205520896)),
    "alexnet_conv5": ((3, 13, 1, 384, 256, 4, 4, False), (1624065, 269313, 234749952, 77070336)),
    "alexnet_conv3": ((3, 13, 1, 512, 384, 4, 4, False), (3248129, 538625, 469499904, 154140672)),
}

# The same rows -> bits read from the buffers of weights, activations and outputs, then written.
GOLDEN_BUFFERS = {
    "rnn": (1073741824, 1073741824, 8388608, 67108864, 262144, 8388608),
    "lstm": (866648064, 866648064, 110231552, 54165504, 6770688, 110231552),
    "alexnet_fc1": (9663676416, 9663676416, 75497472, 603979776, 1179648, 75497472),
    "alexnet_fc2": (4294967296, 4294967296, 33554432, 268435456, 524288, 33554432),
    "alexnet_fc3": (1073741824, 1073741824, 8388608, 67108864, 1048576, 8388608),
    "lenet_conv0": (26214400, 26214400, 33554432, 16384, 819200, 33554432),
    "lenet_conv1": (419430400, 419430400, 16777216, 131072, 13107200, 16777216),
    "lenet_fc1": (67108864, 67108864, 1310720, 4194304, 131072, 1310720),
    "lenet_fc2": (163840, 163840, 21504, 10240, 16384, 21504),
    "alexnet_conv4": (16647192576, 16647192576, 231211008, 5308416, 231211008, 231211008),
    "alexnet_conv2": (41104179200, 41104179200, 411041792, 3276800, 462422016, 411041792),
    "alexnet_conv5": (11098128384, 11098128384, 154140672, 3538944, 154140672, 154140672),
    "alexnet_conv3": (22196256768, 22196256768, 308281344, 7077888, 308281344, 308281344),
}

# Some of the same layers at 4,096 bit a cycle -> as GOLDEN, with the buffers as they are (32
# columns) and with 64 columns and buffers of twice the size. AlexNet's conv2 has 27 x 27 pixels.
GOLDEN_AT_4096 = {
    (32, "rnn"): (131079, 7, 268697600, 134217728),
    (32, "lstm"): (103063, 7, 211292160, 105529344),
    (32, "alexnet_fc1"): (1179653, 5, 2722103296, 4194304),
    (32, "alexnet_fc3"): (262148, 4, 302514176, 524288),
    (32, "lenet_conv0"): (16392, 8, 17612800, 16777216),
    (32, "lenet_conv1"): (204840, 40, 21626880, 8388608),
    (32, "lenet_fc1"): (4140, 44, 10616832, 2097152),
    (32, "lenet_fc2"): (47, 15, 43008, 16384),
    (32, "alexnet_conv4"): (1752219, 27, 653230080, 199360512),
    (32, "alexnet_conv2"): (4665659, 59, 1388773376, 191102976),
    (64, "rnn"): (65612, 76, 136577024, 2097152),
    (64, "lstm"): (52053, 69, 108564480, 1867776),
    (64, "lenet_conv0"): (16588, 204, 34390016, 33554432),
    (64, "lenet_conv1"): (102455, 55, 15073280, 8388608),
    (64, "lenet_fc1"): (2128, 80, 4587520, 262144),
    (64, "lenet_fc2"): (55, 23, 59392, 32768),
    (64, "alexnet_conv4"): (876153, 57, 428949504, 199360512),
    (64, "alexnet_conv2"): (2332911, 111, 791576576, 191102976),
}

# Source: lut/BitFusion_new.b1.dict of mit-han-lab/apq, 16 x 32 array at batch 1; ten of the 37 %
# of its depthwise rows that the rule for depthwise layers meets within 5 %. Channels, input side,
# kernel, stride, weight bits, activation bits -> milliseconds.
PUBLISHED_DEPTHWISE = {
    (88, 112, 5, 2, 4, 8): 0.943056,
    (168, 28, 3, 2, 4, 4): 0.037200,
    (1048, 7, 3, 1, 4, 4): 0.079926,
    (96, 56, 7, 2, 6, 6): 0.926400,
    (112, 56, 7, 1, 6, 8): 4.306260,
    (96, 56, 5, 2, 8, 8): 0.479424,
    (72, 112, 5, 2, 4, 6): 0.785800,
    (112, 56, 5, 2, 6, 8): 0.558852,
    (320, 14, 7, 1, 8, 6): 0.793760,
    (224, 28, 7, 1, 4, 6): 1.086764,
}


def layers_of(rows):
    """Rows of kernel, height, width, stride, channels in and out, bits a and w, im2col."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return SystolicLayers(*columns)


FIGURES = ("cycles", "stall_cycles", "dram_read_bits", "dram_write_bits")


def figures(result: SystolicResult):
    return np.stack([getattr(result, name) for name in FIGURES], axis=1)


def buffers(result: SystolicResult):
    return np.concatenate([result.sram_read_bits, result.sram_write_bits]).T


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows(name):
    (kernel, side, *rest), expected = GOLDEN[name]
    result = simulate(layers_of([(kernel, side, side, *rest)]), EYERISS_LIKE, batch=16)
    assert figures(result).tolist() == [list(expected)]
    assert buffers(result).tolist() == [list(GOLDEN_BUFFERS[name])]
    assert {each.dtype for each in vars(result).values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize(("columns", "name"), GOLDEN_AT_4096)
def test_golden_rows_at_4096_bit_a_cycle(columns, name):
    (kernel, side, *rest), _ = GOLDEN[name]
    side = 27 if name == "alexnet_conv2" else side
    sizes = [kib * columns // 32 for kib in EYERISS_LIKE.buffers_kib]
    array = BitFusionArray(16, columns, *sizes, 4096, 500.0)
    result = simulate(layers_of([(kernel, side, side, *rest)]), array, batch=16)
    assert figures(result).tolist() == [list(GOLDEN_AT_4096[columns, name])]


def ceil_div(a, b):
    return -(-a // b)


def tile_sizes(size, unit=1):
    sizes = [unit]
    while sizes[-1] < size:
        sizes.append(2 * sizes[-1])
    return [min(each, size) for each in sizes]


def walk(order, trips, size, limit, touching):
    """Traffic of one tensor and the last size that fitted, loops from the inner to the outer."""
    first_fill, fits = size, True
    for loop in order:
        if not fits or loop in touching:
            size *= trips[loop]
        if fits and size <= limit:
            first_fill = size
        fits = fits and size <= limit
    return size, first_fill


def tilings(row, array, batch):
    """Trips, tile bits, limits, compute cycles and bits read to compute, of all that fit."""
    kernel, height, width, stride, channels, outputs, a, w, im2col = row
    a, w = max(a, 2), max(w, 2)
    lanes = array.rows * int(8 / a) * int(8 / w)
    limits = [
        kib * 1024 * 8 / 2
        for kib in (array.weight_sram_kib, array.activation_sram_kib, array.output_sram_kib)
    ]
    for b in tile_sizes(batch):
        for side in tile_sizes(max(height, width)):
            oh, ow = min(side, height), min(side, width)
            for ic in tile_sizes(channels):
                for oc in tile_sizes(outputs, 1 if im2col else array.columns):
                    wide = ceil_div(oc, array.columns)
                    if im2col:
                        compute = b * oh * ow * wide * ceil_div(kernel**2 * ic, lanes)
                        inputs = ow * oh * kernel**2 * ic * b * a
                    else:
                        compute = b * wide * ow * oh * kernel**2 * ceil_div(ic, lanes)
                        iw, ih = kernel + (ow - 1) * stride, kernel + (oh - 1) * stride
                        inputs = iw * ih * ic * b * a
                    weights, outputs_moved = kernel**2 * ic * oc * w, oc
                    if array.moves_padding:
                        weights = ceil_div(kernel**2 * ic, lanes) * lanes * oc * w
                        outputs_moved = wide * array.columns
                    sizes = (weights, inputs, ow * oh * outputs_moved * b * 32)
                    if any(size > limit for size, limit in zip(sizes, limits, strict=True)):
                        continue
                    trips = {
                        "B": ceil_div(batch, b),
                        "OW": ceil_div(width, ow),
                        "OH": ceil_div(height, oh),
                        "IC": ceil_div(channels, ic),
                        "OC": ceil_div(outputs, oc),
                    }
                    tiles = int(np.prod(list(trips.values())))
                    sums = tiles * b * oh * ow * oc
                    products = sums * kernel**2 * ic
                    operands = (products * w, products * a, sums * 32)
                    yield trips, sizes, limits, compute * tiles, operands


def reference(row, array, batch):
    """The formulas as plain loops, all tilings, all 120 orders: figures and pJ of the buffers."""
    touching = ({"IC", "OC"}, {"B", "OW", "OH", "IC"}, {"B", "OW", "OH", "OC"})
    bandwidth = array.bandwidth_bits_per_cycle
    banks = array_energy(
        array.rows, array.columns, buffers_kib=array.buffers_kib, clock_mhz=array.clock_mhz
    ).banks
    best = None
    for trips, sizes, limits, compute, operands in tilings(row, array, batch):
        for order in permutations(trips):
            (weights, fill_w), (inputs, fill_a), (outputs, fill_o) = (
                walk(order, trips, *each) for each in zip(sizes, limits, touching, strict=True)
            )
            reads, writes = weights + inputs + outputs, outputs
            fills = fill_w + fill_a + fill_o
            latency = ceil_div(fills, bandwidth) + ceil_div(fill_o, bandwidth)
            transfer = ceil_div(reads + writes - fills - fill_o, bandwidth)
            stall = max(0, transfer - compute) + latency
            read_w, read_a, read_o = operands
            picojoules = (
                read_w * banks[0].read_pj_per_bit
                + weights * banks[0].write_pj_per_bit
                + read_a * banks[1].read_pj_per_bit
                + inputs * banks[1].write_pj_per_bit
                + (read_o + outputs) * banks[2].read_pj_per_bit
                + (read_o + outputs) * banks[2].write_pj_per_bit
            )
            found = (compute + stall, reads + writes, reads, stall, inputs, picojoules)
            best = found if best is None else min(best, found)
    total, moved, reads, stall, _, picojoules = best
    return [total, stall, reads, moved - reads], picojoules


def random_rows(count, rng, *, side, channels):
    rows = []
    for _ in range(count):
        kernel = int(rng.choice([1, 1, 3, 5]))
        height, width = (int(each) for each in rng.integers(1, side + 1, 2))
        height = width if rng.random() < 0.6 else height
        depthwise = rng.random() < 0.25
        rows.append(
            (
                kernel,
                height,
                width,
                int(rng.integers(1, 3)),
                1 if depthwise else int(rng.integers(1, channels + 1)),
                int(rng.integers(1, channels + 1)),
                int(rng.integers(1, 9)),
                int(rng.integers(1, 9)),
                bool(rng.random() < 0.25),
            )
        )
    return rows


@pytest.mark.parametrize(
    ("array", "batch", "count", "side", "channels"),
    [
        pytest.param(SMALL, 1, 12, 8, 40, id="digits-batch1"),
        pytest.param(TIGHT, 1, 40, 8, 24, id="tight-batch1"),
        pytest.param(replace(TIGHT, output_sram_kib=2), 1, 25, 16, 40, id="large-maps"),
        pytest.param(TIGHT, 4, 12, 5, 8, id="tight-batch4"),
        pytest.param(replace(TIGHT, bandwidth_bits_per_cycle=500), 3, 8, 5, 8, id="fast-batch3"),
        pytest.param(EYERISS_LIKE, 2, 10, 6, 48, id="published"),
        pytest.param(WIDE, 2, 10, 6, 48, id="published-wide"),
        pytest.param(replace(EYERISS_LIKE, moves_padding=False), 1, 10, 8, 72, id="no-padding"),
        pytest.param(replace(TIGHT, moves_padding=False), 1, 30, 8, 24, id="tight-no-padding"),
    ],
)
def test_equals_plain_loops_over_all_tilings_and_orders(array, batch, count, side, channels):
    rows = random_rows(count, np.random.default_rng(batch), side=side, channels=channels)
    result = simulate(layers_of(rows), array, batch=batch)
    buffer_mj = systolic_energy(result, array).sram
    for row, found, energy_mj in zip(rows, figures(result).tolist(), buffer_mj, strict=True):
        expected, picojoules = reference(row, array, batch)
        assert found == expected, row
        assert energy_mj == pytest.approx(picojoules * 1e-9, rel=1e-5), row


@pytest.mark.parametrize(
    ("row", "array"),
    [
        # Four output channels exceed half of the weight buffer; one does not.
        pytest.param((12, 2, 2, 1, 1, 4, 8, 8, True), TIGHT, id="im2col-channels-one-by-one"),
        # The fastest order has the input channels inside both loops over pixels.
        pytest.param(
            (5, 11, 11, 1, 23, 1, 2, 5, False),
            BitFusionArray(4, 2, 1, 4, 4, 32, 500.0),
            id="channels-innermost",
        ),
    ],
)
def test_rare_winners_equal_plain_loops(row, array):
    found = figures(simulate(layers_of([row]), array, batch=1)).tolist()
    assert found == [reference(row, array, 1)[0]]


def many_layers(count=60, seed=0):
    return layers_of(random_rows(count, np.random.default_rng(seed), side=12, channels=48))


def test_a_layer_costs_the_same_in_any_company():
    layers = many_layers()
    crowd = layers.take(np.arange(2000) % len(layers))  # several chunks
    alone = [figures(simulate(layers.take(np.array([i])), TIGHT, batch=2)) for i in range(60)]
    together = simulate(crowd, TIGHT, batch=2)
    assert np.array_equal(figures(together), np.concatenate(alone)[np.arange(2000) % 60])
    assert np.array_equal(buffers(together)[:60], buffers(simulate(layers, TIGHT, batch=2)))


def test_no_layers_cost_nothing():
    nothing = simulate(many_layers().take(slice(0)), SMALL, batch=1)
    assert figures(nothing).shape == (0, 4)
    assert systolic_energy(nothing, SMALL).total.shape == (0,)


def test_height_and_width_are_alike():
    layers = many_layers()
    turned = replace(layers, out_height=layers.out_width, out_width=layers.out_height)
    straight, across = (simulate(each, TIGHT, batch=1) for each in (layers, turned))
    assert np.array_equal(figures(straight), figures(across))
    assert np.array_equal(buffers(straight), buffers(across))


def test_cycles_are_at_least_the_multiplications_over_the_peak_rate():
    layers = many_layers()
    macs = layers.kernel**2 * layers.in_channels * layers.out_channels
    macs *= layers.out_height * layers.out_width
    peak = (
        8 * (8 // np.maximum(layers.activation_bits, 2)) * (8 // np.maximum(layers.weight_bits, 2))
    )
    result = simulate(layers, SMALL, batch=1)
    assert (result.cycles - result.stall_cycles >= macs / peak).all()
    assert (result.stall_cycles > 0).all()  # the first fill at least


@pytest.mark.parametrize("array", [TIGHT, SMALL, EYERISS_LIKE, WIDE])
def test_bandwidth_never_costs_cycles(array):
    layers = many_layers()
    bandwidths = (array.bandwidth_bits_per_cycle, 4 * array.bandwidth_bits_per_cycle)
    slow, fast = (
        simulate(layers, replace(array, bandwidth_bits_per_cycle=bits), batch=1).cycles
        for bits in bandwidths
    )
    assert (fast <= slow).all()
    assert (fast < slow).any()


@pytest.mark.parametrize("array", [SMALL, EYERISS_LIKE, WIDE])
@pytest.mark.parametrize("operand", ["weight_bits", "activation_bits"])
def test_wider_operands_compute_no_faster(array, operand):
    vast = replace(array, bandwidth_bits_per_cycle=2**40)
    cycles = [
        simulate(replace(many_layers(), **{operand: np.full(60, bits)}), vast, batch=1).cycles
        for bits in (2, 4, 8)
    ]
    assert (cycles[0] <= cycles[1]).all()
    assert (cycles[1] <= cycles[2]).all()
    assert (cycles[0] < cycles[2]).any()


def test_convolutions_wait_for_dram_on_the_narrow_array_and_compute_on_the_wide_one():
    rows = [(kernel, side, side, *rest) for (kernel, side, *rest), _ in GOLDEN.values()]
    layers = layers_of(rows).take(np.array([kernel > 1 for kernel, *_ in rows]))
    waiting, computing = (simulate(layers, array, batch=16) for array in (EYERISS_LIKE, WIDE))
    assert ((computing.stall_cycles / computing.cycles)[1:] < 0.01).all()
    assert (waiting.stall_cycles / waiting.cycles).max() > 0.9  # LeNet's first, one input channel
    assert (computing.cycles <= waiting.cycles).all()
    multiplications = layers.kernel**2 * layers.in_channels * layers.out_channels
    multiplications *= layers.out_height * layers.out_width * 16
    operands = (8 // layers.activation_bits) * (8 // layers.weight_bits)
    assert (computing.cycles >= multiplications / (16 * 32 * operands)).all()


@pytest.mark.parametrize("array", [EYERISS_LIKE, WIDE], ids=["published", "published-wide"])
def test_twice_the_images_take_at_most_twice_the_time_and_energy(array):
    layers = many_layers()
    one, two = (simulate(layers, array, batch=images) for images in (1, 2))
    assert (two.cycles <= 2 * one.cycles).all()
    once, twice = (systolic_energy(each, array) for each in (one, two))
    assert (twice.total < 2 * once.total + 1e-12).mean() > 0.9


def test_energy_by_hand():
    """One layer in one tile: 8 channels to 4 on 2 x 2 pixels, 1 x 1, W4A8, on the 2 x 4 array."""
    layers = layers_of([(1, 2, 2, 1, 8, 4, 8, 4, False)])
    result = simulate(layers, SMALL, batch=1)
    # 2 rows of 1 x 2 lanes: 2 steps of 4 channels on 4 pixels; 128 + 256 + 512 bits in, 512 out.
    assert figures(result).tolist() == [[8 + 5 + 3, 5 + 3, 128 + 256 + 512, 512]]
    assert buffers(result).tolist() == [[128 * 4, 128 * 8, 16 * 32 + 512, 128, 256, 16 * 32 + 512]]
    energy = systolic_energy(result, SMALL)
    assert energy.core == pytest.approx(8 * 8 * 279.96 / 500 * 1e-9)  # cycles, units, uW / MHz
    # Banks of 8, 16 and 4 KiB, 8, 2 and 4 of them; nJ for 32 bits and mW as CACTI has them.
    leakage_mw = 8 * 0.064314 + 8 * 13.6943 + 2 * 27.127 + 4 * 8.23828
    assert energy.leakage == pytest.approx(16 * leakage_mw / 500e6)
    nanojoules = (
        512 * 0.00639163 + 128 * 0.00556268 + 1024 * 0.0099817 + 256 * 0.0084209
        + 1024 * (0.00398324 + 0.00505131)
    ) / 32  # fmt: skip
    assert energy.sram == pytest.approx(nanojoules * 1e-6)
    assert energy.dram == pytest.approx((896 + 512) * 15e-9)
    assert energy.total == energy.core + energy.leakage + energy.sram + energy.dram


def test_one_bit_counts_as_two():
    layers = many_layers()
    one, two = (
        replace(layers, weight_bits=np.full(60, bits), activation_bits=np.full(60, bits))
        for bits in (1, 2)
    )
    assert np.array_equal(
        figures(simulate(one, SMALL, batch=1)), figures(simulate(two, SMALL, batch=1))
    )


@pytest.mark.parametrize(("odd", "even"), [(3, 4), (6, 8)])
def test_odd_widths_compute_as_slowly_as_the_next_operand(odd, even):
    vast = BitFusionArray(2, 4, 2**16, 2**16, 2**16, 2**40, 500.0)  # one tile, no waiting
    base = replace(many_layers(), activation_bits=np.full(60, 8))
    computing = []
    for bits in (odd, even):
        result = simulate(replace(base, weight_bits=np.full(60, bits)), vast, batch=1)
        computing.append(result.cycles - result.stall_cycles)
    assert np.array_equal(*computing)


def test_bits_beyond_eight_are_refused():
    layers = layers_of([(1, 1, 1, 1, 4, 4, 8, 8, False), (1, 1, 1, 1, 4, 4, 32, 8, False)])
    with pytest.raises(CostError) as caught:
        simulate(layers, SMALL, batch=1)
    assert str(caught.value) == "layers.activation_bits[1] must be 1 to 8, got 32"


def test_an_empty_batch_is_refused():
    with pytest.raises(CostError) as caught:
        simulate(many_layers(), SMALL, batch=0)
    assert str(caught.value) == "batch must be at least 1, got 0"


def test_a_layer_without_a_fitting_tile_is_named():
    layers = layers_of([(1, 1, 1, 1, 4, 4, 8, 8, False), (15, 2, 2, 1, 4, 4, 8, 8, False)])
    with pytest.raises(CostError) as caught:
        simulate(layers, TIGHT, batch=1)
    assert str(caught.value) == (
        "layers[1] (kernel 15, out_height 2, out_width 2, stride 1, in_channels 4, "
        "out_channels 4, activation_bits 8, weight_bits 8, im2col False) fits in no tile: half of "
        "the buffers holds (4096, 4096, 4096) bits of weights, inputs and outputs"
    )


def space_of(options=None, image=(1, 8, 8), **config):
    settings = {"weight_formats": FORMATS, "activation_formats": ("int2", *FORMATS[2:])} | config
    return MobileNetSpace(SpaceConfig(**settings), options or MobileNetOptions(), image, 10)


@pytest.fixture(scope="module")
def space():
    return space_of()


@pytest.fixture(scope="module")
def table(space):
    return space.network(draw_uniform(space, 200, np.random.default_rng(0)))


def rows_of(table, array=SMALL):
    """Candidate 0's simulated layers by row name."""
    work = systolic_table(table, array)
    own = np.flatnonzero(work.slots < len(table.names))
    columns = {field.name: getattr(work.layers, field.name) for field in fields(work.layers)}
    columns["repeats"] = work.repeats
    return {
        table.names[work.slots[i]]: {name: column[i].item() for name, column in columns.items()}
        for i in own
    }


def test_table_rows_become_layers(space):
    table = space.network(with_format(space, largest_picks(space.dims), "int4", "fp4_e2m1"))
    assert not systolic_table(table, SMALL).unsupported.any()
    rows = rows_of(table)
    assert set(rows) == {layer.name for layer in table.layers() if layer.op in ("conv", "linear")}
    assert rows["stem"] == {
        "kernel": 3, "out_height": 8, "out_width": 8, "stride": 1, "in_channels": 1,
        "out_channels": 8, "activation_bits": 8, "weight_bits": 8, "im2col": True, "repeats": 1,
    }  # fmt: skip
    assert rows["classifier"] == {
        "kernel": 1, "out_height": 1, "out_width": 1, "stride": 1, "in_channels": 48,
        "out_channels": 10, "activation_bits": 8, "weight_bits": 8, "im2col": False, "repeats": 1,
    }  # fmt: skip
    assert [name for name, row in rows.items() if row["im2col"]] == ["stem"]


@pytest.mark.parametrize(
    ("array", "activations", "together"),
    [
        (SMALL, "int8", 1),
        (SMALL, "int4", 2),
        (EYERISS_LIKE, "int8", 8),
        (EYERISS_LIKE, "int2", 32),
    ],
)
def test_a_depthwise_layer_runs_as_dense_ones_of_half_a_column(array, activations, together):
    space = space_of()
    table = space.network(with_format(space, largest_picks(space.dims), "int8", activations))
    row = rows_of(table, array)["s1.b0.depthwise"]  # 64 channels, weights in int8
    assert (row["in_channels"], row["out_channels"]) == (together, together)
    assert row["repeats"] == 64 // together


def test_depthwise_rows_agree_with_the_published_table():
    unpadded = replace(EYERISS_LIKE, moves_padding=False)
    exact = []
    for key, latency_ms in PUBLISHED_DEPTHWISE.items():
        channels, side, kernel, stride, weights, activations = key
        together = min(max(16 * (8 // weights) * (8 // activations) // 2, 1), channels)
        out = (side - 1) // stride + 1
        layers = layers_of(
            [(kernel, out, out, stride, together, together, activations, weights, False)]
        )
        for array in (EYERISS_LIKE, unpadded):
            cycles = simulate(layers, array, batch=1).cycles[0] * -(-channels // together)
            assert cycles / 500e3 == pytest.approx(latency_ms, rel=0.05)
        exact.append(round(latency_ms * 500e3) == cycles)
    assert sum(exact) >= 3


def test_the_first_convolution_is_found_behind_a_pool():
    space = space_of(MobileNetOptions(pool=2), image=(3, 16, 12))
    rows = rows_of(space.network(smallest_picks(space.dims)))
    assert [name for name, row in rows.items() if row["im2col"]] == ["stem"]
    assert (rows["stem"]["out_height"], rows["stem"]["out_width"]) == (8, 6)


def test_a_candidate_costs_the_sum_of_its_rows(table):
    model: CostModel = BitFusionCost(SMALL)
    costs = model.cost(table)
    assert tuple(costs) == model.metrics == ("latency_ms", "energy_mj")
    fresh = BitFusionCost(SMALL)
    terms = fresh.layer_terms(table)
    assert set(terms) == set(model.metrics)
    assert np.array_equal(fresh.layer_latency_ms(table), terms["latency_ms"])
    for name, rows in terms.items():
        assert costs[name].shape == (200,)
        assert rows.shape == table.op.shape
        np.testing.assert_allclose(costs[name], rows.sum(axis=1), rtol=1e-12)


def test_rows_cost_what_the_simulation_says(table):
    work = systolic_table(table, SMALL)
    result = simulate(work.layers.take(slice(40)), SMALL, batch=3)
    model = BitFusionCost(SMALL, batch=3)
    terms = model.layer_terms(table)
    cycles = result.cycles * work.repeats[:40]
    found = {name: rows.ravel()[work.slots[:40]] for name, rows in terms.items()}
    np.testing.assert_allclose(found["latency_ms"], cycles / 500e6 * 1e3)
    energy = systolic_energy(result, SMALL).total * work.repeats[:40]
    np.testing.assert_allclose(found["energy_mj"], energy)


def test_only_convolutions_and_linear_layers_cost(table):
    model = BitFusionCost(SMALL)
    costly = table.active & (table.macs > 0)
    for rows in model.layer_terms(table).values():
        assert (rows[costly] > 0).all()
        assert (rows[~costly] == 0).all()
    assert any("add" in name for name in np.array(table.names)[~costly.any(axis=0)])


def test_memory_order_of_the_columns_does_not_matter(table):
    turned = replace(
        table,
        **{
            field.name: np.asfortranarray(getattr(table, field.name))
            for field in fields(table)
            if field.name != "names"
        },
    )
    rows = BitFusionCost(SMALL).layer_latency_ms(table)
    assert np.array_equal(BitFusionCost(SMALL).layer_latency_ms(turned), rows)


@pytest.mark.parametrize("column", ["weight_format", "activation_format"])
def test_fp32_is_not_a_number_never_zero(table, column):
    row = table.names.index("head")
    formats = getattr(table, column).copy()
    formats[7, row] = format_code("fp32")
    wide = replace(table, **{column: formats})
    model = BitFusionCost(SMALL)
    unsupported = np.zeros(table.op.shape, dtype=bool)
    unsupported[7, row] = True
    for rows in model.layer_terms(wide).values():
        assert np.array_equal(np.isnan(rows), unsupported)
    for values in model.cost(wide).values():
        assert np.flatnonzero(np.isnan(values)).tolist() == [7]


def test_a_network_in_fp32_prices_no_layer(table):
    model = BitFusionCost(SMALL)
    assert np.isnan(model.cost(table.in_fp32())["latency_ms"]).all()
    assert len(model.priced_rows()) == 0


def test_the_order_of_candidates_does_not_matter(table):
    shuffled = np.random.default_rng(1).permutation(len(table))
    straight, mixed = BitFusionCost(SMALL), BitFusionCost(SMALL)
    latency = straight.cost(table)["latency_ms"]
    assert np.array_equal(mixed.cost(table.take(shuffled))["latency_ms"], latency[shuffled])
    assert mixed.priced_rows().equals(straight.priced_rows())


def test_prices_are_kept_and_do_not_depend_on_history(table):
    model = BitFusionCost(SMALL)
    once = model.cost(table.take(slice(100, 200)))["latency_ms"]
    priced = len(model.priced_rows())
    assert np.array_equal(model.cost(table.take(slice(100, 200)))["latency_ms"], once)
    assert len(model.priced_rows()) == priced
    assert np.array_equal(model.cost(table)["latency_ms"][100:], once)
    assert len(model.priced_rows()) > priced
    fresh = BitFusionCost(SMALL)
    fresh.cost(table)
    assert fresh.priced_rows().equals(model.priced_rows())


def test_priced_rows_say_what_was_simulated(table):
    model = BitFusionCost(SMALL)
    model.cost(table)
    frame = model.priced_rows()
    names = [field.name for field in fields(SystolicLayers)]
    layers = SystolicLayers(*(frame[name].to_numpy() for name in names))
    assert frame["im2col"].dtype == bool
    assert not frame.duplicated(names).any()
    result = simulate(layers, SMALL, batch=1)
    assert np.array_equal(frame[list(FIGURES)], figures(result))
    assert np.array_equal(frame["sram_read_bits"], result.sram_read_bits.sum(axis=0))
    assert np.array_equal(frame["sram_write_bits"], result.sram_write_bits.sum(axis=0))
    np.testing.assert_allclose(frame["latency_ms"], frame["cycles"] / 5e5)
    moved = frame["dram_read_bits"] + frame["dram_write_bits"]
    np.testing.assert_allclose(frame["dram_energy_mj"], moved * 15e-12 * 1e3)
    energy = systolic_energy(result, SMALL)
    for name, values in vars(energy).items():
        np.testing.assert_array_equal(frame[f"{name}_energy_mj"], values)
    np.testing.assert_array_equal(frame["energy_mj"], energy.total)


def test_floats_cost_as_integers_of_their_width(space):
    picks = draw_uniform(space, 20, np.random.default_rng(2))
    model = BitFusionCost(SMALL)
    for as_float, as_integer in (("fp8_e4m3", "int8"), ("fp4_e2m1", "int4")):
        floats, integers = (
            model.cost(space.network(with_format(space, picks, name, name)))
            for name in (as_float, as_integer)
        )
        for metric in model.metrics:
            assert np.array_equal(floats[metric], integers[metric])


def test_formats_matter_on_the_small_array(space):
    picks = largest_picks(space.dims)
    totals = [
        BitFusionCost(SMALL).cost(space.network(with_format(space, picks, name, name)))
        for name in ("int2", "int4", "int8")
    ]
    for metric in ("latency_ms", "energy_mj"):
        w2a2, w4a4, w8a8 = (each[metric].item() for each in totals)
        assert w2a2 < w4a4 < 0.9 * w8a8, metric


def test_operands_that_fill_bricks_are_native(space):
    pairs = native_formats(CAPABILITY, "conv")
    assert {("int2", "int8"), ("int8", "uint2"), ("fp8_e4m3", "int4")} <= pairs
    assert not {"int3", "int6", "int16", "bf16", "fp32"} & {
        name for pair in pairs for name in pair
    }
    table = space.network(with_format(space, largest_picks(space.dims), "int3", "int4"))
    odd = table.weight_format == format_code("int3")
    assert odd.any()
    assert np.array_equal(non_native(CAPABILITY, table), table.active & odd)


def published_layers(rows):
    """The layers of a published table as the rows of networks of one layer."""
    shape = (len(rows), 1)

    def column(values):
        return np.asarray(values, dtype=np.int64).reshape(shape)

    formats = {bits: format_code(f"int{bits}") for bits in (4, 6, 8)}
    return LayerTable(
        names=("layer",),
        op=column(np.full(len(rows), OPS.index("conv"))),
        in_channels=column(rows["in_ch"]),
        out_channels=column(rows["out_ch"]),
        kernel=column(rows["kernel"]),
        stride=column(rows["stride"]),
        groups=column(rows["groups"]),
        in_height=column(rows["in_size"]),
        in_width=column(rows["in_size"]),
        activation=column(np.zeros(len(rows))),
        weight_format=column(rows["w_bits"].map(formats)),
        activation_format=column(rows["a_bits"].map(formats)),
        active=np.ones(shape, dtype=bool),
        producers=np.full((*shape, 2), -1),
    )


def test_without_padding_most_rows_of_apq_are_met(public_data):
    """lut/BitFusion_new.b1.dict of mit-han-lab/apq: every tenth of its 6,567 rows."""
    file = public_data / "apq_bitfusion_lut" / "apq_bitfusion_lut.csv.gz"
    rows = pd.read_csv(file).iloc[::10].reset_index(drop=True)
    model = BitFusionCost(replace(EYERISS_LIKE, moves_padding=False))
    costs = model.cost(published_layers(rows))
    ratio = costs["latency_ms"] / rows["latency"].to_numpy()
    for kind in (rows["groups"] == 1, rows["groups"] > 1):
        assert np.median(ratio[kind]) == pytest.approx(1.0, abs=1e-3)
        assert (np.abs(ratio[kind] - 1) < 1e-9).mean() > 0.5
        latency_rank = spearmanr(costs["latency_ms"][kind], rows["latency"][kind]).statistic
        assert latency_rank > 0.995
        energy = costs["energy_mj"][kind] / rows["energy"][kind]
        assert np.median(energy) == pytest.approx(1.0, abs=0.06)
        assert spearmanr(costs["energy_mj"][kind], rows["energy"][kind]).statistic > 0.97


def test_a_layer_beyond_the_keys_is_named():
    space = space_of(MobileNetOptions(stem=20_000))
    table = space.network(smallest_picks(space.dims))
    with pytest.raises(CostError) as caught:
        BitFusionCost(SMALL).cost(table)
    assert str(caught.value) == (
        "in_channels must be below 16384 to be simulated, got layers[1] (kernel 1, out_height 8, "
        "out_width 8, stride 1, in_channels 20000, out_channels 4, activation_bits 2, "
        "weight_bits 2, im2col False)"
    )

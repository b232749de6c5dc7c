from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.cost.bitfusion import (
    BITFUSION_ARRAYS,
    BitFusionArray,
    BitFusionCost,
    SystolicLayers,
    SystolicResult,
    simulate,
    systolic_table,
)
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_uniform, with_format
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace
from apqkit.types import CostModel

EYERISS_LIKE = BITFUSION_ARRAYS["bitfusion-16x32"]
SMALL = BITFUSION_ARRAYS["bitfusion-2x4"]
TIGHT = BitFusionArray(2, 4, 1, 1, 1, 32, 500.0)  # buffers so small that most tensors overflow
FORMATS = ("int2", "int3", "int4", "int8", "fp8_e4m3", "fp4_e2m1")

# Source: what the published BitFusion simulator (ISCA 2018) gives for layers of its own benchmark
# networks on the 16 x 32 array at batch 16; AlexNet is the wide, ungrouped variant. Kernel, output
# side, stride, input and output channels, activation and weight bits, im2col -> total cycles,
# stalls, DRAM bits read, DRAM bits written.
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


def figures(result: SystolicResult):
    return np.stack([getattr(result, field.name) for field in fields(result)], axis=1)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows(name):
    (kernel, side, *rest), expected = GOLDEN[name]
    result = simulate(layers_of([(kernel, side, side, *rest)]), EYERISS_LIKE, batch=16)
    assert figures(result).tolist() == [list(expected)]
    assert figures(result).dtype == np.int64


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
    """Trips, tile bits and compute cycles of every tiling that fits."""
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
                    weights = ceil_div(kernel**2 * ic, lanes) * lanes * oc * w
                    sizes = (weights, inputs, ow * oh * wide * array.columns * b * 32)
                    if any(size > limit for size, limit in zip(sizes, limits, strict=True)):
                        continue
                    trips = {
                        "B": ceil_div(batch, b),
                        "OW": ceil_div(width, ow),
                        "OH": ceil_div(height, oh),
                        "IC": ceil_div(channels, ic),
                        "OC": ceil_div(outputs, oc),
                    }
                    yield trips, sizes, limits, compute * int(np.prod(list(trips.values())))


def reference(row, array, batch):
    """The formulas as plain loops: all tilings, all 120 orders."""
    touching = ({"IC", "OC"}, {"B", "OW", "OH", "IC"}, {"B", "OW", "OH", "OC"})
    bandwidth = array.bandwidth_bits_per_cycle
    best = None
    for trips, sizes, limits, compute in tilings(row, array, batch):
        for order in permutations(trips):
            (weights, fill_w), (inputs, fill_a), (outputs, fill_o) = (
                walk(order, trips, *each) for each in zip(sizes, limits, touching, strict=True)
            )
            reads, writes = weights + inputs + outputs, outputs
            fills = fill_w + fill_a + fill_o
            latency = ceil_div(fills, bandwidth) + ceil_div(fill_o, bandwidth)
            transfer = ceil_div(reads + writes - fills - fill_o, bandwidth)
            stall = max(0, transfer - compute) + latency
            found = (compute + stall, reads + writes, reads, stall)
            best = found if best is None else min(best, found)
    total, moved, reads, stall = best
    return [total, stall, reads, moved - reads]


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
    ],
)
def test_equals_plain_loops_over_all_tilings_and_orders(array, batch, count, side, channels):
    rows = random_rows(count, np.random.default_rng(batch), side=side, channels=channels)
    result = figures(simulate(layers_of(rows), array, batch=batch))
    for row, found in zip(rows, result.tolist(), strict=True):
        assert found == reference(row, array, batch), row


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
    assert found == [reference(row, array, 1)]


def many_layers(count=60, seed=0):
    return layers_of(random_rows(count, np.random.default_rng(seed), side=12, channels=48))


def test_a_layer_costs_the_same_in_any_company():
    layers = many_layers()
    crowd = layers.take(np.arange(2000) % len(layers))  # several chunks
    alone = [figures(simulate(layers.take(np.array([i])), TIGHT, batch=2)) for i in range(60)]
    together = figures(simulate(crowd, TIGHT, batch=2))
    assert np.array_equal(together, np.concatenate(alone)[np.arange(2000) % 60])


def test_no_layers_cost_nothing():
    assert figures(simulate(many_layers().take(slice(0)), SMALL, batch=1)).shape == (0, 4)


def test_height_and_width_are_alike():
    layers = many_layers()
    turned = replace(layers, out_height=layers.out_width, out_width=layers.out_height)
    assert np.array_equal(
        figures(simulate(layers, TIGHT, batch=1)), figures(simulate(turned, TIGHT, batch=1))
    )


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


def test_bandwidth_never_costs_cycles():
    layers = many_layers()
    slow, fast = (
        simulate(layers, replace(TIGHT, bandwidth_bits_per_cycle=bits), batch=1).cycles
        for bits in (48, 192)
    )
    assert (fast <= slow).all()
    assert (fast < slow).any()


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
    for key, latency_ms in PUBLISHED_DEPTHWISE.items():
        channels, side, kernel, stride, weights, activations = key
        together = min(max(16 * (8 // weights) * (8 // activations) // 2, 1), channels)
        out = (side - 1) // stride + 1
        layers = layers_of(
            [(kernel, out, out, stride, together, together, activations, weights, False)]
        )
        cycles = simulate(layers, EYERISS_LIKE, batch=1).cycles[0] * -(-channels // together)
        assert cycles / 500e3 == pytest.approx(latency_ms, rel=0.05)


def test_the_first_convolution_is_found_behind_a_pool():
    space = space_of(MobileNetOptions(pool=2), image=(3, 16, 12))
    rows = rows_of(space.network(smallest_picks(space.dims)))
    assert [name for name, row in rows.items() if row["im2col"]] == ["stem"]
    assert (rows["stem"]["out_height"], rows["stem"]["out_width"]) == (8, 6)


def test_a_candidate_costs_the_sum_of_its_rows(table):
    model: CostModel = BitFusionCost(SMALL)
    latency = model.cost(table)
    assert tuple(latency) == model.metrics == ("latency_ms",)
    assert latency["latency_ms"].shape == (200,)
    rows = BitFusionCost(SMALL).layer_latency_ms(table)
    assert rows.shape == table.op.shape
    np.testing.assert_allclose(latency["latency_ms"], rows.sum(axis=1), rtol=1e-12)


def test_rows_cost_what_the_simulation_says(table):
    work = systolic_table(table, SMALL)
    cycles = simulate(work.layers.take(slice(40)), SMALL, batch=3).cycles * work.repeats[:40]
    rows = BitFusionCost(SMALL, batch=3).layer_latency_ms(table)
    np.testing.assert_allclose(rows.ravel()[work.slots[:40]], cycles / 500e6 * 1e3)


def test_only_convolutions_and_linear_layers_cost(table):
    rows = BitFusionCost(SMALL).layer_latency_ms(table)
    costly = table.active & (table.macs > 0)
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
    assert np.array_equal(np.isnan(model.layer_latency_ms(wide)), unsupported)
    assert np.flatnonzero(np.isnan(model.cost(wide)["latency_ms"])).tolist() == [7]


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
    result = [field.name for field in fields(SystolicResult)]
    assert np.array_equal(frame[result], figures(simulate(layers, SMALL, batch=1)))
    np.testing.assert_allclose(frame["latency_ms"], frame["cycles"] / 5e5)
    moved = frame["dram_read_bits"] + frame["dram_write_bits"]
    np.testing.assert_allclose(frame["dram_energy_mj"], moved * 15e-12 * 1e3)


def test_floats_cost_as_integers_of_their_width(space):
    picks = draw_uniform(space, 20, np.random.default_rng(2))
    model = BitFusionCost(SMALL)
    for as_float, as_integer in (("fp8_e4m3", "int8"), ("fp4_e2m1", "int4")):
        floats, integers = (
            model.cost(space.network(with_format(space, picks, name, name)))["latency_ms"]
            for name in (as_float, as_integer)
        )
        assert np.array_equal(floats, integers)


def test_formats_matter_on_the_small_array(space):
    picks = largest_picks(space.dims)
    totals = [
        BitFusionCost(SMALL).cost(space.network(with_format(space, picks, name, name)))
        for name in ("int2", "int4", "int8")
    ]
    w2a2, w4a4, w8a8 = (each["latency_ms"].item() for each in totals)
    assert w2a2 < w4a4 < 0.8 * w8a8


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

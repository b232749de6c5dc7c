import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost.energy import ENERGY_PROCESSES, EnergyCost
from apqkit.errors import CostError
from apqkit.formats import FORMATS, format_code
from apqkit.testing import check_cost_model
from apqkit.types import OPS, CostModel, LayerTable

PROCESS = ENERGY_PROCESSES["45nm"]


def column(*values):
    return np.array([values])


def one_linear_layer(weights, inputs, *, channels=(1, 1)):
    """An image of one pixel and a linear layer."""
    codes = [format_code(name) for name in (inputs, inputs)]
    return LayerTable(
        names=("input", "linear"),
        op=column(OPS.index("input"), OPS.index("linear")),
        in_channels=column(channels[0], channels[0]),
        out_channels=column(channels[0], channels[1]),
        kernel=column(0, 1),
        stride=column(1, 1),
        groups=column(1, 1),
        in_height=column(1, 1),
        in_width=column(1, 1),
        activation=column(0, 0),
        weight_format=column(-1, format_code(weights)),
        activation_format=column(*codes),
        active=np.ones((1, 2), dtype=bool),
        producers=np.array([[[-1, -1], [0, -1]]]),
    )


def mac_pj(weights, inputs, **options):
    """One multiply-accumulate."""
    energy = EnergyCost(PROCESS, **options).layer_energy(one_linear_layer(weights, inputs))
    return energy.compute[0, 1] * 1e9


@pytest.mark.parametrize(
    ("name", "picojoules"),
    [
        ("int8", 0.2 + 0.1),
        ("bf16", 1.1 + 0.4),
        ("fp32", 3.7 + 0.9),
        ("int16", 0.002994791667 * 256 + 0.001041666667 * 16 + 0.1),
    ],
)
def test_published_multiply_accumulates(name, picojoules):
    """Horowitz, ISSCC 2014: product of 8 bits, sum of 32; fp16; fp32."""
    assert mac_pj(name, name) == pytest.approx(picojoules, rel=1e-6)


def test_products_of_32_bits_are_met():
    squared, plain = PROCESS.integer_multiply
    assert squared * 32**2 + plain * 32 == pytest.approx(3.1, rel=1e-6)
    assert PROCESS.dram_bit * 64 == 1300


def test_fewer_bits_follow_the_power_law_through_the_published_floats():
    assert mac_pj("fp8_e4m3", "fp8_e4m3") == pytest.approx(1.1 * 1.1 / 3.7 + 0.4)
    assert mac_pj("fp4_e2m1", "fp4_e2m1") == pytest.approx(1.1 * (1.1 / 3.7) ** 2 + 0.4)


def test_mixed_widths_by_either_convention():
    squared, plain = PROCESS.integer_multiply
    at_4, at_8 = (squared * bits**2 + plain * bits + 0.1 for bits in (4, 8))
    assert mac_pj("int2", "int8") == pytest.approx(at_4)
    assert mac_pj("int2", "int8", mixed_widths="max") == pytest.approx(at_8)
    assert mac_pj("int8", "fp8_e4m3") == mac_pj("fp8_e4m3", "fp8_e4m3")
    assert mac_pj("int8", "fp32", mixed_widths="max") == mac_pj("fp32", "fp32")
    assert mac_pj("int8", "fp32") == pytest.approx(1.1 + 0.4)  # sqrt(8 x 32) = 16 bits


@settings(deadline=None, max_examples=30)
@given(pair=st.tuples(*[st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16])] * 2))
def test_the_wider_operand_costs_at_least_their_mean(pair):
    names = [f"int{bits}" for bits in pair]
    geometric, widest = (mac_pj(*names, mixed_widths=each) for each in ("geometric", "max"))
    assert geometric <= widest * (1 + 1e-12)
    assert (geometric == pytest.approx(widest)) == (pair[0] == pair[1])


def test_traffic_by_hand():
    """4,096 channels to 1,024 in W4A8, images in batches of 2."""
    table = one_linear_layer("int4", "int8", channels=(4096, 1024))
    energy = EnergyCost(PROCESS, batch=2).layer_energy(table)
    image, weights, logits = 2 * 4096 * 8, 4096 * 1024 * 4, 2 * 1024 * 32

    def passing(bits):
        size = math.log2(max(bits, 65536))
        return math.ceil(bits / 64) * (0.02455 * size**2 - 0.2656 * size + 0.8661)

    assert energy.sram[0, 0] == pytest.approx(passing(image) * 1e-9)
    assert energy.sram[0, 1] == pytest.approx(
        (passing(image) + passing(weights) + passing(logits)) * 1e-9
    )
    assert energy.dram[0].tolist() == pytest.approx(
        [image * 20.3125e-9, (weights + logits) * 20.3125e-9]
    )
    elsewhere = EnergyCost(PROCESS, batch=2, weights_in="sram", activations_in="dram")
    assert elsewhere.layer_energy(table).dram[0].tolist() == pytest.approx(
        [image * 20.3125e-9, (image + logits) * 20.3125e-9]
    )


def layer_pj(layer, layers, batch):
    """Compute, SRAM and DRAM of one layer by value, weights in DRAM, activations in SRAM."""
    bits = {name: each.bits for name, each in FORMATS.items()}
    readers = [each for each in layers if layer.row in each.producers]
    pixels = layer.in_height * layer.in_width
    inputs = batch * layer.in_channels * pixels * bits[layer.activation_format]
    size = (layer.in_height, layer.in_width)
    if layer.op == "conv":
        size = tuple((each - 1) // layer.stride + 1 for each in size)
    elif layer.op == "pool":
        size = tuple((each - layer.kernel) // layer.stride + 1 for each in size)
    elif layer.op in ("linear", "global_pool"):
        size = (1, 1)
    written = layer.out_channels * size[0] * size[1]
    stored = bits[readers[0].activation_format] if readers else 32
    outputs, weights, products = batch * written * stored, 0, 0
    if layer.weight_format:
        count = layer.in_channels // layer.groups * layer.out_channels * layer.kernel**2
        weights = count * bits[layer.weight_format]
        products = batch * count * size[0] * size[1]
    window = {"add": 1, "pool": layer.kernel**2, "global_pool": pixels}.get(layer.op, 0)
    compute = products * (mac_pj(layer.weight_format, layer.activation_format) if weights else 0)
    compute += batch * window * written * add_pj(FORMATS[layer.activation_format])

    def passing(tensor):
        log = math.log2(max(tensor, 65536))
        return math.ceil(tensor / 64) * max(0.02455 * log**2 - 0.2656 * log + 0.8661, 0)

    sram = passing(weights) + len(layer.producers) * passing(inputs) + passing(outputs)
    outside = outputs if layer.op == "input" or not readers else 0
    return compute, sram, 20.3125 * (weights + outside)


def add_pj(number_format):
    if number_format.exponent_bits == 0:
        return 0.003125 * number_format.bits
    return 0.4 * (number_format.bits / 16) ** math.log2(0.9 / 0.4)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_part_equals_loops_over_the_layers(batch, tiny_networks):
    networks = tiny_networks.take(slice(0, 8))
    energy = EnergyCost(PROCESS, batch=batch).layer_energy(networks)
    expected = np.zeros((3, *networks.op.shape))
    for candidate in range(len(networks)):
        layers = networks.layers(candidate)
        for layer in layers:
            expected[:, candidate, layer.row] = layer_pj(layer, layers, batch)
    found = np.stack([energy.compute, energy.sram, energy.dram])
    np.testing.assert_allclose(found, expected * 1e-9, rtol=1e-12)
    np.testing.assert_allclose(energy.total, found.sum(axis=0))
    model = EnergyCost(PROCESS, batch=batch)
    terms = model.layer_terms(networks)
    assert np.array_equal(terms["energy_mj"], energy.total)
    sums = {name: values.sum(axis=1) for name, values in terms.items()}
    assert np.array_equal(model.totals(sums)["energy_mj"], model.cost(networks)["energy_mj"])


@pytest.mark.parametrize("mixed_widths", ["geometric", "max"])
def test_fewer_bits_never_take_more(mixed_widths, tiny_networks):
    model = EnergyCost(PROCESS, mixed_widths=mixed_widths)
    totals = [
        model.cost(tiny_networks.with_formats(name, name))["energy_mj"]
        for name in ("int2", "int4", "int8", "int16")
    ]
    assert (np.diff(totals, axis=0) > 0).all()


def test_a_batch_reads_weights_once(tiny_networks):
    one, four = (
        EnergyCost(PROCESS, batch=images).layer_energy(tiny_networks) for images in (1, 4)
    )
    np.testing.assert_allclose(four.compute, 4 * one.compute)
    assert (four.dram < 4 * one.dram)[tiny_networks.macs > 0].all()


def test_satisfies_the_conformance_check(tiny_networks):
    model: CostModel = EnergyCost(PROCESS)
    assert tuple(model.cost(tiny_networks)) == model.metrics == ("energy_mj",)
    check_cost_model(model, tiny_networks)
    assert np.isfinite(model.cost(tiny_networks.in_fp32())["energy_mj"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"mixed_widths": "min"}, "mixed_widths must be 'geometric' or 'max', got 'min'"),
        ({"weights_in": "flash"}, "weights_in must be 'sram' or 'dram', got 'flash'"),
        ({"activations_in": "l1"}, "activations_in must be 'sram' or 'dram', got 'l1'"),
    ],
)
def test_wrong_choices_are_answered_with_those_there_are(options, message):
    with pytest.raises(CostError) as caught:
        EnergyCost(PROCESS, **options)
    assert str(caught.value) == message

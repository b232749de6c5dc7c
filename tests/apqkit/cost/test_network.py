import math

import numpy as np
import pytest

from apqkit.cost.network import (
    BOPS_CONVENTIONS,
    BOPS_LAYERS,
    NetworkCost,
    bops,
    layer_bops,
    peak_activation_kib,
    size_kib,
)
from apqkit.errors import UnknownNameError
from apqkit.formats import FORMATS, format_code
from apqkit.spaces.base import largest_picks
from apqkit.testing import check_cost_model
from apqkit.types import ACTIVATIONS, OPS, CostModel, LayerTable

BITS = {name: each.bits for name, each in FORMATS.items()}


def column(*values):
    return np.array([values])


@pytest.fixture
def four_rows():
    """Image 3x4x4, convolution of stride 2 to 2 channels, global pool, 5 classes."""
    int8, int4 = format_code("int8"), format_code("int4")
    return LayerTable(
        names=("input", "conv", "global_pool", "classifier"),
        op=column(*(OPS.index(op) for op in ("input", "conv", "global_pool", "linear"))),
        in_channels=column(3, 3, 2, 2),
        out_channels=column(3, 2, 2, 5),
        kernel=column(0, 3, 0, 1),
        stride=column(1, 2, 1, 1),
        groups=column(1, 1, 1, 1),
        in_height=column(4, 4, 2, 1),
        in_width=column(4, 4, 2, 1),
        activation=column(0, ACTIVATIONS.index("relu"), 0, 0),
        weight_format=column(-1, int4, -1, int8),
        activation_format=column(format_code("fp32"), int8, int8, int8),
        active=np.ones((1, 4), dtype=bool),
        producers=np.array([[[-1, -1], [0, -1], [1, -1], [2, -1]]]),
    )


def test_figures_derived_by_hand(four_rows):
    # Weights: 54 in int4 and 10 in int8; 7 channels with a scale and a bias of 32 bits each.
    # MACs: 54 on 2x2 pixels and 10. Peak: image of 48 in int8 beside 8 outputs in int8.
    costs = NetworkCost().cost(four_rows)
    assert {metric: values.tolist() for metric, values in costs.items()} == {
        "size_kib": [(54 * 4 + 10 * 8 + 7 * 64) / 8192],
        "bops": [216 * 4 * 8 + 10 * 8 * 8],
        "peak_activation_kib": [(48 * 8 + 8 * 8) / 8192],
        "macs": [226],
        "params": [54 + 10 + 2 + 5],
    }


def test_fp32_needs_no_scales_and_counts_32_by_32(four_rows):
    costs = NetworkCost().cost(four_rows.in_fp32())
    assert costs["size_kib"].item() == 71 * 32 / 8192
    assert costs["bops"].item() == 226 * 32 * 32
    assert costs["peak_activation_kib"].item() == (48 + 8) * 32 / 8192


def pixels(layer):
    """Height and width of a layer's output."""
    size = (layer.in_height, layer.in_width)
    if layer.op == "conv":
        margin = layer.kernel // 2
        size = tuple((each + 2 * margin - layer.kernel) // layer.stride + 1 for each in size)
    elif layer.op == "pool":
        size = tuple((each - layer.kernel) // layer.stride + 1 for each in size)
    elif layer.op in ("linear", "global_pool"):
        size = (1, 1)
    return size


def weights_of(layer):
    if layer.weight_format is None:
        return 0
    return layer.in_channels // layer.groups * layer.out_channels * layer.kernel**2


def macs_of(layer):
    return weights_of(layer) * int(np.prod(pixels(layer)))


def size_bits(layers):
    total = 0
    for layer in layers:
        if layer.weight_format is not None:
            total += weights_of(layer) * BITS[layer.weight_format] + layer.out_channels * 32
            total += layer.out_channels * 32 * (layer.weight_format != "fp32")
    return total


def peak_bits(layers):
    """Runs the layers one by one with a book of the tensors that are held."""
    held, peak = {}, 0
    for position, layer in enumerate(layers):
        later = layers[position + 1 :]
        readers = [each for each in later if layer.row in each.producers]
        bits = BITS[readers[0].activation_format] if readers else 32
        held[layer.row] = layer.out_channels * int(np.prod(pixels(layer))) * bits
        peak = max(peak, sum(held.values()))
        held = {row: each for row, each in held.items() if any(row in r.producers for r in later)}
    return peak


def test_every_figure_equals_loops_over_the_layers(tiny_networks):
    costs = NetworkCost().cost(tiny_networks)
    for candidate in range(len(tiny_networks)):
        layers = tiny_networks.layers(candidate)
        bit_operations = sum(
            macs_of(each) * BITS[each.weight_format] * BITS[each.activation_format]
            for each in layers
            if each.weight_format is not None
        )
        expected = {
            "size_kib": size_bits(layers) / 8192,
            "bops": bit_operations,
            "peak_activation_kib": peak_bits(layers) / 8192,
            "macs": sum(map(macs_of, layers)),
            "params": sum(weights_of(e) + e.out_channels * bool(weights_of(e)) for e in layers),
        }
        assert {metric: values[candidate] for metric, values in costs.items()} == expected


def test_a_residual_is_held_until_it_is_added(tiny_space):
    table = tiny_space.network(largest_picks(tiny_space.dims)).with_formats("int8", "int8")
    row = table.names.index("s0.b1.add")
    producers = table.producers.copy()
    producers[0, row] = [producers[0, row, 1], -1]  # nobody reads the shortcut at the add
    cut = LayerTable(**{**vars_of(table), "producers": producers})
    whole, shorter = (peak_activation_kib(each).item() for each in (table, cut))
    # At the depthwise row: shortcut, input and output of 8, 32 and 32 channels on 7x5 pixels.
    assert whole == (8 + 32 + 32) * 35 * 8 / 8192
    # Without the shortcut the next stage holds most: 48 channels on 7x5 and on 4x3 pixels.
    assert shorter == (48 * 35 + 48 * 12) * 8 / 8192


def vars_of(table):
    return {name: getattr(table, name) for name in LayerTable.__dataclass_fields__}


def test_bit_operations_add_up_over_rows(tiny_networks):
    rows = layer_bops(tiny_networks)
    assert rows.shape == tiny_networks.op.shape
    assert (rows[~tiny_networks.active] == 0).all()
    assert bops(tiny_networks).tolist() == rows.sum(axis=1).tolist()


@pytest.mark.parametrize(("narrow", "wide"), [("int4", "int8"), ("fp4_e2m1", "fp8_e4m3")])
def test_half_the_bits_quarter_the_bit_operations(tiny_networks, narrow, wide):
    few, many = (bops(tiny_networks.with_formats(name, name)) for name in (narrow, wide))
    assert (4 * few == many).all()


def test_integers_and_floats_of_one_width_take_the_same_room(tiny_networks):
    integers, floats = (tiny_networks.with_formats(n, n) for n in ("int8", "fp8_e4m3"))
    assert np.array_equal(size_kib(integers), size_kib(floats))
    assert np.array_equal(peak_activation_kib(integers), peak_activation_kib(floats))


def test_satisfies_the_conformance_check(tiny_networks):
    model: CostModel = NetworkCost()
    assert tuple(model.cost(tiny_networks)) == model.metrics
    check_cost_model(model, tiny_networks)


def resnet18(*, projects_first_stage):
    """ResNet-18 at 224 x 224 as a table of its convolutions and its classifier, in fp32.

    Rows only: kernel, stride, channels in and out, side of the input.
    """
    rows = [(7, 2, 3, 64, 224)]
    if projects_first_stage:
        rows.append((1, 1, 64, 64, 56))
    rows += [(3, 1, 64, 64, 56)] * 4
    for narrow, wide, side in ((64, 128, 56), (128, 256, 28), (256, 512, 14)):
        rows += [(3, 2, narrow, wide, side), (1, 2, narrow, wide, side)]
        rows += [(3, 1, wide, wide, side // 2)] * 3
    rows.append((1, 1, 512, 1000, 1))
    kernel, stride, inputs, outputs, side = (column(*each) for each in zip(*rows, strict=True))
    ops = [OPS.index("conv")] * (len(rows) - 1) + [OPS.index("linear")]
    fp32 = np.full((1, len(rows)), format_code("fp32"))
    return LayerTable(
        names=tuple(f"row{row}" for row in range(len(rows))),
        op=column(*ops),
        in_channels=inputs,
        out_channels=outputs,
        kernel=kernel,
        stride=stride,
        groups=np.ones_like(fp32),
        in_height=side,
        in_width=side,
        activation=np.zeros_like(fp32),
        weight_format=fp32,
        activation_format=fp32,
        active=np.ones(fp32.shape, dtype=bool),
        producers=np.full((*fp32.shape, 2), -1),
    )


def test_published_bit_operations_of_resnet18():
    """HAWQ-V3 counts fp32 as 32 x 32; FLIQS bf16 as 16 x 16, with a projection in every stage."""
    plain = resnet18(projects_first_stage=False)
    assert plain.macs.sum() == 1_814_073_344
    assert bops(plain).item() / 1e9 == pytest.approx(1858, abs=0.5)
    projected = resnet18(projects_first_stage=True).with_formats("bf16", "bf16")
    assert bops(projected).item() / 1e9 == pytest.approx(467.7, abs=0.05)
    # Without the projection, which most implementations lack, it would be 464.4.
    assert bops(plain.with_formats("bf16", "bf16")).item() / 1e9 == pytest.approx(464.4, abs=0.05)


def test_first_and_last_layers_can_be_left_out():
    table = resnet18(projects_first_stage=False)
    inner = bops(table, layers="inner").item()
    outer = (7 * 7 * 3 * 64 * 112 * 112 + 512 * 1000) * 32 * 32
    assert inner == bops(table).item() - outer
    assert bops(table, convention="baskin", layers="inner") < bops(table, convention="baskin")


def test_every_convention_equals_loops_over_the_layers(tiny_networks):
    for candidate in range(len(tiny_networks)):
        layers = [each for each in tiny_networks.layers(candidate) if each.weight_format]
        expected = {
            (convention, counted): sum(
                macs_of(each) * bit_operations(each, convention) for each in kept
            )
            for counted, kept in (("all", layers), ("inner", layers[1:-1]))
            for convention in BOPS_CONVENTIONS
        }
        assert {counted for _, counted in expected} == set(BOPS_LAYERS)
        one = tiny_networks.take(slice(candidate, candidate + 1))
        for (convention, counted), value in expected.items():
            found = bops(one, convention=convention, layers=counted).item()
            assert found == pytest.approx(value, rel=1e-12)


def bit_operations(layer, convention):
    """Of one multiply-accumulate."""
    w, a = BITS[layer.weight_format], BITS[layer.activation_format]
    if convention == "product":
        return w * a
    return w * a + w + a + math.log2(layer.kernel**2 * layer.in_channels / layer.groups)


def test_the_metric_is_the_product_over_all_layers(tiny_networks):
    expected = bops(tiny_networks, convention="product", layers="all")
    assert np.array_equal(NetworkCost().cost(tiny_networks)["bops"], expected)
    wider = bops(tiny_networks, convention="baskin")
    assert (wider > expected).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"convention": "products"},
            "no convention of bit operations named 'products' (did you mean 'product'?); "
            "there are: baskin, product",
        ),
        (
            {"layers": "iner"},
            "no choice of layers for bit operations named 'iner' (did you mean 'inner'?); "
            "there are: all, inner",
        ),
    ],
)
def test_unknown_conventions_are_answered_with_those_there_are(four_rows, names, message):
    with pytest.raises(UnknownNameError) as caught:
        bops(four_rows, **names)
    assert str(caught.value) == message

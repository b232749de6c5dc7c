from dataclasses import replace

import numpy as np
import pytest
import torch

from apqkit.elastic.network import LayerNetwork, Step, make_plan, run_plan, unit_name
from apqkit.quant.layers import QuantLayer
from apqkit.spaces.base import smallest_picks
from apqkit.spaces.draws import draw_uniform
from apqkit.types import Layer

PLAIN = Layer(
    row=0,
    name="input",
    op="input",
    in_channels=4,
    out_channels=4,
    kernel=0,
    stride=1,
    groups=1,
    in_height=4,
    in_width=4,
    activation="none",
    weight_format=None,
    activation_format="fp32",
    signed_input=True,
    producers=(),
)


def rows(*specs):
    """Layers from (op, producers, format); convolutions have weights."""
    layers = [PLAIN]
    for row, (op, producers, number_format) in enumerate(specs, start=1):
        layers.append(
            replace(
                PLAIN,
                row=row,
                name=f"r{row}.{op}",
                op=op,
                producers=producers,
                activation_format=number_format,
                weight_format="int8" if op in ("conv", "linear") else None,
            )
        )
    return layers


def test_names_of_rows_become_names_of_modules():
    assert unit_name("s0.b1.expand") == "s0_b1_expand"


def test_a_chain_quantizes_and_stores_every_tensor_once():
    plan = make_plan(rows(("conv", (0,), "int4"), ("conv", (1,), "int8")))
    assert plan == (
        Step("r1_conv", 1, (0,), (True,), (True,), (0,)),
        Step("r2_conv", 2, (1,), (True,), (True,), (1,)),
    )


def test_an_add_takes_what_is_stored_in_its_format_as_it_is():
    layers = rows(("conv", (0,), "int8"), ("conv", (1,), "int4"), ("add", (1, 2), "int4"))
    add = make_plan(layers)[-1]
    assert add.quantizes == (False, True)
    assert add.stores == (False, True)
    assert sorted(add.frees) == [1, 2]


def test_an_add_of_another_format_quantizes_what_is_stored():
    layers = rows(("conv", (0,), "int8"), ("conv", (1,), "int4"), ("add", (1, 2), "fp8_e4m3"))
    add = make_plan(layers)[-1]
    assert add.quantizes == (True, True)
    assert add.stores == (False, True)


def test_a_second_reader_with_weights_quantizes_again():
    layers = rows(("conv", (0,), "int8"), ("pool", (1,), "int4"), ("conv", (1,), "int4"))
    pool, conv = make_plan(layers)[1:]
    assert (pool.quantizes, pool.stores, pool.frees) == ((True,), (True,), ())
    assert (conv.quantizes, conv.stores, conv.frees) == ((True,), (False,), (1,))


def test_a_tensor_added_to_itself_is_quantized_once():
    (_, add) = make_plan(rows(("conv", (0,), "int8"), ("add", (1, 1), "int4")))
    assert (add.quantizes, add.stores, add.frees) == ((True, False), (True, False), (1,))


class Recorder(QuantLayer):
    """Notes what it reads; its quantizer marks a value with the unit's name."""

    def __init__(self, name, log):
        super().__init__([])
        self.name, self.log = name, log

    def quantize_input(self, x, index=0):
        return f"{self.name}{index}({x})"

    def compute(self, *inputs):
        self.log.append((self.name, inputs))
        return f"{self.name}.out"


def readings(layers):
    log = []
    units = {unit_name(each.name): Recorder(each.name, log) for each in layers[1:]}
    output = run_plan(make_plan(layers), units, "images")
    return dict(log), output


def test_readers_see_what_the_first_reader_stored():
    layers = rows(
        ("conv", (0,), "int8"),
        ("conv", (1,), "int4"),
        ("add", (1, 2), "int4"),
        ("conv", (1,), "int8"),
        ("add", (3, 4), "fp32"),
    )
    read, output = readings(layers)
    assert read["r1.conv"] == ("r1.conv0(images)",)
    assert read["r2.conv"] == ("r2.conv0(r1.conv.out)",)
    assert read["r3.add"] == ("r2.conv0(r1.conv.out)", "r3.add1(r2.conv.out)")
    assert read["r4.conv"] == ("r4.conv0(r2.conv0(r1.conv.out))",)
    assert read["r5.add"] == ("r5.add0(r3.add.out)", "r5.add1(r4.conv.out)")
    assert output == "r5.add.out"


def expected_readings(layers):
    """The rule in words: the first reader stores; others take it as it is or quantize it again."""
    first_reader, read = {}, {}
    for layer in layers[1:]:
        seen = []
        for index, row in enumerate(layer.producers):
            raw = "images" if row == 0 else f"{layers[row].name}.out"
            own = f"{layer.name}{index}"
            if row not in first_reader:
                first_reader[row] = (layer.activation_format, f"{own}({raw})")
                seen.append(f"{own}({raw})")
                continue
            stored_format, stored = first_reader[row]
            as_is = layer.weight_format is None and stored_format == layer.activation_format
            seen.append(stored if as_is else f"{own}({stored})")
        read[layer.name] = tuple(seen)
    return read


def test_any_network_reads_by_the_rule():
    rng = np.random.default_rng(0)
    for _ in range(60):
        specs = []
        for row in range(1, int(rng.integers(3, 12))):
            op = str(rng.choice(["conv", "add", "pool"]))
            producers = tuple(int(each) for each in rng.integers(0, row, 2 if op == "add" else 1))
            specs.append((op, producers, str(rng.choice(["int4", "int8", "fp32"]))))
        layers = rows(*specs)
        assert readings(layers)[0] == expected_readings(layers)


def test_no_tensor_outlives_its_last_reader():
    rng = np.random.default_rng(1)
    for _ in range(30):
        specs = [("conv", (int(rng.integers(0, row)),), "int8") for row in range(1, 9)]
        layers = rows(*specs)
        plan = make_plan(layers)
        freed = {row: step.row for step in plan for row in step.frees}
        last = {row: each.row for each in layers[1:] for row in each.producers}
        assert freed == last


def test_a_candidate_s_images_are_left_alone(space, supernet, picks, images):
    before = images.clone()
    for index in range(len(picks)):
        supernet.select(space.network(picks).layers(index))
        supernet(images)
    assert torch.equal(images, before)


def test_a_network_holds_one_module_a_row(space, supernet):
    layers = space.network(draw_uniform(space, 1, np.random.default_rng(3))).layers()
    network = supernet.extract(layers)
    assert isinstance(network, LayerNetwork)
    assert list(network.units) == [unit_name(each.name) for each in layers[1:]]
    assert network.layers == tuple(layers)


def test_a_plain_chain_equals_its_modules_in_a_row(space, supernet, images):
    chain = space.network(smallest_picks(space.dims)).layers()
    assert all(each.op != "add" for each in chain)
    network = supernet.extract(chain).train()
    x = images
    for unit in network.units.values():
        x = unit(x)
    assert torch.equal(network(images), x)


@pytest.mark.parametrize("index", range(4))
def test_residuals_equal_the_sum_written_out(space, supernet, picks, images, index):
    """Every row recomputed from its producers alone, nothing stored or freed."""
    layers = space.network(picks).layers(index)
    network = supernet.extract(layers).train()
    stored, raw = {}, {0: images}
    for layer in layers[1:]:
        unit = network.units[unit_name(layer.name)]
        inputs = []
        for number, row in enumerate(layer.producers):
            if row not in stored:
                stored[row] = (layer.activation_format, unit.quantize_input(raw[row], number))
                inputs.append(stored[row][1])
            elif layer.op == "add" and stored[row][0] == layer.activation_format:
                inputs.append(stored[row][1])
            else:
                inputs.append(unit.quantize_input(stored[row][1], number))
        raw[layer.row] = unit.compute(*inputs)
    assert torch.equal(network(images), raw[layers[-1].row])

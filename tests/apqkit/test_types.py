import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apqkit.config import SpaceConfig
from apqkit.errors import FormatError
from apqkit.formats import FORMATS, format_code, format_of_code
from apqkit.spaces.base import largest_picks
from apqkit.spaces.draws import draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace
from apqkit.types import ACTIVATIONS, OPS, Dim, Layer, LayerTable, Sample, SilentProgress

COLUMNS = [field.name for field in fields(LayerTable) if field.name not in ("names", "producers")]
INT8, FP32 = format_code("int8"), format_code("fp32")


def row(op, *producers, **values):
    """One active row by value; convolutions and linear layers get int8 weights."""
    weighted = op in ("conv", "linear")
    kernel = int(weighted)
    return {
        "op": OPS.index(op), "in_channels": 1, "out_channels": 1, "kernel": kernel, "stride": 1,
        "groups": 1, "in_height": 1, "in_width": 1, "activation": 0,
        "weight_format": INT8 if weighted else -1, "activation_format": INT8, "active": True,
        "producers": (*producers, -1, -1)[:2],
        **({"activation": ACTIVATIONS.index(values.pop("after"))} if "after" in values else {}),
        **values,
    }  # fmt: skip


OFF = dict.fromkeys(COLUMNS, 0) | {
    "weight_format": -1,
    "activation_format": -1,
    "active": False,
    "producers": (-1, -1),
}


def table_of(*candidates):
    """Networks with rows r0, r1, ..., one list of rows a candidate."""
    columns = {
        name: np.array([[each[name] for each in rows] for rows in candidates])
        for name in (*COLUMNS, "producers")
    }
    return LayerTable(names=tuple(f"r{i}" for i in range(len(candidates[0]))), **columns)


@pytest.fixture(scope="module")
def space():
    config = SpaceConfig(
        weight_formats=("int2", "int4", "fp8_e4m3"), activation_formats=("int4", "int8")
    )
    return MobileNetSpace(config, MobileNetOptions(pool=2), (3, 20, 14), 10)


@pytest.fixture(scope="module")
def table(space):
    return space.network(draw_uniform(space, 40, np.random.default_rng(0)))


def counted(module, inputs):
    """The output of a module, and its multiply-accumulates as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        output = module(inputs)
    return output, counter.get_total_flops() // 2


convolutions = st.tuples(
    st.sampled_from([1, 3, 5, 7]),  # kernel
    st.integers(1, 4),  # stride
    st.integers(1, 3),  # groups
    st.integers(1, 4),  # input channels a group
    st.integers(1, 4),  # output channels a group
    st.integers(1, 9),  # height
    st.integers(1, 9),  # width
)


@settings(max_examples=15, deadline=None)
@given(shapes=st.lists(convolutions, min_size=1, max_size=6))
def test_convolutions_are_counted_as_torch_runs_them(shapes):
    rows = []
    for kernel, stride, groups, inputs, outputs, height, width in shapes:
        rows.append(
            row(
                "conv", kernel=kernel, stride=stride, groups=groups, in_channels=groups * inputs,
                out_channels=groups * outputs, in_height=height, in_width=width,
            )
        )  # fmt: skip
    table = table_of(*[[each] for each in rows])  # one candidate a shape
    for index, each in enumerate(rows):
        module = nn.Conv2d(
            each["in_channels"], each["out_channels"], each["kernel"], each["stride"],
            each["kernel"] // 2, groups=each["groups"], bias=False,
        )  # fmt: skip
        images = torch.zeros(1, each["in_channels"], each["in_height"], each["in_width"])
        output, macs = counted(module, images)
        assert (table.out_height[index, 0], table.out_width[index, 0]) == output.shape[2:]
        assert table.weights[index, 0] == module.weight.numel()
        assert table.macs[index, 0] == macs


def test_a_depthwise_convolution_has_one_filter_a_channel():
    depthwise = row("conv", kernel=5, groups=12, in_channels=12, out_channels=12, in_height=6)
    table = table_of([depthwise])
    assert table.weights.tolist() == [[12 * 25]]
    assert table.macs.tolist() == [[12 * 25 * 6]]


@pytest.mark.parametrize(("inputs", "outputs"), [(48, 10), (1, 1), (7, 3)])
def test_linear_layers_are_counted_as_torch_runs_them(inputs, outputs):
    table = table_of([row("linear", in_channels=inputs, out_channels=outputs)])
    module = nn.Linear(inputs, outputs)
    _, macs = counted(module, torch.zeros(1, inputs))
    assert table.macs.tolist() == [[macs]]
    assert table.weights.tolist() == [[module.weight.numel()]]
    assert (table.out_height.tolist(), table.out_width.tolist()) == ([[1]], [[1]])


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 4), size=st.tuples(*[st.integers(4, 11)] * 2)
)
def test_pools_shrink_as_in_torch_and_hold_no_weights(kernel, stride, size):
    table = table_of([row("pool", kernel=kernel, stride=stride, in_height=size[0],
                          in_width=size[1], in_channels=3, out_channels=3)])  # fmt: skip
    output = F.avg_pool2d(torch.zeros(1, 3, *size), kernel, stride)
    assert (table.out_height[0, 0], table.out_width[0, 0]) == output.shape[2:]
    assert (table.weights[0, 0], table.macs[0, 0]) == (0, 0)


def test_a_global_pool_leaves_one_pixel_and_an_add_all():
    table = table_of(
        [row("global_pool", in_height=5, in_width=3), row("add", in_height=5, in_width=3)]
    )
    assert (table.out_height.tolist(), table.out_width.tolist()) == ([[1, 5]], [[1, 3]])
    assert not table.weights.any()
    assert not table.macs.any()


def test_inactive_rows_count_nothing():
    table = table_of([row("input", in_height=4, in_width=4), OFF, OFF])
    for column in (table.out_height, table.out_width, table.weights, table.macs):
        assert column[0, 1:].tolist() == [0, 0]
    assert not table.signed_input.any()


def test_sizes_run_through_a_whole_network(table):
    for candidate in range(len(table)):
        sizes = {}
        for layer in table.layers(candidate):
            read = {sizes[producer] for producer in layer.producers}
            if layer.op != "input":
                assert read == {(layer.in_channels, layer.in_height, layer.in_width)}
            at = (candidate, layer.row)
            sizes[layer.row] = (layer.out_channels, table.out_height[at], table.out_width[at])
        assert list(sizes.values())[-1] == (10, 1, 1)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            [row("input"), row("conv", 0, after="relu"), row("conv", 1), row("conv", 2)],
            [False, False, False, True],
            id="images and what follows a ReLU cannot be negative, a plain convolution can",
        ),
        pytest.param(
            [row("input"), row("pool", 0), row("conv", 1)],
            [False, False, False],
            id="a pool of images",
        ),
        pytest.param(
            [row("input"), row("conv", 0), row("pool", 1), row("global_pool", 2),
             row("linear", 3)],
            [False, False, True, True, True],
            id="pools pass signs on",
        ),
        pytest.param(
            [row("input"), row("conv", 0, after="relu"), row("global_pool", 1), row("linear", 2)],
            [False, False, False, False],
            id="a pool of a ReLU",
        ),
        pytest.param(
            [row("input"), row("conv", 0, after="relu"), row("conv", 1), row("add", 1, 2),
             row("conv", 3)],
            [False, False, False, True, True],
            id="an add with one signed input",
        ),
        pytest.param(
            [row("input"), row("conv", 0), row("conv", 1, after="relu"), row("add", 1, 2)],
            [False, False, True, True],
            id="the first input counts as much as the second",
        ),
        pytest.param(
            [row("input"), row("conv", 0), row("add", 1, 1, after="relu"), row("conv", 2)],
            [False, False, True, False],
            id="an add before a ReLU",
        ),
        pytest.param(
            [row("input"), row("linear", 0, after="relu"), row("linear", 1), row("linear", 2)],
            [False, False, False, True],
            id="linear layers",
        ),
        pytest.param(
            [row("input"), row("conv", 0), OFF, row("conv", 0, after="relu"), row("conv", 3),
             row("conv", 4)],
            [False, False, False, False, False, True],
            id="a row without producers after one that can be negative",
        ),
    ],
)  # fmt: skip
def test_signs_of_inputs(rows, expected):
    assert table_of(rows).signed_input.tolist() == [expected]


def cannot_be_negative(rows, index):
    each = rows[index]
    op = OPS[each["op"]]
    if op == "input":
        return True
    if op in ("pool", "global_pool"):
        return all(cannot_be_negative(rows, p) for p in each["producers"] if p >= 0)
    return ACTIVATIONS[each["activation"]] == "relu"


@st.composite
def networks(draw, length):
    rows = [row("input")]
    for index in range(1, length):
        if draw(st.integers(0, 4)) == 0:
            rows.append(OFF)
            continue
        earlier = [i for i in range(index) if rows[i]["active"]]
        op = draw(st.sampled_from(OPS[1:]))
        count = 2 if op == "add" else 1
        producers = [draw(st.sampled_from(earlier)) for _ in range(count)]
        after = "none" if "pool" in op else draw(st.sampled_from(ACTIVATIONS))
        rows.append(row(op, *producers, after=after))
    return rows


@settings(max_examples=40, deadline=None)
@given(
    candidates=st.integers(2, 7).flatmap(lambda n: st.lists(networks(n), min_size=1, max_size=5))
)
def test_signs_equal_those_found_by_walking_back(candidates):
    expected = [
        [
            each["active"]
            and not all(cannot_be_negative(rows, p) for p in each["producers"] if p >= 0)
            for each in rows
        ]
        for rows in candidates
    ]
    assert table_of(*candidates).signed_input.tolist() == expected


def test_what_is_said_to_be_unsigned_is_never_negative(space):
    """The network itself, with random weights, is the witness."""
    picks = largest_picks(space.dims)
    layers = space.network(picks).in_fp32().layers()
    network = space.supernet(0).train().extract(layers)
    lowest = {}

    def keep(name):
        def hook(module, inputs):
            lowest[name] = min(float(each.detach().min()) for each in inputs)

        return hook

    for layer in layers[1:]:
        quantizers = network.units[layer.name.replace(".", "_")].inputs
        for quantizer in quantizers:
            quantizer.register_forward_pre_hook(keep(layer.name))
    network.train()(torch.rand(8, 3, 20, 14))
    assert lowest
    for layer in layers[1:]:
        if layer.name in lowest:
            assert (lowest[layer.name] < 0) == layer.signed_input, layer.name


def test_one_format_throughout_spares_the_input_and_what_has_none(table):
    changed = table.with_formats("int3", "int5")
    is_input = table.active & (table.op == OPS.index("input"))
    weighted = table.weight_format >= 0
    assert (changed.weight_format[weighted] == format_code("int3")).all()
    assert (changed.weight_format[~weighted] == -1).all()
    assert (changed.activation_format[table.active & ~is_input] == format_code("int5")).all()
    assert (changed.activation_format[is_input] == FP32).all()
    assert (changed.activation_format[~table.active] == -1).all()
    assert_equal_but(changed, table, "weight_format", "activation_format")


def assert_equal_but(one, other, *columns):
    for name in (*COLUMNS, "producers"):
        if name not in columns:
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.names == other.names


@pytest.mark.parametrize(
    ("weights", "activations", "changed"),
    [
        ("int3", None, ("weight_format",)),
        (None, "int3", ("activation_format",)),
        (None, None, ()),
    ],
)
def test_formats_that_are_not_named_stay(table, weights, activations, changed):
    found = table.with_formats(weights, activations)
    assert_equal_but(found, table, *changed)
    for name in changed:
        assert not np.array_equal(getattr(found, name), getattr(table, name))


def test_fp32_throughout_is_the_float_network(table):
    plain = table.in_fp32()
    assert set(plain.weight_format.ravel().tolist()) == {-1, FP32}
    assert set(plain.activation_format.ravel().tolist()) == {-1, FP32}
    assert np.array_equal(plain.macs, table.macs)


def test_a_changed_table_is_counted_anew(table):
    assert table.macs.any()
    bare = replace(table, weight_format=np.full_like(table.weight_format, -1))
    assert not bare.macs.any()


@pytest.mark.parametrize(
    "chosen",
    [slice(3, 9, 2), np.array([5, 0, 5]), np.array([], dtype=np.int64), np.arange(40) % 7 == 0],
    ids=["slice", "index", "nothing", "mask"],
)
def test_take_returns_the_candidates_chosen(table, chosen):
    taken = table.take(chosen)
    assert len(taken) == len(np.arange(40)[chosen])
    assert taken.names == table.names
    for name in (*COLUMNS, "producers", "macs", "signed_input"):
        assert np.array_equal(getattr(taken, name), getattr(table, name)[chosen]), name


def test_layers_are_the_active_rows_by_value():
    table = table_of(
        [OFF, OFF],
        [
            row("input", in_channels=3, out_channels=3, in_height=9, in_width=7,
                activation_format=FP32),
            row("conv", 0, in_channels=3, out_channels=8, kernel=3, stride=2, in_height=9,
                in_width=7, after="relu", weight_format=format_code("fp4_e2m1")),
        ],
    )  # fmt: skip
    assert len(table) == 2
    assert table.layers() == []
    assert table.layers(1) == [
        Layer(
            row=0, name="r0", op="input", in_channels=3, out_channels=3, kernel=0, stride=1,
            groups=1, in_height=9, in_width=7, activation="none", weight_format=None,
            activation_format="fp32", signed_input=False, producers=(),
        ),
        Layer(
            row=1, name="r1", op="conv", in_channels=3, out_channels=8, kernel=3, stride=2,
            groups=1, in_height=9, in_width=7, activation="relu", weight_format="fp4_e2m1",
            activation_format="int8", signed_input=False, producers=(0,),
        ),
    ]  # fmt: skip


def test_layers_hold_plain_values_and_both_producers():
    rows = [row("input"), row("conv", 0), OFF, row("add", 1, 0)]
    layer = table_of(rows).layers()[-1]
    assert (layer.row, layer.producers, layer.signed_input) == (3, (1, 0), True)
    for field in fields(Layer):
        assert type(getattr(layer, field.name)) in (int, str, bool, tuple, type(None))


def test_an_active_row_without_a_format_is_refused():
    table = table_of([row("input", activation_format=-1)])
    with pytest.raises(FormatError) as caught:
        table.layers()
    assert str(caught.value) == f"a format's code must be 0 to {len(FORMATS) - 1}, got -1"


def test_every_layer_of_a_space_reads_back_into_its_row(table):
    for candidate in (0, 17):
        for layer in table.layers(candidate):
            at = (candidate, layer.row)
            assert table.active[at]
            assert table.names[layer.row] == layer.name
            assert OPS[table.op[at]] == layer.op
            assert format_of_code(table.activation_format[at]).name == layer.activation_format
            assert bool(table.signed_input[at]) is layer.signed_input


def test_a_sample_is_plain_values():
    sample = Sample("fp32", {"depth.s0": 1}, 0.5, {"plain": 0.6}, {"stem": "int8 x uint8"}, "8",
                    "stratified", 0, 0.1)  # fmt: skip
    assert sample.as_json() == {
        "kind": "fp32", "picks": {"depth.s0": 1}, "accuracy": 0.5, "parts": {"plain": 0.6},
        "formats": {"stem": "int8 x uint8"}, "correct": "8", "origin": "stratified", "seed": 0,
        "seconds": 0.1,
    }  # fmt: skip
    assert Sample(**sample.as_json()) == sample


def test_silent_progress_says_nothing(capfd):
    progress = SilentProgress()
    with progress.task("work", 3) as advance:
        advance(2)
        progress.note("a line")
    assert capfd.readouterr() == ("", "")


def test_a_dim_cannot_be_changed():
    dim = Dim("depth.s0", (1, 2), "arch")
    with pytest.raises(AttributeError):
        dim.name = "x"


def test_the_low_rooms_need_no_torch():
    modules = "types, formats, config, run, front, registry, progress, listing, cli"
    code = f"import sys\nfrom apqkit import {modules}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

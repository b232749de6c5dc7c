from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from apqkit.config import SpaceConfig
from apqkit.cost.bench_graph import block_probe
from apqkit.cost.kernels import (
    EDGES,
    ONNX_RUNTIME,
    OPENVINO,
    conversion_keys,
    kernel_table,
)
from apqkit.cost.keys import KEY_COLUMNS, NO_FORMAT, column, key_of, named_key
from apqkit.cost.measure import probed_block
from apqkit.elastic.network import make_plan
from apqkit.export import export_onnx
from apqkit.formats import FORMATS, format_code
from apqkit.spaces.base import largest_picks
from apqkit.spaces.draws import draw_hierarchical, draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions
from apqkit.training.evaluate import calibrated_subnet
from apqkit.types import ACTIVATIONS, OPS

SIZE = (14, 10)
INT8, FP32 = format_code("int8"), format_code("fp32")
RUNTIME_OPS = {
    "quantize": "QuantizeLinear", "dequantize": "DequantizeLinear", "requantize": "Clip",
    ("layout_in", "int8"): "Transpose", ("layout_out", "int8"): "Transpose",
    ("layout_in", "fp32"): "ReorderInput", ("layout_out", "fp32"): "ReorderOutput",
}  # fmt: skip


def space_of(channels, pool, width):
    """Residuals, strides, int8, fp32 and a narrow format in every slot."""
    stages = (StageOptions(width=width, depth=2), StageOptions(width=24, depth=3, stride=2))
    options = MobileNetOptions(
        pool=pool, stem=width, stages=stages, hidden_choices=3, head=32,
        depthwise_formats=("int8", "fp32"),
    )  # fmt: skip
    config = SpaceConfig(
        weight_formats=("int8", "fp32"),
        activation_formats=("int4", "int8", "fp32"),
        first_last_formats=("int8", "fp32"),
    )
    return MobileNetSpace(config, options, (channels, *SIZE), 5)


@pytest.fixture(scope="module")
def block():
    return probed_block(block_probe().SerializeToString())


@pytest.fixture(scope="module")
def space():
    return space_of(channels=3, pool=1, width=16)


@pytest.fixture(scope="module")
def largest(space):
    return space.network(largest_picks(space.dims))


@pytest.fixture(scope="module")
def networks(space):
    return space.network(draw_uniform(space, 60, np.random.default_rng(0)))


def optimised_ops(model, shape, folder):
    """How often each op is in the graph that ONNX Runtime makes of a network."""
    export_onnx(model, shape, folder / "m.onnx", {})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "o.onnx")
    onnxruntime.InferenceSession(
        str(folder / "m.onnx"), options, providers=["CPUExecutionProvider"]
    )
    found = Counter()
    for node in onnx.load(folder / "o.onnx").graph.node:
        # Exports keep images of one channel apart by a clip of fp32 numbers: no conversion.
        if node.op_type != "Clip" or not node.output[0].endswith(".apart"):
            found["Conv" if node.op_type == "FusedConv" else node.op_type] += 1
    return found


def predicted_ops(kernels, candidate, active):
    """What the same graph should hold."""
    found = Counter()
    for (op, source, _), times in zip(
        EDGES, kernels.conversions[candidate].sum(axis=0), strict=True
    ):
        found[RUNTIME_OPS.get(op) or RUNTIME_OPS[op, source]] += int(times)
    names = {"conv": ("QLinearConv", "Conv"), "add": ("QLinearAdd", "Add"),
             "linear": ("QGemm", "Gemm"), "pool": ("QLinearAveragePool", "AveragePool"),
             "global_pool": (None, "GlobalAveragePool")}  # fmt: skip
    for key in kernels.keys[candidate][active & ~kernels.inside[candidate]]:
        named = dict(zip(KEY_COLUMNS, named_key(key), strict=True))
        if named["op"] != "input":
            found[names[named["op"]][named["activation_format"] == "fp32"]] += 1
    return found


def checked(space, table, block, folder):
    """Compares networks with what the runtime makes of them; returns what was seen."""
    shape = (int(table.in_channels[0, 0]), *SIZE)
    kernels = kernel_table(table, block=block)
    supernet = space.supernet(0).train()
    images = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    seen, moved = Counter(), 0
    for candidate in range(len(table)):
        layers = table.take(slice(candidate, candidate + 1)).layers()
        found = optimised_ops(calibrated_subnet(supernet, layers, images), shape, folder)
        expected = predicted_ops(kernels, candidate, table.active[candidate])
        # The runtime moves some transposes through sums; through a dequantizer and a clip it
        # does so at the price of one more pair of conversions.
        more = found["QuantizeLinear"] - expected["QuantizeLinear"]
        assert more in (0, 1)
        moved += more
        found.subtract({"QuantizeLinear": more, "DequantizeLinear": more})
        assert abs(found["Transpose"] - expected["Transpose"]) <= 1
        for op in (expected.keys() | {"Add"}) - {"Transpose"}:
            assert found[op] == expected[op], (candidate, op)
        seen += expected
    assert moved <= 1
    return seen


@pytest.mark.parametrize(("channels", "pool", "width"), [(3, 1, 16), (1, 2, 16), (3, 2, 8)])
def test_the_runtime_runs_these_kernels_and_conversions(channels, pool, width, block, tmp_path):
    space = space_of(channels, pool, width)
    rng = np.random.default_rng([channels, pool, width])
    picks = np.concatenate([draw_uniform(space, 4, rng), draw_hierarchical(space, 3, rng)])
    seen = checked(space, space.network(picks), block, tmp_path)
    ops = {"QLinearConv", "Conv", "QuantizeLinear", "DequantizeLinear", "Clip", "Transpose"}
    ops |= {"ReorderInput", "ReorderOutput"} if block else set()
    assert all(seen[op] > 0 for op in ops)


@pytest.mark.parametrize(("inside", "sums"), [("fp32", "int8"), ("int8", "fp32")])
def test_what_was_brought_into_plain_order_once_serves_every_later_reader(
    inside, sums, block, tmp_path
):
    """Blocks in one format whose sums have another: two rows read what the block before wrote."""
    space = space_of(channels=3, pool=1, width=8)
    table = space.network(largest_picks(space.dims)).with_formats(inside, inside)
    changed = {
        name: getattr(table, name).copy() for name in ("weight_format", "activation_format")
    }
    for row, name in enumerate(table.names):
        if name.endswith("add") or name in ("s1.b0.expand", "head"):
            changed["activation_format"][0, row] = format_code(sums)
        if name.endswith("expand"):
            changed["weight_format"][0, row] = FP32
    checked(space, replace(table, **changed), block, tmp_path)


def integer_by_hand(layers):
    """Rows that run in integers: input, weights and what the output is stored as."""

    def narrow(name):
        return name is None or (FORMATS[name].family == "int" and FORMATS[name].bits <= 8)

    first_reader = {}
    for layer in layers:
        for producer in layer.producers:
            first_reader.setdefault(producer, layer)
    found = set()
    for layer in layers:
        reader = first_reader.get(layer.row)
        writes = reader is not None and narrow(reader.activation_format)
        reads = narrow(layer.activation_format) and narrow(layer.weight_format)
        fuses = layer.op in ("conv", "add", "pool") and writes
        if reads and (fuses or layer.op == "linear"):
            found.add(layer.row)
    return found


def test_a_row_runs_in_integers_where_all_it_touches_are(networks):
    kernels = kernel_table(networks, block=16)
    for candidate in range(len(networks)):
        layers = networks.take(slice(candidate, candidate + 1)).layers()
        integer = integer_by_hand(layers)
        for layer in layers:
            computed = "int8" if layer.row in integer else "fp32"
            named = dict(
                zip(KEY_COLUMNS, named_key(kernels.keys[candidate, layer.row]), strict=True)
            )
            weight = NO_FORMAT if layer.weight_format is None else computed
            assert (named["activation_format"], named["weight_format"]) == (computed, weight)
            assert named["signed_input"] == (layer.signed_input and computed == "int8")
            for name in ("op", "in_channels", "out_channels", "kernel", "stride", "activation"):
                assert named[name] == getattr(layer, name)


def test_sums_of_blocks_are_computed_inside_convolutions(largest):
    adds = largest.op == OPS.index("add")
    assert adds.sum() >= 3
    for weights, block, inside in (("fp32", 16, True), ("fp32", 0, False), ("int8", 16, False)):
        table = largest.with_formats(weights, weights)
        kernels = kernel_table(table, block=block)
        assert np.array_equal(kernels.inside, adds & inside)
        summing = np.flatnonzero(column(kernels.keys, "residual")[0])
        expected = largest.producers[0, adds[0], 1] if inside else []
        assert summing.tolist() == sorted(expected)
        assert all(largest.names[row].endswith("project") for row in summing)


def test_sums_stand_alone_where_their_convolution_is_read_again_or_activated(largest):
    fp32 = largest.in_fp32()
    add = int(np.flatnonzero(fp32.op[0] == OPS.index("add"))[0])
    project = int(fp32.producers[0, add, 1])
    activation, producers = fp32.activation.copy(), fp32.producers.copy()
    activation[0, project] = ACTIVATIONS.index("relu")
    producers[0, -1, 1] = project
    for changed in ({"activation": activation}, {"producers": producers}):
        kernels = kernel_table(replace(fp32, **changed), block=16)
        assert not kernels.inside[0, add]
        assert column(kernels.keys, "residual")[0, project] == 0
        assert kernels.inside.sum() == (fp32.op == OPS.index("add")).sum() - 1


def test_tensors_are_cut_to_fewer_levels_where_the_plan_quantizes_them(networks):
    """Also where layers read tensors that earlier layers have stored already."""
    rng = np.random.default_rng(0)
    producers = networks.producers.copy()
    for candidate, row in zip(*np.nonzero(networks.weight_format >= 0), strict=True):
        before = np.flatnonzero(networks.active[candidate, :row])
        if rng.random() < 0.3:
            producers[candidate, row, 0] = rng.choice(before)
    table = replace(networks, producers=producers)
    kernels = kernel_table(table, block=16)
    cut = [edge[0] for edge in EDGES].index("requantize")
    narrow = table.activation_format == format_code("int4")
    for candidate in range(len(table)):
        expected = np.zeros(table.op.shape[1], dtype=np.int64)
        for step in make_plan(table.take(slice(candidate, candidate + 1)).layers()):
            expected[step.row] = sum(step.quantizes) * narrow[candidate, step.row]
        assert kernels.conversions[candidate, :, cut].tolist() == expected.tolist()


def test_in_openvino_nothing_is_reordered_and_integer_kernels_may_write_fp32(networks):
    here, there = (
        kernel_table(networks, block=0, runtime=each) for each in (ONNX_RUNTIME, OPENVINO)
    )
    for edge, (op, _, _) in enumerate(EDGES):
        if op.startswith("layout") or op == "requantize":
            assert there.conversions[..., edge].sum() == 0
    int8 = [column(each.keys, "activation_format") == INT8 for each in (here, there)]
    assert (int8[1] | ~int8[0]).all()
    assert (int8[1] & ~int8[0] & (column(there.keys, "output_format") == FP32)).any()
    fp32 = ~int8[1] & networks.active
    adds = networks.op == OPS.index("add")
    assert there.inside.any()
    assert (there.inside <= (adds & fp32)).all()
    summing = column(there.keys, "residual") == 1
    assert (summing <= fp32).all()
    assert np.array_equal(summing.sum(axis=1), there.inside.sum(axis=1))


def test_a_classifier_in_integers_writes_fp32(largest):
    kernels = kernel_table(largest.with_formats("int8", "int8"), block=16)
    classifier = kernels.keys[0, -1]
    assert OPS[classifier[0]] == "linear"
    assert column(classifier, "activation_format") == INT8
    assert column(classifier, "output_format") == FP32


@pytest.mark.parametrize("narrow", ["int4", "int8"])
def test_networks_in_one_integer_format_convert_only_at_their_ends(largest, narrow):
    table = largest.with_formats("int8", narrow)
    conversions = kernel_table(table, block=16).conversions[0]
    first, pool = table.names.index("stem"), table.names.index("global_pool")
    requantize = [edge[0] == "requantize" for edge in EDGES]
    inside = conversions[first + 1 : pool]
    assert inside[:, ~np.array(requantize)].sum() == 0
    # Cutting to fewer levels is one more op for every tensor that is stored, and only then.
    stored = {row for layer in table.layers() if layer.row < pool for row in layer.producers}
    cuts = conversions[: pool + 1, requantize].sum()
    assert cuts == (len(stored) + 1 if narrow == "int4" else 0)
    counts = {edge: int(n) for edge, n in zip(EDGES, conversions[first], strict=True) if n}
    expected = {("quantize", "fp32", "int8"): 1, ("layout_in", "int8", "int8"): 1}
    assert counts == expected | ({EDGES[2]: 1} if narrow == "int4" else {})
    counts = {edge: int(n) for edge, n in zip(EDGES, conversions[pool], strict=True) if n}
    expected = {("dequantize", "int8", "fp32"): 1, ("layout_out", "int8", "int8"): 1}
    assert counts == expected | ({EDGES[2]: 1} if narrow == "int4" else {})


def test_fp32_networks_convert_nothing_where_kernels_read_plain_order(networks):
    table = networks.in_fp32()
    assert kernel_table(table, block=0).conversions.sum() == 0
    blocks = kernel_table(table, block=16).conversions.sum(axis=(0, 1))
    assert blocks[EDGES.index(("layout_out", "fp32", "fp32"))] > 0
    assert blocks[:5].sum() == 0


def test_kernels_that_read_plain_order_are_given_no_blocks(networks):
    plain = kernel_table(networks, block=0).conversions
    blocks = kernel_table(networks, block=16).conversions
    assert plain[..., 5:].sum() == 0
    assert blocks[..., 5:].sum() > 0
    assert np.array_equal(plain[..., :3], blocks[..., :3])  # number formats know no order


def test_alternating_formats_cost_more_conversions_than_contiguous_ones(largest):
    weighted = np.flatnonzero(largest.weight_format[0] >= 0)
    half = len(weighted) // 2
    first = np.isin(np.arange(largest.op.shape[1]), weighted[:half])
    second = np.isin(np.arange(largest.op.shape[1]), weighted[::2][:half])
    assert first.sum() == second.sum()
    totals = []
    for chosen in (first, second):
        # A pool or sum carries the format of the next weighted layer.
        following = np.array([chosen[weighted[weighted >= row][0]] for row in range(len(chosen))])
        code = np.where(following, INT8, FP32)[None]
        changed = {
            "weight_format": np.where(largest.weight_format >= 0, code, -1),
            "activation_format": np.where(largest.op == OPS.index("input"), FP32, code),
        }
        totals.append(kernel_table(replace(largest, **changed), block=16).conversions.sum())
    assert totals[1] > 2 * totals[0] > 0


def test_formats_without_a_kernel_are_marked_and_only_those(tiny_networks):
    kernels = kernel_table(tiny_networks, block=16)
    without = np.zeros(tiny_networks.op.shape, dtype=bool)
    for candidate in range(len(tiny_networks)):
        for layer in tiny_networks.take(slice(candidate, candidate + 1)).layers():
            formats = {layer.weight_format, layer.activation_format}
            without[candidate, layer.row] = bool(formats & {"fp8_e4m3", "fp4_e2m1"})
    assert without.any()
    assert np.array_equal(~kernels.runs, without)


def test_integers_of_more_than_eight_bits_have_no_kernel(largest):
    wide = next(each.name for each in FORMATS.values() if each.family == "int" and each.bits > 8)
    kernels = kernel_table(largest.with_formats("int8", wide), block=16)
    assert not kernels.runs[0, 1:].any()


def test_rows_that_are_not_there_run_and_convert_nothing(networks):
    kernels = kernel_table(networks, block=16)
    assert (~networks.active).any()
    assert (kernels.keys[~networks.active] == 0).all()
    assert (kernels.conversions[~networks.active] == 0).all()
    assert kernels.runs[~networks.active].all()


def test_each_network_is_looked_at_on_its_own(networks):
    together = kernel_table(networks, block=16)
    for candidate in range(0, len(networks), 7):
        alone = kernel_table(networks.take(slice(candidate, candidate + 1)), block=16)
        for name in ("keys", "runs", "inside", "conversions", "shapes"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[candidate])


@pytest.mark.parametrize("edge", range(len(EDGES)))
def test_a_conversion_is_keyed_by_its_tensor_and_formats(edge):
    op, source, target = EDGES[edge]
    shapes = np.array([[[8, 6, 4], [16, 3, 2]]])
    keys = conversion_keys(shapes, edge)
    assert keys.shape == (1, 2, len(KEY_COLUMNS))
    for shape, key in zip(shapes[0].tolist(), keys[0], strict=True):
        channels, height, width = shape
        expected = key_of(
            op,
            {"in_channels": channels, "out_channels": channels, "in_height": height,
             "in_width": width, "activation_format": source, "output_format": target},
        )  # fmt: skip
        assert np.array_equal(key, expected)


def test_shapes_are_those_of_the_tensors_that_rows_read(networks):
    shapes = kernel_table(networks, block=16).shapes
    for candidate in (0, 1):
        for layer in networks.take(slice(candidate, candidate + 1)).layers():
            expected = [layer.in_channels, layer.in_height, layer.in_width]
            assert shapes[candidate, layer.row].tolist() == expected

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.config import SpaceConfig
from apqkit.cost import NetworkCost
from apqkit.errors import ConfigError
from apqkit.prediction import feature_builder
from apqkit.spaces import build_space
from apqkit.spaces.base import largest_picks, picks_of_values, smallest_picks
from apqkit.spaces.draws import draw_uniform

SOURCE = "github.com/mit-han-lab/apq, lut/BitFusion_new.b1.dict, as CSV"
BITS = ("int4", "int6", "int8")
STAGES = ((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
# For each block the channels that it reads, as the published search counts them.
INPUTS = [16, *[24] * 4, *[40] * 4, *[80] * 4, *[96] * 4, *[192] * 4]


def built(weights=BITS, activations=BITS, outer=("int8",), options=None, **changes):
    config = SpaceConfig(
        name="apq",
        weight_formats=weights,
        activation_formats=activations,
        first_last_formats=outer,
        options=options or {},
    )
    images = {"image_shape": (3, 224, 224), "classes": 1000, **changes}
    return build_space(config, **images)


@pytest.fixture(scope="module")
def space():
    return built()


def refused(**changes):
    with pytest.raises(ConfigError) as caught:
        built(**changes)
    return str(caught.value)


def blocks():
    return [f"s{stage}.b{index}" for stage, each in enumerate(STAGES) for index in range(each[1])]


def test_its_decisions_are_those_of_the_published_search(space):
    choices = {dim.name: dim.choices for dim in space.dims}
    assert len(blocks()) == len(INPUTS) == 21
    wanted = {f"depth.s{stage}": (2, 3, 4) for stage in range(5)}
    for block, inputs in zip(blocks(), INPUTS, strict=True):
        wanted[f"kernel.{block}"] = (3, 5, 7)
        wanted[f"keep.{block}"] = tuple(range(4 * inputs, 6 * inputs + 8, 8))
        for part in ("pointwise", "depthwise"):
            wanted[f"w_format.{block}.{part}"] = BITS
            wanted[f"a_format.{block}.{part}"] = BITS
    assert choices == wanted
    roles = {"depth": "arch", "kernel": "arch", "keep": "prune", "w_format": "quant",
             "a_format": "quant"}  # fmt: skip
    assert all(dim.role == roles[dim.name.partition(".")[0]] for dim in space.dims)


def plain_rows(values):
    """The convolutions of one network, given by value: name to every column."""
    rows = {}
    channels, size = 16, 112
    for stage, (width, _, first_stride) in enumerate(STAGES):
        for index in range(values.get(f"depth.s{stage}", 1)):
            block, stride = f"s{stage}.b{index}", first_stride if index == 0 else 1
            hidden = values[f"keep.{block}"]
            for part, shape, formats in (
                ("expand", (channels, hidden, size, 1, 1, 1, "relu"), "pointwise"),
                (
                    "depthwise",
                    (hidden, hidden, size, values[f"kernel.{block}"], stride, hidden, "relu"),
                    "depthwise",
                ),
                ("project", (hidden, width, size // stride, 1, 1, 1, "none"), "pointwise"),
            ):
                own = tuple(values[f"{side}_format.{block}.{formats}"] for side in "wa")
                rows[f"{block}.{part}"] = (*shape, *own)
            channels, size = width, size // stride
    return rows


def found_rows(table, candidate):
    return {
        each.name: (
            each.in_channels, each.out_channels, each.in_height, each.kernel, each.stride,
            each.groups, each.activation, each.weight_format, each.activation_format,
        )
        for each in table.layers(candidate)
        if each.op != "input"
    }  # fmt: skip


def test_networks_are_the_searchable_convolutions(space):
    corners = [smallest_picks(space.dims), largest_picks(space.dims)]
    picks = np.concatenate([*corners, draw_uniform(space, 30, np.random.default_rng(0))])
    table = space.network(picks)
    for candidate, values in enumerate(space.describe(picks)):
        rows = plain_rows(values)
        assert found_rows(table, candidate) == rows
        first, *layers = table.layers(candidate)
        assert (first.op, first.in_channels, first.out_channels) == ("input", 16, 16)
        assert (first.in_height, first.in_width) == (112, 112)
        assert first.activation_format == layers[0].activation_format
        chain = [first, *layers]
        assert [each.producers for each in layers] == [(each.row,) for each in chain[:-1]]
        macs = sum(
            i // g * o * k * k * (size // s) ** 2 for i, o, size, k, s, g, *_ in rows.values()
        )
        assert table.macs[candidate].sum() == macs
    assert np.array_equal(table.in_height, table.in_width)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_candidates_have_one_form_and_one_description(seed):
    space = built()
    picks = draw_uniform(space, 4, np.random.default_rng(seed))
    assert np.array_equal(space.repair(picks), picks)
    for row, values in zip(picks, space.describe(picks), strict=True):
        assert np.array_equal(picks_of_values(space.dims, values)[0], row)


def test_every_active_dim_changes_the_network_and_no_other_does(space):
    picks = draw_uniform(space, 1, np.random.default_rng(3))
    own = found_rows(space.network(picks), 0)
    active = space.active(picks)[0]
    assert 0 < active.sum() < len(space.dims)
    for column, dim in enumerate(space.dims):
        moved = picks.copy()
        moved[0, column] = (picks[0, column] + 1) % len(dim.choices)
        changed = found_rows(space.network(moved), 0) != own
        assert changed == active[column]
        assert np.array_equal(space.repair(moved), picks) != changed


def test_costs_and_predictors_read_its_networks(space):
    picks = draw_uniform(space, 5, np.random.default_rng(0))
    costs = NetworkCost().cost(space.network(picks))
    assert all((each > 0).all() for each in costs.values())
    assert np.isfinite(feature_builder(space).mixed(picks)).all()


def test_together_its_networks_have_every_shape_of_the_published_table(space, public_data):
    path = public_data / "apq_bitfusion_lut/apq_bitfusion_lut.csv.gz"
    if not path.exists():
        pytest.skip(f"needs {path.name} ({SOURCE})")
    frame = pd.read_csv(path)
    names = ["in_ch", "out_ch", "in_size", "kernel", "stride", "groups"]
    priced = set(frame[names].itertuples(index=False, name=None))
    shapes = set()
    for pick in range(max(len(dim.choices) for dim in space.dims)):
        for kernel in range(3):
            picks = largest_picks(space.dims)
            for column, dim in enumerate(space.dims):
                if dim.name.startswith("keep."):
                    picks[0, column] = min(pick, len(dim.choices) - 1)
                if dim.name.startswith("kernel."):
                    picks[0, column] = kernel
            shapes |= {row[:6] for row in found_rows(space.network(picks), 0).values()}
    assert shapes == priced
    assert len(shapes) == 779


def test_it_has_no_supernet(space):
    with pytest.raises(ConfigError) as caught:
        space.supernet(0)
    assert str(caught.value) == (
        "space 'apq' has no supernet: it prices networks from tables only, "
        "choose another space to train one"
    )


def test_kernels_and_formats_may_be_fewer():
    space = built(weights=("int8", "int4"), activations=("int6",), options={"kernels": [5, 3, 5]})
    choices = {dim.name: dim.choices for dim in space.dims}
    assert choices["kernel.s0.b0"] == (3, 5)
    assert choices["w_format.s5.b0.depthwise"] == ("int4", "int8")
    assert not [name for name in choices if name.startswith("a_format.")]
    for row in found_rows(space.network(largest_picks(space.dims)), 0).values():
        assert row[-2:] == ("int8", "int6")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"image_shape": (3, 32, 32), "classes": 10},
            "space 'apq' prices images of 3x224x224 in 1000 classes, got 3x32x32 in 10",
        ),
        (
            {"classes": 100},
            "space 'apq' prices images of 3x224x224 in 1000 classes, got 3x224x224 in 100",
        ),
        (
            {"weights": ("int4", "int2")},
            "space.weight_formats of the apq space must be among int4, int6, int8, got 'int2'",
        ),
        (
            {"activations": ("fp8_e4m3",)},
            "space.activation_formats of the apq space must be among int4, int6, int8, "
            "got 'fp8_e4m3'",
        ),
        (
            {"outer": ("int4",)},
            "space.first_last_formats of the apq space must be among int8, got 'int4'",
        ),
        (
            {"options": {"kernels": []}},
            "space.options.kernels must be given at least one entry, got list []",
        ),
        (
            {"options": {"kernels": [3, 9]}},
            "space.options.kernels.1 must be 3, 5 or 7, got int 9",
        ),
        (
            {"options": {"kernel": [3]}},
            "unknown key 'space.options.kernel' (did you mean 'space.options.kernels'?); "
            "allowed: kernels",
        ),
    ],
)
def test_what_its_table_does_not_price_is_refused(changes, text):
    assert refused(**changes) == text

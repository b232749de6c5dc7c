import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost import BitFusionCost, NetworkCost
from apqkit.cost.bitfusion import BITFUSION_ARRAYS
from apqkit.errors import ConfigError, UnknownNameError
from apqkit.formats import FORMATS
from apqkit.prediction import feature_builder
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.spaces.draws import draw_uniform
from apqkit.testing import check_dims, check_space
from apqkit.types import Layer


def dim_of(space, name):
    return next(each for each in space.dims if each.name == name)


def names_of(space):
    return [each.name for each in space.dims]


def plain_network(values, *, image, pool, stem, stem_stride, stages, head, fixed):
    """The network of one candidate, written out layer by layer.

    ``values`` holds the candidate by value, ``fixed`` the dims with a single choice, ``stages``
    the largest depth and the stride of each stage.
    """
    pick = {**fixed, **values}
    layers = []

    def add(name, op, channels, size, producers, **more):
        base = {
            "kernel": 0,
            "stride": 1,
            "groups": 1,
            "activation": "none",
            "weight_format": None,
        }
        layers.append(
            {"name": name, "op": op, "channels": channels, "size": size, "producers": producers}
            | base
            | more
        )
        return name

    channels, *size = image
    current = add(
        "input", "input", (channels, channels), tuple(size), (), activation_format="fp32"
    )
    size = tuple(size)
    first = pick["a_format.stem"]
    if pool > 1:
        current = add(
            "pool", "pool", (channels, channels), size, (current,),
            kernel=pool, stride=pool, activation_format=first,
        )  # fmt: skip
        size = (size[0] // pool, size[1] // pool)
    current = add(
        "stem", "conv", (channels, stem), size, (current,), kernel=3, stride=stem_stride,
        activation="relu", weight_format=pick["w_format.stem"], activation_format=first,
    )  # fmt: skip
    channels = stem
    size = tuple(-(-each // stem_stride) for each in size)
    for number, (_, stage_stride) in enumerate(stages):
        for index in range(pick[f"depth.s{number}"]):
            block = f"s{number}.b{index}"
            stride = stage_stride if index == 0 else 1
            hidden, out = pick[f"keep.{block}"], pick[f"width.s{number}"]
            small = tuple(-(-each // stride) for each in size)
            formats = {
                part: {
                    "weight_format": pick[f"w_format.{block}.{part}"],
                    "activation_format": pick[f"a_format.{block}.{part}"],
                }
                for part in ("expand", "depthwise", "project")
            }
            last = add(
                f"{block}.expand", "conv", (channels, hidden), size, (current,), kernel=1,
                activation="relu", **formats["expand"],
            )  # fmt: skip
            last = add(
                f"{block}.depthwise", "conv", (hidden, hidden), size, (last,), groups=hidden,
                kernel=pick.get(f"kernel.{block}", 3), stride=stride, activation="relu",
                **formats["depthwise"],
            )  # fmt: skip
            last = add(
                f"{block}.project", "conv", (hidden, out), small, (last,), kernel=1,
                **formats["project"],
            )  # fmt: skip
            if index > 0:
                last = add(
                    f"{block}.add", "add", (out, out), small, (current, last),
                    activation_format="of the next convolution",
                )  # fmt: skip
            current, channels, size = last, out, small
    current = add(
        "head", "conv", (channels, head), size, (current,), kernel=1, activation="relu",
        weight_format=pick["w_format.head"], activation_format=pick["a_format.head"],
    )  # fmt: skip
    current = add(
        "global_pool", "global_pool", (head, head), size, (current,),
        activation_format=pick["a_format.classifier"],
    )  # fmt: skip
    add(
        "classifier", "linear", (head, 10), (1, 1), (current,), kernel=1,
        weight_format=pick["w_format.classifier"], activation_format=pick["a_format.classifier"],
    )  # fmt: skip
    for position, layer in enumerate(layers):
        if layer["op"] == "add":
            following = next(each for each in layers[position:] if each["op"] == "conv")
            layer["activation_format"] = following["activation_format"]
    return layers


def negative_outputs(layers):
    """Which layers read what convolutions and sums without a ReLU wrote: it can be negative."""
    writes, reads = {}, {}
    for layer in layers:
        reads[layer["name"]] = any(writes[each] for each in layer["producers"])
        if layer["op"] in ("pool", "global_pool", "input"):
            writes[layer["name"]] = reads[layer["name"]]
        else:
            writes[layer["name"]] = layer["activation"] == "none"
    return reads


def as_plain(layers: list[Layer]):
    names = {each.row: each.name for each in layers}
    return [
        {
            "name": each.name,
            "op": each.op,
            "channels": (each.in_channels, each.out_channels),
            "size": (each.in_height, each.in_width),
            "producers": tuple(names[row] for row in each.producers),
            "kernel": each.kernel,
            "stride": each.stride,
            "groups": each.groups,
            "activation": each.activation,
            "weight_format": each.weight_format,
            "activation_format": each.activation_format,
        }
        for each in layers
    ]


SHAPES = [
    pytest.param((1, 8, 8), {}, id="gray"),
    pytest.param((3, 9, 14), {"pool": 2, "stem": 12}, id="colour-pooled"),
    pytest.param((3, 20, 13), {"pool": 3, "stem_stride": 2, "head": 20}, id="strided"),
    pytest.param((1, 1, 5), {}, id="one-line"),
]
FIXED = {"width.s2": 16, "depth.s2": 1, "kernel.s2.b0": 3} | {
    f"w_format.{block}.depthwise": "int8"
    for block in ("s0.b0", "s0.b1", "s1.b0", "s1.b1", "s1.b2", "s2.b0")
}


@pytest.mark.parametrize(("image", "options"), SHAPES)
def test_networks_equal_those_written_out_layer_by_layer(make_space, image, options):
    space = make_space(image, options, first_last_formats=("int4", "int8"))
    picks = draw_uniform(space, 40, np.random.default_rng(0))
    table = space.network(picks)
    settings = {"pool": 1, "stem": 8, "stem_stride": 1, "head": 16, **options}
    for index, values in enumerate(space.describe(picks)):
        expected = plain_network(
            values, image=image, stages=[(2, 1), (3, 2), (1, 1)], fixed=FIXED, **settings
        )
        found = table.layers(index)
        assert as_plain(found) == expected
        signed = negative_outputs(expected)
        assert {each.name: each.signed_input for each in found} == signed


def test_many_networks_equal_one_at_a_time(space):
    picks = draw_uniform(space, 30, np.random.default_rng(1))
    together = space.network(picks)
    for index, row in enumerate(picks):
        assert space.network(row[None]).layers() == together.layers(index)
    assert len(space.network(picks[:0])) == 0


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_inactive_dims_leave_no_trace(space, seed):
    rng = np.random.default_rng(seed)
    anything = np.stack([rng.integers(0, len(dim.choices), 8) for dim in space.dims], axis=1)
    canonical = space.repair(anything)
    assert np.array_equal(space.active(anything), space.active(canonical))
    one, other = space.network(anything), space.network(canonical)
    assert all(one.layers(index) == other.layers(index) for index in range(8))
    assert np.array_equal(one.macs, other.macs)
    assert (one.in_channels[~one.active] == 0).all()
    assert (one.weight_format[~one.active] == -1).all()
    assert (one.producers[~one.active] == -1).all()


def test_dims_of_blocks_beyond_the_depth_are_inactive(space):
    shallow = smallest_picks(space.dims)
    active = dict(zip(names_of(space), space.active(shallow)[0], strict=True))
    assert active["keep.s1.b1"]  # the least depth is 2
    assert not active["keep.s1.b2"]
    assert not active["kernel.s0.b1"]
    assert not active["a_format.s0.b1.depthwise"]
    assert active["a_format.head"]
    assert space.active(largest_picks(space.dims)).all()


def test_choices_run_from_small_to_large(space):
    assert dim_of(space, "depth.s1").choices == (2, 3)
    assert dim_of(space, "width.s1").choices == (8, 12, 16)
    assert dim_of(space, "kernel.s1.b0").choices == (3, 5)
    assert dim_of(space, "keep.s0.b0").choices == (4, 12, 24, 32)  # 4, 13.3, 22.7, 32 rounded
    assert dim_of(space, "w_format.head").choices == ("int2", "int4", "int8", "fp8_e4m3")
    for dim in space.dims:
        if dim.role != "quant":
            assert list(dim.choices) == sorted(dim.choices)
        else:
            bits = [FORMATS[each].bits for each in dim.choices]
            assert bits == sorted(bits)
    small, large = (space.network(picks(space.dims)) for picks in (smallest_picks, largest_picks))
    assert small.macs.sum() < large.macs.sum()


def test_choices_that_round_to_the_same_network_are_merged(make_space):
    options = {
        "stages": [{"width": 8, "depth": 2, "width_shares": [0.1, 0.5, 0.55, 1.0]}],
        "channel_step": 8,
        "hidden_choices": 30,
        "expand": 2.0,
    }
    space = make_space(
        options=options, weight_formats=("int4", "int4"), activation_formats=("int8",)
    )
    assert "width.s0" not in names_of(space)  # all shares round to 8
    assert dim_of(space, "keep.s0.b0").choices == (8, 16)
    assert not any("format" in name for name in names_of(space))
    assert space.network(largest_picks(space.dims)).layers()[2].weight_format == "int4"


def test_dims_with_one_choice_are_dropped(space, make_space):
    assert not {"depth.s2", "width.s2", "kernel.s2.b0", "w_format.stem"} & set(names_of(space))
    free = make_space(options={"depthwise_formats": ["int8", "int4"]})
    assert dim_of(free, "w_format.s0.b0.depthwise").choices == ("int4", "int8")
    assert len(free.dims) == len(space.dims) + 6
    assert all(len(dim.choices) > 1 for dim in free.dims)


def test_one_hidden_width_is_the_largest(make_space):
    space = make_space(options={"hidden_choices": 1})
    assert not any(name.startswith("keep.") for name in names_of(space))
    rows = {each.name: each for each in space.network(smallest_picks(space.dims)).layers()}
    assert rows["s0.b0.expand"].out_channels == 32


def test_names_are_unique_and_roles_follow_them(space):
    assert len(set(names_of(space))) == len(space.dims)
    roles = {"depth": "arch", "width": "arch", "kernel": "arch", "keep": "prune"}
    for dim in space.dims:
        assert dim.role == roles.get(dim.name.partition(".")[0], "quant")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pool": 9}, "space.options.pool must be at most the image size 8x8, got 9"),
        (
            {"expand": 1.0, "smallest_expand": 2.0},
            "space.options.smallest_expand must be at most space.options.expand 1.0, got 2.0",
        ),
        (
            {"stages": [{"width": 8, "depth": 1}, {"width": 8, "depth": 2, "min_depth": 3}]},
            "space.options.stages.1.min_depth must be at most the depth 2, got 3",
        ),
        (
            {"depthwise_formats": ["uint8"]},
            "space formats are named without sign, got 'uint8': "
            "tensors that cannot be negative use the unsigned twin by themselves",
        ),
    ],
)
def test_options_that_contradict_each_other_or_the_images_are_refused(make_space, options, text):
    with pytest.raises(ConfigError) as caught:
        make_space(options=options)
    assert str(caught.value) == text


def test_a_pool_larger_than_one_side_is_refused(make_space):
    with pytest.raises(ConfigError) as caught:
        make_space((1, 8, 4), {"pool": 5})
    assert str(caught.value) == "space.options.pool must be at most the image size 8x4, got 5"


@pytest.mark.parametrize("key", ["weight_formats", "activation_formats", "first_last_formats"])
def test_formats_are_named_without_sign(make_space, key):
    with pytest.raises(ConfigError) as caught:
        make_space(**{key: ("uint4",)})
    assert str(caught.value) == (
        "space formats are named without sign, got 'uint4': "
        "tensors that cannot be negative use the unsigned twin by themselves"
    )


def test_a_space_of_one_network_is_refused(make_space):
    stage = {"width": 8, "depth": 1, "kernels": [3], "width_shares": [1.0]}
    with pytest.raises(ConfigError) as caught:
        make_space(
            options={"stages": [stage], "hidden_choices": 1},
            weight_formats=("int8",),
            activation_formats=("int8",),
        )
    assert str(caught.value) == "space offers a single network: give some dim a second choice"


def test_an_unknown_format_is_named(make_space):
    with pytest.raises(UnknownNameError) as caught:
        make_space(weight_formats=("int44",))
    assert str(caught.value) == (
        f"no format named 'int44' (did you mean 'int4'?); there are: {', '.join(sorted(FORMATS))}"
    )


CHECKED = [
    pytest.param((1, 8, 8), {}, id="gray"),
    pytest.param((1, 8, 11), {}, id="gray-oblong"),
    pytest.param((3, 17, 22), {"pool": 2}, id="colour-oblong-pooled"),
    pytest.param((3, 28, 28), {"pool": 2, "stem_stride": 2}, id="colour-pooled-strided"),
]


def images_of(image, count=8):
    return torch.rand(count, *image, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("image", "options"), CHECKED)
def test_passes_the_check_of_spaces(make_space, image, options):
    check_space(make_space(image, options), images_of(image), seed=1)


@pytest.mark.parametrize(("image", "options"), CHECKED)
def test_every_score_depends_on_every_dim(make_space, image, options):
    space = make_space(image, options, first_last_formats=("int4", "int8"))
    models = (NetworkCost(), BitFusionCost(BITFUSION_ARRAYS["bitfusion-2x4"], batch=1))

    def costs(picks):
        table = space.network(picks)
        return {name: each for model in models for name, each in model.cost(table).items()}

    features = feature_builder(space).mixed
    check_dims(space, features, costs, images_of(image), candidates=1, seed=3)


def test_kernels_that_compute_the_same_on_a_small_map_are_not_offered(make_space):
    """On 2x2 the outer taps of 5x5 only ever meet the padding."""
    stages = [{"width": 8, "depth": 2, "stride": stride} for stride in (1, 2, 2)]
    names = names_of(make_space((1, 8, 8), {"stages": stages}))
    assert "kernel.s1.b1" in names  # 4x4
    assert "kernel.s2.b0" in names  # reads 4x4, leaves 2x2
    assert "kernel.s2.b1" not in names
    stage = {"width": 8, "depth": 2, "stride": 1, "kernels": [3, 5, 7, 9]}
    other = {"width": 8, "depth": 1, "kernels": [7]}
    space = make_space((1, 6, 4), {"pool": 2, "stages": [stage, {**other, "stride": 3}, other]})
    assert dim_of(space, "kernel.s0.b0").choices == (3, 5)  # 3x2 after pooling
    layers = {each.name: each for each in space.network(largest_picks(space.dims)).layers()}
    assert layers["s2.b0.depthwise"].in_height == 1
    assert layers["s2.b0.depthwise"].kernel == 7  # none is small enough: the smallest stays

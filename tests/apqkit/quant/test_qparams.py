import numpy as np
import pytest
import torch

from apqkit.errors import CalibrationError, FormatError, UnknownNameError
from apqkit.formats import FORMATS, format_named
from apqkit.quant.observers import OBSERVERS
from apqkit.quant.qparams import (
    Granularity,
    QuantParams,
    observed_params,
    qparams_for,
    rows_of,
)
from apqkit.quant.quantize import fake_quantize

INTEGERS = [name for name in FORMATS if FORMATS[name].family == "int"]
SCALED = [name for name in FORMATS if FORMATS[name].is_scaled]
UNSCALED = [name for name in FORMATS if not FORMATS[name].is_scaled and name != "nvfp4"]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def symmetric_scale(values, name):
    """The published rule in NumPy for one group of values."""
    reach = values.max() if name[0] == "u" else np.abs(values).max()
    return max(float(reach) / FORMATS[name].max_value, 1e-8)


def affine_pair(values, name):
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    lowest, highest = FORMATS[name].lowest_level, FORMATS[name].highest_level
    scale = max((high - low) / (highest - lowest), 1e-8)
    return scale, float(np.clip(np.rint(lowest - low / scale), lowest, highest))


@pytest.mark.parametrize("name", SCALED)
def test_one_scale_for_all_takes_the_largest_to_the_top(name):
    x = drawn(5, 70)
    found = qparams_for(x, name)
    assert found.scale.shape == found.zero_point.shape == ()
    assert float(found.scale) == pytest.approx(symmetric_scale(x.numpy(), name), rel=1e-6)
    assert float(found.zero_point) == 0.0
    assert found.granularity == Granularity()


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("name", ["int4", "uint8", "fp8_e4m3"])
def test_scales_along_an_axis_are_those_of_each_slice(name, axis):
    x = drawn(3, 4, 5)
    found = qparams_for(x, name, axis=axis)
    slices = np.moveaxis(x.numpy(), axis, 0)
    wanted = [symmetric_scale(each, name) for each in slices]
    assert found.scale.shape == (x.shape[axis],)
    assert found.scale.tolist() == pytest.approx(wanted, rel=1e-6)
    assert found.granularity == Granularity(axis)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("name", ["int4", "fp6_e3m2"])
def test_scales_of_groups_are_those_of_each_group(name, axis, size):
    x = drawn(5, 4, 7)
    found = qparams_for(x, name, axis=axis, group_size=size)
    shape = list(x.shape)
    shape[axis] = -(-shape[axis] // size)
    assert found.scale.shape == found.zero_point.shape == tuple(shape)
    rows = np.moveaxis(x.numpy(), axis, -1)
    scales = np.moveaxis(found.scale.numpy(), axis, -1)
    for index in np.ndindex(*scales.shape):
        *outer, group = index
        values = rows[tuple(outer)][group * size : (group + 1) * size]
        assert scales[index] == pytest.approx(symmetric_scale(values, name), rel=1e-6)
    assert found.granularity == Granularity(axis, size)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_affine_groups_count_a_short_tail_as_filled_up_with_zeros(axis):
    x = drawn(5, 7) + 20.0
    found = qparams_for(x, "uint8", axis=axis, group_size=3, symmetric=False)
    rows, scales, zeros = (
        np.moveaxis(each.numpy(), axis, -1) for each in (x, found.scale, found.zero_point)
    )
    for row, own_scales, own_zeros in zip(rows, scales, zeros, strict=True):
        for group, (scale, zero) in enumerate(zip(own_scales, own_zeros, strict=True)):
            wanted = affine_pair(row[group * 3 : group * 3 + 3], "uint8")
            assert (scale, zero) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("shift", [-100.0, -2.0, 0.0, 3.0, 100.0])
@pytest.mark.parametrize("name", INTEGERS)
def test_affine_levels_span_from_the_lowest_to_the_highest_value(name, shift):
    x = drawn(500) + shift
    found = qparams_for(x, name, symmetric=False)
    scale, zero = affine_pair(x.numpy(), name)
    assert float(found.scale) == pytest.approx(scale, rel=1e-5)
    assert abs(float(found.zero_point) - zero) <= (1 if FORMATS[name].bits == 16 else 0)
    held = fake_quantize(x, name, scale=found.scale, zero_point=found.zero_point)
    assert float((held - x).abs().max()) <= 1.01 * float(found.scale)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(("axis", "size"), [(None, None), (0, None), (-1, None), (-1, 4), (0, 3)])
def test_what_is_found_suits_the_one_quantizer(name, symmetric, axis, size):
    x = drawn(6, 5, 10)
    if symmetric and name[0] == "u":
        x = x.abs()
    found = qparams_for(x, name, axis=axis, group_size=size, symmetric=symmetric)
    held = fake_quantize(
        x,
        name,
        scale=found.scale,
        zero_point=found.zero_point,
        axis=found.granularity.axis,
        group_size=found.granularity.group_size,
    )
    bits = FORMATS[name].bits
    # nothing is clipped, so the error is half a step; affine ends move by up to half of one more
    step = 2 * x.abs().max() / (2**bits - 2 if name[0] != "u" else 2**bits - 1)
    assert (
        float((held - x).abs().max()) <= float(step) * (0.5 if symmetric else 1.0) * 1.001 + 1e-6
    )


@pytest.mark.parametrize("name", UNSCALED)
def test_formats_that_take_no_scale_get_none(name):
    assert qparams_for(drawn(3, 4), name) == QuantParams(None, 0, Granularity())


def test_nvfp4_gets_the_scale_of_the_whole_tensor():
    x = drawn(3, 40)
    found = qparams_for(x, "nvfp4")
    assert float(found.scale) == pytest.approx(float(x.abs().max()) / 2688, rel=1e-6)
    assert found.zero_point == 0
    assert torch.equal(fake_quantize(x, "nvfp4", scale=found.scale), fake_quantize(x, "nvfp4"))


@pytest.mark.parametrize("rule", OBSERVERS)
def test_every_rule_can_be_asked_for(rule):
    x = drawn(2, 2000)
    number_format = format_named("int4")
    observer = OBSERVERS[rule]()
    observer.update(x)
    low, high = observer.limits(number_format, symmetric=True)
    found = qparams_for(x, "int4", axis=0, rule=rule)
    assert torch.equal(found.scale, torch.maximum(high, -low) / 7)
    assert float(found.scale.max()) <= float(x.abs().max()) / 7 * (1 + 1e-6)


def test_scales_take_no_gradient():
    x = drawn(4, 8).requires_grad_()
    for name in ("int4", "nvfp4"):
        assert not qparams_for(x, name).scale.requires_grad


# tensors of all kinds


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", INTEGERS)
def test_zeros_and_subnormal_values_have_the_least_scale(name, symmetric):
    for x in (torch.zeros(3, 4), torch.full((3, 4), 1e-42), torch.full((3, 4), -1e-42)):
        found = qparams_for(x, name, axis=0, symmetric=symmetric)
        assert found.scale.tolist() == pytest.approx([1e-8] * 3)
        held = fake_quantize(
            x, name, scale=found.scale, zero_point=found.zero_point, axis=0, group_size=None
        )
        assert held.tolist() == torch.zeros(3, 4).tolist()


@pytest.mark.parametrize("value", [-5.0, 0.3, 7.0])
@pytest.mark.parametrize("name", INTEGERS)
def test_constants_are_held(name, value):
    for shape in [(1,), (4, 3), ()]:
        x = torch.full(shape, value)
        found = qparams_for(x, name, symmetric=False)
        held = fake_quantize(x, name, scale=found.scale, zero_point=found.zero_point)
        assert held.flatten().tolist() == pytest.approx([value] * x.numel(), rel=1e-5)


@pytest.mark.parametrize("rule", OBSERVERS)
@pytest.mark.parametrize(
    ("shape", "axis", "size", "wanted"),
    [
        ((0,), None, None, ()),
        ((0, 3), None, None, ()),
        ((0, 3), 0, None, (0,)),
        ((0, 3), 1, None, (3,)),
        ((3, 0), 0, None, (3,)),
        ((3, 0), 1, 4, (3, 0)),
        ((0, 5), 1, 4, (0, 2)),
    ],
)
def test_empty_tensors_have_scales_of_the_right_shape(rule, shape, axis, size, wanted):
    found = qparams_for(torch.zeros(shape), "int4", axis=axis, group_size=size, rule=rule)
    assert found.scale.shape == found.zero_point.shape == wanted
    assert found.scale.flatten().tolist() == pytest.approx([1e-8] * int(np.prod(wanted)))


@pytest.mark.parametrize("rule", OBSERVERS)
def test_memory_layout_does_not_matter(rule):
    x = drawn(4, 6, 5, 3)
    slow = rule in ("mse", "kl")  # they try a hundred clips a row
    for axis, size in [(None, None), (1, None), (1, 4), (-1, 2)][: 1 if slow else None]:
        wanted = qparams_for(x, "int4", axis=axis, group_size=size, rule=rule).scale
        last = x.contiguous(memory_format=torch.channels_last)
        turned = x.transpose(0, 3).contiguous().transpose(0, 3)
        for other in (last, turned):
            found = qparams_for(other, "int4", axis=axis, group_size=size, rule=rule).scale
            assert torch.allclose(found, wanted, rtol=1e-6, atol=0)


def test_a_vector_has_a_scale_a_value_along_its_axis():
    found = qparams_for(torch.tensor([7.0, -14.0]), "int4", axis=0)
    assert found.scale.tolist() == [1.0, 2.0]


# rows


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_rows_hold_every_value_once_beside_those_that_share_its_scale(axis):
    x = torch.arange(60.0).view(3, 4, 5)
    rows, shape = rows_of(x, Granularity(axis))
    assert shape == (x.shape[axis],)
    assert [sorted(row) for row in rows.tolist()] == [
        sorted(each.flatten().tolist()) for each in x.movedim(axis, 0)
    ]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_rows_of_groups_are_in_the_order_of_their_scales(axis):
    x = torch.arange(1.0, 61.0).view(3, 4, 5)
    rows, shape = rows_of(x, Granularity(axis, 2))
    assert rows.shape[1] == 2
    first = x.index_select(axis, torch.arange(0, x.shape[axis], 2))
    assert shape == tuple(first.shape)
    assert torch.equal(rows[:, 0].reshape(shape), first)


def test_rows_of_a_tensor_are_one():
    rows, shape = rows_of(torch.arange(6.0).view(2, 3), Granularity())
    assert (rows.tolist(), shape) == ([[0, 1, 2, 3, 4, 5]], ())
    rows, shape = rows_of(torch.tensor(2.0), Granularity())
    assert (rows.tolist(), shape) == ([[2.0]], ())


# what is refused


def refusal(kind, *arguments, **options):
    with pytest.raises(kind) as caught:
        qparams_for(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(("axis", "dims"), [(2, 2), (-3, 2), (1, 1)])
@pytest.mark.parametrize("size", [None, 2])
def test_an_axis_that_is_not_there_is_refused(axis, dims, size):
    x = torch.zeros([3] * dims)
    wanted = f"axis must be {-dims} to {dims - 1} for {dims} axes, got {axis}"
    assert refusal(FormatError, x, "int4", axis=axis, group_size=size) == wanted


def test_a_tensor_without_axes_has_no_axis():
    wanted = "a tensor without axes has no axis 0"
    assert refusal(FormatError, torch.tensor(1.0), "int4", axis=0) == wanted


@pytest.mark.parametrize(("axis", "size"), [(None, 4), (0, 0), (1, -1)])
def test_a_group_size_needs_an_axis_and_is_positive(axis, size):
    wanted = f"group_size must be positive and needs an axis, got {size}"
    assert refusal(FormatError, torch.ones(3, 4), "int4", axis=axis, group_size=size) == wanted
    with pytest.raises(FormatError) as caught:
        Granularity(axis, size)
    assert str(caught.value) == wanted


@pytest.mark.parametrize("name", [name for name in SCALED if name not in INTEGERS])
def test_an_affine_float_is_refused(name):
    wanted = f"format {name} takes no zero point: it is symmetric"
    assert refusal(FormatError, torch.ones(3), name, symmetric=False) == wanted


def test_values_that_are_not_finite_are_refused():
    x = torch.tensor([1.0, float("nan"), -float("inf")])
    wanted = "conv2.weight holds 2 of 3 values that are not finite"
    for name in FORMATS:
        assert refusal(CalibrationError, x, name, name="conv2.weight") == wanted
    assert refusal(CalibrationError, x, "int8").startswith("x holds 2 of 3")


def test_unknown_names_are_refused():
    assert refusal(UnknownNameError, torch.ones(3), "int44").startswith(
        "no format named 'int44' (did you mean 'int4'?); there are: bf16, "
    )
    assert refusal(UnknownNameError, torch.ones(3), "int4", rule="minmix") == (
        "no rule for ranges named 'minmix' (did you mean 'minmax'?); "
        "there are: kl, minmax, moving-average, mse, percentile, rms"
    )


def test_a_plug_in_rule_is_found(monkeypatch):
    class Unit(OBSERVERS["minmax"]):
        def limits(self, number_format, *, symmetric, narrow_range=False):
            low, high = super().limits(number_format, symmetric=symmetric)
            return -torch.ones_like(low), torch.ones_like(high)

    monkeypatch.setitem(OBSERVERS, "unit", Unit)
    assert qparams_for(drawn(3, 4), "int4", axis=0, rule="unit").scale.tolist() == pytest.approx(
        [1 / 7] * 3
    )


def test_observers_of_several_rows_give_scales_of_the_asked_shape():
    observer = OBSERVERS["minmax"]()
    rows, shape = rows_of(torch.arange(1.0, 13.0).view(2, 6), Granularity(1, 3))
    observer.update(rows)
    found = observed_params(
        observer,
        format_named("uint8"),
        symmetric=True,
        granularity=Granularity(1, 3),
        shape=shape,
    )
    assert (found.scale * 255).tolist() == [[3, 6], [9, 12]]
    assert found.zero_point.tolist() == [[0, 0], [0, 0]]
    assert found.granularity == Granularity(1, 3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("axis", "group_size"), [(None, None), (1, None), (1, 4)])
def test_parameters_apply_themselves(symmetric, axis, group_size):
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)) + 0.3
    found = qparams_for(x, "uint4", axis=axis, group_size=group_size, symmetric=symmetric)
    expected = fake_quantize(
        x,
        "uint4",
        scale=found.scale,
        zero_point=found.zero_point,
        axis=axis,
        group_size=group_size,
    )
    assert torch.equal(found.fake_quantize(x, "uint4"), expected)
    assert torch.equal(qparams_for(x, "mxint8", axis=0).fake_quantize(x, "mxint8"),
                       fake_quantize(x, "mxint8", axis=0))  # fmt: skip


def test_what_does_not_fit_a_format_is_refused_at_once():
    x = torch.ones(4, 64)
    cases = {
        "format mxfp4_e2m1 has blocks of 32, got group_size 16": (
            x, "mxfp4_e2m1", {"axis": 1, "group_size": 16},
        ),
        "format bf16 takes no zero point: it is symmetric": (x, "bf16", {"symmetric": False}),
        "x must be a float32 tensor to be quantized, got torch.float64": (x.double(), "int8", {}),
        "axis must be -2 to 1 for 2 axes, got 2": (x, "mxint8", {"axis": 2}),
    }  # fmt: skip
    for text, (values, name, arguments) in cases.items():
        with pytest.raises(FormatError) as caught:
            qparams_for(values, name, **arguments)
        assert str(caught.value) == text

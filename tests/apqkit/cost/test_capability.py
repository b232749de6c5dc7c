import numpy as np
import pytest

from apqkit.cost.capability import (
    ONNXRUNTIME_CPU,
    Capability,
    native_formats,
    non_native,
    offered_natively,
)
from apqkit.errors import CostError, UnknownNameError
from apqkit.formats import FORMATS, NumberFormat


def widths_equal(weights, inputs):
    return inputs.bits in (4, 8) and (weights is None or weights.bits == inputs.bits)


EQUAL_WIDTHS = Capability(
    "4 or 8 bits, both alike", {"conv": widths_equal, "linear": widths_equal, "add": widths_equal}
)


def flagged(capability, layer):
    """One layer by value against the rule of its operation."""
    rule = capability.rules.get(layer.op)
    if rule is None:
        return False
    weights = layer.weight_format and FORMATS[layer.weight_format]
    return not rule(weights, FORMATS[layer.activation_format])


@pytest.mark.parametrize("capability", [EQUAL_WIDTHS, ONNXRUNTIME_CPU])
def test_rows_are_flagged_as_the_rule_of_their_operation_says(capability, tiny_networks):
    found = non_native(capability, tiny_networks)
    assert found.shape == tiny_networks.op.shape
    assert found.any()
    assert not found.all()
    expected = np.zeros_like(found)
    for candidate in range(len(tiny_networks)):
        for layer in tiny_networks.layers(candidate):
            expected[candidate, layer.row] = flagged(capability, layer)
    assert np.array_equal(found, expected)


def test_operations_without_a_rule_take_any_format(tiny_networks):
    assert not non_native(Capability("anything", {}), tiny_networks).any()


def test_native_pairs_by_operation():
    pairs = native_formats(EQUAL_WIDTHS, "conv")
    assert ("int4", "fp4_e2m1") in pairs
    assert ("int4", "int8") not in pairs
    assert {weights for weights, _ in native_formats(EQUAL_WIDTHS, "add")} == {None}
    assert len(pairs) == sum(
        a.bits == b.bits and a.bits in (4, 8) for a in FORMATS.values() for b in FORMATS.values()
    )


def test_on_a_cpu_onnxruntime_computes_int8_with_int8_and_fp32_with_fp32():
    signs = ("int8", "uint8")
    both = {(weights, inputs) for weights in signs for inputs in signs}
    for op in ("conv", "linear"):
        assert native_formats(ONNXRUNTIME_CPU, op) == both | {("fp32", "fp32")}
    for op in ("add", "pool", "global_pool"):
        assert native_formats(ONNXRUNTIME_CPU, op) == {(None, n) for n in (*signs, "fp32")}


def test_a_format_of_a_plug_in_is_judged_by_the_rule(monkeypatch):
    monkeypatch.setitem(FORMATS, "lab4", NumberFormat("lab4", "int", 4, max_value=7.0))
    assert ("lab4", "int4") in native_formats(EQUAL_WIDTHS, "linear")


def test_an_operation_without_a_rule_has_no_list_of_pairs():
    with pytest.raises(UnknownNameError) as caught:
        native_formats(EQUAL_WIDTHS, "ad")
    assert str(caught.value) == (
        "no operation with a rule named 'ad' (did you mean 'add'?); there are: add, conv, linear"
    )


def test_formats_with_a_native_partner_stay_in_their_order():
    offered = offered_natively(EQUAL_WIDTHS, ("int8", "int3", "int4"), ("fp8_e4m3", "int2"))
    assert offered == (("int8",), ("fp8_e4m3",))
    assert offered_natively(ONNXRUNTIME_CPU, ("int4", "fp32", "int8"), ("int8", "fp32")) == (
        ("fp32", "int8"),
        ("int8", "fp32"),
    )


def test_convolutions_and_linear_layers_must_both_agree():
    def in_int8(weights, inputs):
        return inputs.bits == 8

    mixed = Capability("", {"conv": in_int8, "linear": widths_equal})
    assert offered_natively(mixed, ("int4", "int8"), ("int4", "int8")) == (("int8",), ("int8",))


def test_nothing_native_is_refused():
    with pytest.raises(CostError) as caught:
        offered_natively(ONNXRUNTIME_CPU, ("int4", "int3"), ("int8", "int4"))
    assert str(caught.value) == (
        "no pair of weight formats int4, int3 and input formats int8, int4 is native to the "
        "device: it computes int8 with int8, and fp32"
    )


def test_an_unknown_format_is_named():
    with pytest.raises(UnknownNameError) as caught:
        offered_natively(ONNXRUNTIME_CPU, ("int9",), ("int8",))
    assert str(caught.value).startswith("no format named 'int9' (did you mean")

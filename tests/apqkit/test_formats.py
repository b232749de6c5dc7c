import ml_dtypes
import numpy as np
import pytest

from apqkit.errors import FormatError, UnknownNameError
from apqkit.formats import (
    FORMATS,
    NumberFormat,
    format_code,
    format_named,
    format_of_code,
)

FLOATS = {
    "fp32": np.float32,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
INTEGERS = {
    "int2": ml_dtypes.int2,
    "int4": ml_dtypes.int4,
    "int8": np.int8,
    "uint2": ml_dtypes.uint2,
    "uint4": ml_dtypes.uint4,
    "uint8": np.uint8,
}
NAMES = (
    "fp32, fp4_e2m1, fp8_e4m3, fp8_e5m2, int2, int3, int4, int5, int6, int7, int8, "
    "uint2, uint3, uint4, uint5, uint6, uint7, uint8"
)


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_laid_out_as_the_reference_types(name):
    found, limits = FORMATS[name], ml_dtypes.finfo(FLOATS[name])
    assert found.family == "float"
    assert found.bits == limits.bits
    assert found.exponent_bits == limits.nexp
    assert found.mantissa_bits == limits.nmant
    assert found.min_exponent == limits.minexp
    assert found.max_value == float(limits.max)


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "fp32"])
def test_special_values_are_those_among_all_bit_patterns(name):
    patterns = np.arange(2 ** FORMATS[name].bits, dtype=np.uint8)
    values = patterns.view(FLOATS[name]).astype(np.float32)
    found = {"inf": np.isinf(values).any(), "nan": np.isnan(values).any()}
    assert FORMATS[name].special_values == tuple(kind for kind, there in found.items() if there)


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_levels_are_those_of_the_reference_types(name):
    found, limits = FORMATS[name], ml_dtypes.iinfo(INTEGERS[name])
    assert (found.lowest_level, found.highest_level) == (limits.min, limits.max)
    assert found.max_value == limits.max
    assert found.signed == (limits.min < 0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_an_integer_has_as_many_levels_as_bit_patterns(bits):
    for prefix in ("int", "uint"):
        found = FORMATS[f"{prefix}{bits}"]
        assert found.bits == bits
        assert found.highest_level - found.lowest_level + 1 == 2**bits
        assert found.max_value == found.highest_level
        assert (found.mantissa_bits, found.exponent_bits) == (0, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_the_table_is_keyed_by_name(name):
    assert FORMATS[name].name == name
    assert format_named(name) is FORMATS[name]


@pytest.mark.parametrize("name", FORMATS)
def test_only_fp32_leaves_tensors_alone(name):
    assert FORMATS[name].is_fp32 == (name == "fp32")


@pytest.mark.parametrize(
    ("name", "signed", "expected"),
    [
        ("int4", False, "uint4"),
        ("int4", True, "int4"),
        ("uint4", True, "int4"),
        ("uint4", False, "uint4"),
        ("fp8_e4m3", False, "fp8_e4m3"),
        ("fp32", False, "fp32"),
    ],
)
def test_a_tensor_that_cannot_be_negative_uses_the_unsigned_twin(name, signed, expected):
    assert FORMATS[name].for_sign(signed=signed) is FORMATS[expected]


def test_an_integer_without_a_twin_is_named(monkeypatch):
    monkeypatch.setitem(FORMATS, "int12", NumberFormat("int12", "int", 12, max_value=2047.0))
    with pytest.raises(UnknownNameError) as caught:
        FORMATS["int12"].for_sign(signed=False)
    names = NAMES.replace("int2,", "int12, int2,", 1)
    assert str(caught.value) == (
        f"no format named 'uint12' (did you mean 'uint2'?); there are: {names}"
    )


def test_codes_and_formats_are_one_to_one():
    codes = [format_code(name) for name in FORMATS]
    assert codes == list(range(len(FORMATS)))
    assert [format_of_code(code) for code in codes] == list(FORMATS.values())


def test_a_plug_in_keeps_the_codes_of_the_others(monkeypatch):
    before = [format_code(name) for name in FORMATS]
    monkeypatch.setitem(FORMATS, "posit8", NumberFormat("posit8", "float", 8))
    assert [format_code(name) for name in FORMATS] == [*before, len(before)]


@pytest.mark.parametrize("code", [-1, len(FORMATS)])
def test_a_code_of_no_format_is_refused(code):
    with pytest.raises(FormatError) as caught:
        format_of_code(code)
    assert str(caught.value) == f"a format's code must be 0 to 17, got {code}"


@pytest.mark.parametrize("ask", [format_named, format_code])
def test_an_unknown_format_is_named(ask):
    with pytest.raises(UnknownNameError) as caught:
        ask("fp8_e4m4")
    assert str(caught.value) == (
        f"no format named 'fp8_e4m4' (did you mean 'fp8_e4m3'?); there are: {NAMES}"
    )


def test_formats_cannot_be_changed():
    with pytest.raises(AttributeError):
        FORMATS["int4"].bits = 5  # type: ignore[misc]

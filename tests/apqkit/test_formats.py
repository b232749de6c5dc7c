import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from apqkit.errors import ConfigError, FormatError, UnknownNameError
from apqkit.formats import (
    FORMATS,
    NumberFormat,
    format_code,
    format_named,
    format_of_code,
    space_format,
)

FLOATS = {
    "fp32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e3m4": ml_dtypes.float8_e3m4,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
INTEGERS = {
    "int2": ml_dtypes.int2,
    "int4": ml_dtypes.int4,
    "int8": np.int8,
    "int16": np.int16,
    "uint2": ml_dtypes.uint2,
    "uint4": ml_dtypes.uint4,
    "uint8": np.uint8,
    "uint16": np.uint16,
}
MX_ELEMENTS = {
    "mxfp8_e4m3": "fp8_e4m3",
    "mxfp8_e5m2": "fp8_e5m2",
    "mxfp6_e2m3": "fp6_e2m3",
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp4_e2m1": "fp4_e2m1",
}
NAMES = (
    "bf16, fp32, fp4_e2m1, fp6_e2m3, fp6_e3m2, fp8_e3m4, fp8_e4m3, fp8_e5m2, "
    "int16, int2, int3, int4, int5, int6, int7, int8, "
    "mxfp4_e2m1, mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2, mxint8, nvfp4, "
    "uint16, uint2, uint3, uint4, uint5, uint6, uint7, uint8"
)


def test_the_table_holds_these_formats():
    assert ", ".join(sorted(FORMATS)) == NAMES


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_laid_out_as_the_reference_types(name):
    found, limits = FORMATS[name], ml_dtypes.finfo(FLOATS[name])
    assert found.family == "float"
    assert found.bits == limits.bits
    assert found.exponent_bits == limits.nexp
    assert found.mantissa_bits == limits.nmant
    assert found.min_exponent == limits.minexp
    assert found.max_value == float(limits.max)
    assert (found.signed, found.block_size, found.scale_format) == (True, 0, "fp32")


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "fp32"])
def test_special_values_are_those_among_all_bit_patterns(name):
    bits = FORMATS[name].bits
    patterns = np.arange(2**bits, dtype=np.uint8 if bits <= 8 else np.uint16)
    values = patterns.view(FLOATS[name]).astype(np.float32)
    found = {"inf": np.isinf(values).any(), "nan": np.isnan(values).any()}
    assert FORMATS[name].special_values == tuple(kind for kind, there in found.items() if there)
    assert np.nanmax(values[~np.isinf(values)]) == FORMATS[name].max_value


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_levels_are_those_of_the_reference_types(name):
    found, limits = FORMATS[name], ml_dtypes.iinfo(INTEGERS[name])
    assert (found.lowest_level, found.highest_level) == (limits.min, limits.max)
    assert found.max_value == limits.max
    assert found.signed == (limits.min < 0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
def test_an_integer_has_as_many_levels_as_bit_patterns(bits):
    for prefix in ("int", "uint"):
        found = FORMATS[f"{prefix}{bits}"]
        assert found.bits == bits
        assert found.highest_level - found.lowest_level + 1 == 2**bits
        assert found.max_value == found.highest_level
        assert (found.mantissa_bits, found.exponent_bits) == (0, 0)


@pytest.mark.parametrize(("name", "element"), MX_ELEMENTS.items())
def test_microscaling_blocks_of_32_hold_floats_with_powers_of_two_as_scales(name, element):
    found, plain = FORMATS[name], FORMATS[element]
    assert (found.family, found.block_size, found.scale_format) == ("mx", 32, "e8m0")
    for part in ("bits", "exponent_bits", "mantissa_bits", "min_exponent", "max_value"):
        assert getattr(found, part) == getattr(plain, part)
    assert found.special_values == plain.special_values


def test_mxint8_holds_integers_over_64():
    found = FORMATS["mxint8"]
    assert (found.family, found.bits, found.block_size, found.scale_format) == (
        "mx",
        8,
        32,
        "e8m0",
    )
    assert found.max_value == 127 / 64
    assert (found.exponent_bits, found.mantissa_bits) == (0, 0)


def test_nvfp4_has_blocks_of_16_with_fp8_scales():
    found = FORMATS["nvfp4"]
    assert (found.family, found.bits, found.block_size, found.scale_format) == (
        "mx",
        4,
        16,
        "fp8_e4m3",
    )
    assert (found.max_value, found.exponent_bits, found.mantissa_bits) == (6.0, 2, 1)
    assert found.scale_format in FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_scales_from_outside_are_for_integers_and_floats_of_at_most_8_bits(name):
    without = {"fp32", "bf16", "mxint8", "nvfp4", *MX_ELEMENTS}
    assert FORMATS[name].is_scaled == (name not in without)


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
        ("int16", False, "uint16"),
        ("uint4", True, "int4"),
        ("uint4", False, "uint4"),
        ("fp8_e4m3", False, "fp8_e4m3"),
        ("mxint8", False, "mxint8"),
        ("nvfp4", False, "nvfp4"),
        ("bf16", False, "bf16"),
        ("fp32", False, "fp32"),
    ],
)
def test_a_tensor_that_cannot_be_negative_uses_the_unsigned_twin(name, signed, expected):
    assert FORMATS[name].for_sign(signed=signed) is FORMATS[expected]


def test_an_integer_without_a_twin_is_named(monkeypatch):
    monkeypatch.setitem(FORMATS, "int12", NumberFormat("int12", "int", 12, max_value=2047.0))
    with pytest.raises(UnknownNameError) as caught:
        FORMATS["int12"].for_sign(signed=False)
    names = NAMES.replace("int16,", "int12, int16,", 1)
    assert str(caught.value) == (
        f"no format named 'uint12' (did you mean 'uint2'?); there are: {names}"
    )


BLOCKS = [name for name, each in FORMATS.items() if each.block_size]


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if not name.startswith("uint") and name not in BLOCKS]
)
def test_a_space_offers_formats_named_without_sign(name):
    assert space_format(name) is FORMATS[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_space_does_not_offer_what_no_exported_model_can_hold(name):
    with pytest.raises(ConfigError) as caught:
        space_format(name)
    assert str(caught.value) == (
        f"space formats must have an ONNX form, got {name!r}: "
        "block formats are emulated only, see apqkit.quant.prepare"
    )


@pytest.mark.parametrize("name", ["uint2", "uint8", "uint16"])
def test_a_space_does_not_offer_a_sign(name):
    with pytest.raises(ConfigError) as caught:
        space_format(name)
    assert str(caught.value) == (
        f"space formats are named without sign, got {name!r}: "
        "tensors that cannot be negative use the unsigned twin by themselves"
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
    assert str(caught.value) == f"a format's code must be 0 to 30, got {code}"


@pytest.mark.parametrize("ask", [format_named, format_code, space_format])
def test_an_unknown_format_is_named(ask):
    with pytest.raises(UnknownNameError) as caught:
        ask("fp8_e4m4")
    assert str(caught.value) == (
        f"no format named 'fp8_e4m4' (did you mean 'fp8_e4m3'?); there are: {NAMES}"
    )


def test_formats_cannot_be_changed():
    with pytest.raises(AttributeError):
        FORMATS["int4"].bits = 5  # type: ignore[misc]


def test_formats_and_carriers_load_without_torch():
    code = "import apqkit.formats, apqkit.quant.carriers, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

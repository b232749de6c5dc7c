"""Number formats as data: how many bits, which values. Imports no torch.

A candidate names a format by width and family (``int4``). Where the tensor cannot be negative,
such as after a ReLU, the same pick uses the unsigned twin (``uint4``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from apqkit.errors import ConfigError, FormatError
from apqkit.registry import lookup

__all__ = [
    "FORMATS",
    "SMALLEST_SCALE",
    "NumberFormat",
    "format_code",
    "format_named",
    "format_of_code",
    "space_format",
]

Family = Literal["int", "float", "mx"]

SMALLEST_SCALE = 1e-8
"""The least scale: an all-zero tensor must not divide by zero."""

_MINIFLOAT_BITS = 8
_MX_BLOCK, _NV_BLOCK = 32, 16


@dataclass(frozen=True)
class NumberFormat:
    """One number format.

    Attributes:
        name: The name used in TOML, tables, code and reports.
        family: ``int`` (integer levels times a scale), ``float`` (minifloat times a scale) or
            ``mx`` (blocks of small values, each block with a scale of its own).
        bits: Storage bits a value, without its share of a block's scale.
        signed: False for the unsigned integers.
        exponent_bits: Exponent field of a float, or of a block's values; 0 for integers.
        max_value: Largest finite value before scaling (for integers the highest level).
        special_values: Which non-finite values the format can hold: any of "inf", "nan".
        block_size: Values that share one scale along the reduction axis; 0 when scales are given
            per tensor or per channel.
        scale_format: How a scale is stored: ``fp32``, ``e8m0`` for powers of two, or the name of
            a float format.
    """

    name: str
    family: Family
    bits: int
    signed: bool = True
    exponent_bits: int = 0
    max_value: float = 0.0
    special_values: tuple[str, ...] = ()
    block_size: int = 0
    scale_format: str = "fp32"

    @property
    def mantissa_bits(self) -> int:
        """Stored mantissa bits of a float, or of a block's floats; 0 for integers."""
        return self.bits - 1 - self.exponent_bits if self.exponent_bits else 0

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value of a float."""
        return 2 - int(2 ** (self.exponent_bits - 1))

    @property
    def lowest_level(self) -> int:
        """Lowest integer level in full range: -2^(b-1) when signed, else 0."""
        return -int(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def highest_level(self) -> int:
        """Highest integer level: 2^(b-1) - 1 when signed, else 2^b - 1."""
        return int(2 ** (self.bits - 1)) - 1 if self.signed else int(2**self.bits) - 1

    @property
    def is_scaled(self) -> bool:
        """True if a tensor needs scales from outside: all but fp32, bf16 and block formats."""
        return self.family == "int" or (self.family == "float" and self.bits <= _MINIFLOAT_BITS)

    @property
    def is_fp32(self) -> bool:
        """True if tensors in this format are left alone."""
        return self.family == "float" and self.bits == 32

    def for_sign(self, *, signed: bool) -> "NumberFormat":
        """Returns the format a tensor uses: the unsigned twin of an integer where it helps.

        Raises:
            UnknownNameError: An integer format has no twin in ``FORMATS``.
        """
        if self.family != "int" or self.signed == signed:
            return self
        return format_named(self.name.removeprefix("u") if signed else f"u{self.name}")


def _integers(widths: Iterable[int]) -> list[NumberFormat]:
    signed = [NumberFormat(f"int{b}", "int", b, max_value=2.0 ** (b - 1) - 1) for b in widths]
    unsigned = [
        NumberFormat(f"uint{b}", "int", b, signed=False, max_value=2.0**b - 1) for b in widths
    ]
    return signed + unsigned


def _block_format(name: str, element: NumberFormat) -> NumberFormat:
    """Returns the microscaling format whose blocks hold values of an element format."""
    return replace(element, name=name, family="mx", block_size=_MX_BLOCK, scale_format="e8m0")


def _by_name(formats: Iterable[NumberFormat]) -> dict[str, NumberFormat]:
    return {each.name: each for each in formats}


_FP8_E4M3 = NumberFormat(
    "fp8_e4m3", "float", 8, exponent_bits=4, max_value=448.0, special_values=("nan",)
)
_FP8_E5M2 = NumberFormat(
    "fp8_e5m2", "float", 8, exponent_bits=5, max_value=57344.0, special_values=("inf", "nan")
)
_FP6_E2M3 = NumberFormat("fp6_e2m3", "float", 6, exponent_bits=2, max_value=7.5)
_FP6_E3M2 = NumberFormat("fp6_e3m2", "float", 6, exponent_bits=3, max_value=28.0)
_FP4_E2M1 = NumberFormat("fp4_e2m1", "float", 4, exponent_bits=2, max_value=6.0)

FORMATS: dict[str, NumberFormat] = _by_name(
    [
        NumberFormat(
            "fp32",
            "float",
            32,
            exponent_bits=8,
            max_value=3.4028234663852886e38,
            special_values=("inf", "nan"),
        ),
        *_integers((2, 3, 4, 5, 6, 7, 8, 16)),
        _FP8_E4M3,
        _FP8_E5M2,
        NumberFormat(
            "fp8_e3m4", "float", 8, exponent_bits=3, max_value=15.5, special_values=("inf", "nan")
        ),
        _FP6_E2M3,
        _FP6_E3M2,
        _FP4_E2M1,
        NumberFormat(
            "bf16",
            "float",
            16,
            exponent_bits=8,
            max_value=3.3895313892515355e38,
            special_values=("inf", "nan"),
        ),
        # Values of mxint8 are integers over 64, from -127/64 to 127/64.
        _block_format("mxint8", NumberFormat("int8", "int", 8, max_value=127 / 64)),
        _block_format("mxfp8_e4m3", _FP8_E4M3),
        _block_format("mxfp8_e5m2", _FP8_E5M2),
        _block_format("mxfp6_e2m3", _FP6_E2M3),
        _block_format("mxfp6_e3m2", _FP6_E3M2),
        _block_format("mxfp4_e2m1", _FP4_E2M1),
        replace(
            _FP4_E2M1, name="nvfp4", family="mx", block_size=_NV_BLOCK, scale_format="fp8_e4m3"
        ),
    ]
)
"""Every known format by name. A plug-in adds to this dict."""


def format_named(name: str) -> NumberFormat:
    """Returns the format of that name.

    Raises:
        UnknownNameError: There is none; the text lists those that exist.
    """
    return lookup(FORMATS, name, "format")


def space_format(name: str) -> NumberFormat:
    """Returns the format of that name, for a search space to offer.

    Raises:
        UnknownNameError: No format of that name.
        ConfigError: It is named with its sign, which follows from the tensor, or no exported model
            can hold it.
    """
    found = format_named(name)
    if found.block_size:
        raise ConfigError(
            f"space formats must have an ONNX form, got {name!r}: "
            f"block formats are emulated only, see apqkit.quant.prepare"
        )
    if not found.signed:
        raise ConfigError(
            f"space formats are named without sign, got {name!r}: "
            f"tensors that cannot be negative use the unsigned twin by themselves"
        )
    return found


def format_code(name: str) -> int:
    """Returns the small integer that stands for a format in a network table."""
    return list(FORMATS).index(format_named(name).name)


def format_of_code(code: int) -> NumberFormat:
    """Returns the format that a network table's integer stands for.

    Raises:
        FormatError: No format has that code; -1 stands for none.
    """
    if not 0 <= code < len(FORMATS):
        raise FormatError(f"a format's code must be 0 to {len(FORMATS) - 1}, got {code}")
    return list(FORMATS.values())[code]

"""Which plain integers hold the values of a format exactly."""

from apqkit.formats import NumberFormat

__all__ = ["carrier_bits", "value_step"]

_CARRIERS = (8, 16)


def value_step(number_format: NumberFormat) -> float | None:
    """Returns the step, in scales, of which every value of a scaled format is a multiple.

    It is 1 for integers and the smallest positive value for minifloats: fp4 is 0 .5 1 1.5 2 3 4 6,
    so multiples of 1/2 hold it. None for formats that have no scale of their own.

    >>> from apqkit.formats import format_named
    >>> value_step(format_named("fp4_e2m1"))
    0.5
    """
    if not number_format.is_scaled:
        return None
    if number_format.family == "int":
        return 1.0
    return float(2.0 ** (number_format.min_exponent - number_format.mantissa_bits))


def carrier_bits(number_format: NumberFormat) -> int | None:
    """Returns the bits, 8 or 16, of signed or unsigned integers that hold all steps of a format.

    None for a format that spans too much, such as fp8_e4m3.

    >>> from apqkit.formats import format_named
    >>> [carrier_bits(format_named(name)) for name in ("fp4_e2m1", "fp8_e3m4", "fp8_e4m3")]
    [8, 16, None]
    """
    step = value_step(number_format)
    if step is None:
        return None
    if number_format.family == "int":
        return next((bits for bits in _CARRIERS if bits >= number_format.bits), None)
    largest = number_format.max_value / step
    return next((bits for bits in _CARRIERS if largest < 2.0 ** (bits - 1)), None)

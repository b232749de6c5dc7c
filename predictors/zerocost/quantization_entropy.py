"""Entropy that a network of Gaussian weights keeps when rounded.  Letters: L layers, F formats."""

import math

import numpy as np

from predictors.zerocost.arrays import FloatArray
from predictors.zerocost.errors import ProxyError

__all__ = ["quantization_entropy", "rounded_deviation"]

_TAIL = 40.0  # deviations beyond which a Gaussian holds nothing that float64 can add


def rounded_deviation(deviation: float, bits: float) -> float:
    """Returns the standard deviation of rounded Gaussian numbers of mean 0.

    Numbers are rounded to whole steps and clipped to -2**(bits-1)..2**(bits-1).

    Args:
        deviation: Of the numbers, in steps, above 0. Up to about 2 hardly any is clipped, so that
            the result does not depend on the bits: 1.0408 at deviation 1 for 3 bits and for 8.
        bits: 1 or more; all formats of a width count alike.

    Raises:
        ProxyError: A number out of range.

    >>> round(rounded_deviation(4.0, 3), 6), round(rounded_deviation(4.0, 8), 6)
    (2.890394, 4.010403)
    """
    if not 0.0 < deviation < math.inf:
        raise ProxyError(f"a deviation must be above 0 and finite, got {deviation}")
    if not bits >= 1.0:
        raise ProxyError(f"bits must be 1 or more, got {bits}")
    reach = math.ceil(_TAIL * deviation) + 1
    largest = reach if bits > 60.0 else min(reach, int(2.0 ** (bits - 1.0)))
    # The mean square is the sum over k of (k**2 - (k-1)**2) * P(magnitude >= k).
    return math.sqrt(
        math.fsum(
            (2 * k - 1) * math.erfc((k - 0.5) / (deviation * math.sqrt(2.0)))
            for k in range(1, largest + 1)
        )
    )


def quantization_entropy(
    fan_in: FloatArray,
    bits: FloatArray,
    activation_bits: FloatArray,
    *,
    weight_deviation: float = 4.0,
    activation_deviation: float = 5.0,
) -> FloatArray:
    """Returns what each layer adds to the logarithm of the deviation of the last features.

    log(D(activation_deviation, activation bits) * D(weight_deviation, bits) * sqrt(fan-in) /
    activation_deviation), D being :func:`rounded_deviation`; Sun et al., Entropy-Driven
    Mixed-Precision Quantization for Deep Network Design, NeurIPS 2022, with the deviations of the
    authors' search for quantized networks. Deviations of 1 make it blind to bits. The authors sum
    up the layers up to each of five stages, add the logarithm of the stage's channels, and weigh
    the stages 0, 0, 1, 1, 6: multiply the rows by the sum of the weights of all stages from a
    layer's own on to do so; the channels are the same for all formats.

    Args:
        fan_in: (L,) weights that one output reads.
        bits: (F,) of weights.
        activation_bits: (F,) of the layer's inputs.
        weight_deviation: Of weights, in steps.
        activation_deviation: Of inputs, in steps.

    Returns:
        (L, F); larger predicts better.

    Raises:
        ProxyError: A number out of range.
    """
    kept = [
        math.log(rounded_deviation(weight_deviation, width))
        + math.log(
            rounded_deviation(activation_deviation, activation_width) / activation_deviation
        )
        for width, activation_width in zip(bits, activation_bits, strict=True)
    ]
    entropy: FloatArray = 0.5 * np.log(fan_in)[:, None] + np.array(kept)
    return entropy

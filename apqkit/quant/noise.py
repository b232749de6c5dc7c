"""How much noise a format adds to a reference distribution."""

from functools import lru_cache

import numpy as np
import torch

from apqkit.formats import format_named
from apqkit.quant.blocks import fake_quantize_blocks
from apqkit.quant.quantize import unchecked_fake_quantize
from apqkit.quant.ranges import activation_scale

__all__ = ["gaussian_noise"]


@lru_cache(maxsize=256)
def gaussian_noise(name: str, *, signed: bool = True) -> float:
    """Returns the root mean squared error of a format on a unit Gaussian (rectified if unsigned).

    It is measured through the real quantizer and range rule on 4,095 quantiles, relative to the
    root mean square of the values. 0 for fp32. Block formats see the quantiles in random order.

    >>> gaussian_noise("int8") < gaussian_noise("int4") < gaussian_noise("int3")
    True
    """
    number_format = format_named(name).for_sign(signed=signed)
    probabilities = torch.from_numpy((np.arange(4095) + 0.5) / 4095)
    values = torch.special.ndtri(probabilities).float()
    values = values if signed else values.clamp(min=0.0)
    if number_format.block_size:
        order = np.random.default_rng(0).permutation(len(values))
        values = values[torch.from_numpy(order)]
        found = fake_quantize_blocks(values, number_format)
    else:
        scale = None
        if number_format.is_scaled:
            scale = activation_scale(values, number_format, signed=signed)
        found = unchecked_fake_quantize(values, number_format, scale, narrow_range=signed)
    return float((found - values).square().mean().sqrt() / values.square().mean().sqrt())

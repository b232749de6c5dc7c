"""Rounding to whole numbers, and the gradient that passes straight through it."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["just_above", "pass_within", "round_in_place"]


def round_in_place(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rounds x to whole numbers, in place, and returns it.

    Args:
        x: fp32 tensor of any shape.
        generator: None rounds to nearest, ties to even. With a generator, x becomes
            floor(x + u) with u uniform in [0, 1): right on average, as gradients want it.
    """
    if generator is None:
        return x.round_()
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    whole = torch.floor(x)  # x + u may round up to the next number, so compare what is left over
    return x.sub_(whole).gt_(noise).add_(whole)


def just_above(value: float) -> float:
    """Returns the fp32 number next to a positive one, so that bounds can be strict."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def pass_within(gradient: Tensor, values: Tensor, low: float, high: float) -> Tensor:
    """Returns a gradient where low < values < high, and 0 elsewhere.

    One pass of a kernel made for clamps; a product with a mask takes several times as long.
    """
    passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, values, low, high)
    return passed

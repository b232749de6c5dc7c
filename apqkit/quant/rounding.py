"""Rounding to whole numbers: to nearest with ties to even, or at random."""

import torch
from torch import Tensor

__all__ = ["round_in_place"]


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

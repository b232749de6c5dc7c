"""Observers: what is seen of a tensor, batch after batch, and the range that follows from it.

Each takes rows, (r, n) values that share one range a row, and gives (r,) lowest and highest values
that a quantizer should hold. A plug-in adds a class to ``OBSERVERS``.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from apqkit.formats import NumberFormat
from apqkit.quant.quantize import unchecked_fake_quantize
from apqkit.quant.ranges import clip_multiple, params_of_range

__all__ = ["OBSERVERS", "Observer"]

_BINS = 4096  # of a histogram, over both signs
_FRACTIONS = 100  # of the range that are tried
_PERCENTILE = 0.9999
_MOMENTUM = 0.1
_LOST_MASS = 20.0  # the price, in nats, of values that the quantized distribution has none of
_WIDEST_SEARCHED = 8  # bits; finer formats than a histogram's bins keep the whole range


class Observer(ABC):
    """What was seen of one tensor."""

    @abstractmethod
    def update(self, rows: Tensor) -> None:
        """Takes in a batch, (r, n) finite values with n > 0; r is always the same."""

    @abstractmethod
    def limits(
        self, number_format: NumberFormat, *, symmetric: bool, narrow_range: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns the (r,) lowest and highest values to hold in a format of the right sign."""


class MinMax(Observer):
    """Lowest and highest value of all batches."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def update(self, rows: Tensor) -> None:
        """Takes in a batch."""
        low, high = torch.aminmax(rows, dim=1)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def limits(
        self, number_format: NumberFormat, *, symmetric: bool, narrow_range: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns the range that was seen."""
        del number_format, symmetric, narrow_range
        assert self._low is not None
        assert self._high is not None
        return self._low, self._high


class MovingAverage(Observer):
    """Mean of the batches' lowest and highest values, later batches first (momentum 0.1)."""

    def __init__(self) -> None:
        self._ends: Tensor | None = None

    def update(self, rows: Tensor) -> None:
        """Takes in a batch."""
        ends = torch.stack(torch.aminmax(rows, dim=1))
        self._ends = ends if self._ends is None else torch.lerp(self._ends, ends, _MOMENTUM)

    def limits(
        self, number_format: NumberFormat, *, symmetric: bool, narrow_range: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns the averaged range."""
        del number_format, symmetric, narrow_range
        assert self._ends is not None
        return self._ends[0], self._ends[1]


class RootMeanSquare(Observer):
    """The whole range, but for few bits no more than a multiple of the root mean square."""

    def __init__(self) -> None:
        self._range = MinMax()
        self._squares: Tensor | None = None
        self._count = 0

    def update(self, rows: Tensor) -> None:
        """Takes in a batch."""
        self._range.update(rows)
        squares = rows.square().sum(dim=1)
        self._squares = squares if self._squares is None else self._squares + squares
        self._count += rows.shape[1]

    def limits(
        self, number_format: NumberFormat, *, symmetric: bool, narrow_range: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns the range that was seen, clipped as :mod:`apqkit.quant.ranges` says."""
        low, high = self._range.limits(number_format, symmetric=symmetric)
        del narrow_range
        signed = number_format.signed or (not symmetric and bool((low < 0).any()))
        multiple = clip_multiple(number_format, signed=signed)
        if multiple is None:
            return low, high
        assert self._squares is not None
        reach = multiple * (self._squares / self._count).sqrt()
        return torch.maximum(low, -reach), torch.minimum(high, reach)


class Histogram(Observer):
    """Counts of values in equal bins over a symmetric range that doubles when it must."""

    def __init__(self) -> None:
        self._range = MinMax()
        self._reach: Tensor | None = None
        self._counts: Tensor | None = None

    def update(self, rows: Tensor) -> None:
        """Takes in a batch."""
        self._range.update(rows)
        largest = rows.abs().amax(dim=1)
        if self._counts is None or self._reach is None:
            self._reach = largest.double().clamp(min=torch.finfo(rows.dtype).tiny)
            self._counts = rows.new_zeros((len(rows), _BINS), dtype=torch.float64)
        self._widen(largest)
        bins = (rows / self._reach[:, None]).add_(1.0).mul_(_BINS / 2).long().clamp_(0, _BINS - 1)
        self._counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))

    def _widen(self, largest: Tensor) -> None:
        assert self._reach is not None
        assert self._counts is not None
        # In fp64: a row of zeros alone may be followed by values 2^254 times as large.
        doublings = torch.ceil(torch.log2(largest / self._reach)).clamp_(min=0.0)
        if not bool(doublings.any()):
            return
        factor = torch.exp2(doublings)
        offset = torch.arange(_BINS, device=factor.device) - (_BINS - 1) / 2
        bins = torch.floor(offset / factor[:, None] + _BINS / 2).long()
        self._counts = torch.zeros_like(self._counts).scatter_add_(1, bins, self._counts)
        self._reach = self._reach * factor

    @property
    def _seen(self) -> tuple[Tensor, Tensor]:
        """(r, bins) middles of the bins and how many values lie in each."""
        assert self._reach is not None
        assert self._counts is not None
        middles = (torch.arange(_BINS, device=self._reach.device) + 0.5) * (2 / _BINS) - 1.0
        largest = torch.finfo(torch.float32).max
        return (self._reach[:, None] * middles).clamp_(-largest, largest).float(), self._counts

    def _within(self, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the range that was seen, cut at +-reach."""
        low, high = self._range._low, self._range._high
        assert low is not None
        assert high is not None
        return torch.maximum(low, -reach), torch.minimum(high, reach)


class Percentile(Histogram):
    """The range that holds 99.99 % of the magnitudes, to the width of a bin of 4,096."""

    def limits(
        self, number_format: NumberFormat, *, symmetric: bool, narrow_range: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns the range without the largest magnitudes."""
        del number_format, symmetric, narrow_range
        middles, counts = self._seen
        half = _BINS // 2
        folded = counts[:, half:] + counts[:, :half].flip(1)
        share = folded.cumsum(dim=1) / folded.sum(dim=1, keepdim=True)
        last = (share < _PERCENTILE).sum(dim=1, keepdim=True).clamp_(max=half - 1)
        width = middles[:, half : half + 1] * 2
        return self._within((middles[:, half:].gather(1, last) + width / 2)[:, 0])


class _Searched(Histogram):
    """Tries a hundred clips of the range and takes the one that loses least."""

    @abstractmethod
    def _loss(self, middles: Tensor, counts: Tensor, quantized: Tensor) -> Tensor:
        """Returns the (r,) fp64 loss for (r, bins) middles, counts and quantized middles."""

    def limits(
        self, number_format: NumberFormat, *, symmetric: bool, narrow_range: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns the best of the clips; the whole range for formats of more than 8 bits."""
        middles, counts = self._seen
        low, high = self._range.limits(number_format, symmetric=symmetric)
        if number_format.bits > _WIDEST_SEARCHED:
            return low, high
        largest = torch.maximum(low.abs(), high.abs())
        best = torch.full_like(largest, float("inf"), dtype=torch.float64)
        reach = largest
        for step in range(_FRACTIONS, 0, -1):
            tried = largest * (step / _FRACTIONS)
            scale, zero_point = params_of_range(
                *self._within(tried), number_format, symmetric=symmetric
            )
            quantized = unchecked_fake_quantize(
                middles,
                number_format,
                scale[:, None],
                zero_point[:, None],
                narrow_range=narrow_range,
            )
            loss = self._loss(middles, counts, quantized)
            reach = torch.where(loss < best, tried, reach)
            best = torch.minimum(best, loss)
        return self._within(reach)


class MeanSquaredError(_Searched):
    """The clip with the least mean squared error of the quantized values.

    Few values, such as those of a group of weights, are kept as they are; more go into bins.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: Tensor | None = None

    def update(self, rows: Tensor) -> None:
        """Takes in a batch."""
        if self._counts is None:
            rows = rows if self._values is None else torch.cat([self._values, rows], dim=1)
            if rows.shape[1] <= _BINS:
                self._range.update(rows)
                self._values = rows
                return
            self._values = None
        super().update(rows)

    @property
    def _seen(self) -> tuple[Tensor, Tensor]:
        if self._values is None:
            return super()._seen
        return self._values, torch.ones_like(self._values, dtype=torch.float64)

    def _loss(self, middles: Tensor, counts: Tensor, quantized: Tensor) -> Tensor:
        return ((quantized - middles).double().square() * counts).sum(dim=1)


class KullbackLeibler(_Searched):
    """The clip whose quantized distribution is nearest to the whole one in relative entropy.

    The mass of a level is shared evenly among the bins with values that it stands for, as in
    post-training calibration by entropy; what is clipped piles up in the outermost bins.
    """

    def _loss(self, middles: Tensor, counts: Tensor, quantized: Tensor) -> Tensor:
        width = middles[:, -1:] - middles[:, -2:-1]
        low, high = quantized[:, :1], quantized[:, -1:]  # levels rise with the bins
        held = (middles >= low - width) & (middles <= high + width)
        kept = counts * held
        reference = _normalized(kept + _piled_up(counts, held))
        model = _normalized(_shared_among_levels(kept, quantized))
        both = (reference > 0) & (model > 0)
        terms = torch.where(both, reference * (reference / model.where(both, 1.0)).log(), 0.0)
        lost = torch.where(both, 0.0, reference).sum(dim=1)
        return torch.nan_to_num(terms).sum(dim=1) + _LOST_MASS * lost


def _piled_up(counts: Tensor, held: Tensor) -> Tensor:
    """Returns (r, bins) of what lies outside the held bins, at the first and last of them."""
    first = held.to(torch.uint8).argmax(dim=1, keepdim=True)
    last = held.shape[1] - 1 - held.flip(1).to(torch.uint8).argmax(dim=1, keepdim=True)
    index = torch.arange(held.shape[1], device=held.device)
    piled = torch.zeros_like(counts)
    piled.scatter_add_(1, first, (counts * (index < first)).sum(dim=1, keepdim=True))
    return piled.scatter_add_(1, last, (counts * (index > last)).sum(dim=1, keepdim=True))


def _shared_among_levels(kept: Tensor, quantized: Tensor) -> Tensor:
    """Returns (r, bins) with the mass of each level spread evenly over its bins with values."""
    level = torch.zeros_like(kept, dtype=torch.int64)
    level[:, 1:] = (quantized.diff(dim=1) != 0).cumsum(dim=1)
    filled = (kept > 0).double()
    mass = torch.zeros_like(kept).scatter_add_(1, level, kept)
    bins = torch.zeros_like(kept).scatter_add_(1, level, filled)
    return filled * (mass / bins.clamp(min=1.0)).gather(1, level)


def _normalized(counts: Tensor) -> Tensor:
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)


OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquaredError,
    "kl": KullbackLeibler,
    "rms": RootMeanSquare,
}
"""Rules for ranges by name."""

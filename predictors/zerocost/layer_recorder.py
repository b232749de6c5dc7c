"""Watches what enters and leaves the layers that own weights.  Letters: b samples, L layers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from predictors.zerocost.arrays import FloatArray, fixed
from predictors.zerocost.orthogonality import centred_gram
from predictors.zerocost.passes import named_weights

__all__ = ["InputStatistics", "LayerRecorder"]


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What enters the layers, over all samples and elements; NaN where nothing was seen.

    Attributes:
        mean: (L,)
        std: (L,) of the population.
        abs_max: (L,)
        second_moment: (L,) mean of the squares.
    """

    mean: FloatArray
    std: FloatArray
    abs_max: FloatArray
    second_moment: FloatArray


@dataclass
class _Seen:
    """Running sums over the calls of the modules that own a weight."""

    elements: int = 0
    total: float = 0.0
    squares: float = 0.0
    abs_max: float = 0.0
    macs: float = math.nan
    gram: Tensor | None = None

    def add_input(self, x: Tensor) -> None:
        self.elements += x.numel()
        self.total += float(x.sum(dtype=torch.float64))
        self.squares += float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
        self.abs_max = max(self.abs_max, float(x.abs().amax()))

    def add_macs(self, macs: float) -> None:
        self.macs = macs if math.isnan(self.macs) else self.macs + macs

    def add_output(self, x: Tensor) -> None:
        gram = centred_gram(x)
        self.gram = gram if self.gram is None else self.gram + gram


class LayerRecorder:
    """Sums up inputs, outputs and multiplications of each weight's layer.

    A layer is the module, of any class, that owns a parameter with two or more axes; several that
    share a parameter count as one. Its input is the first tensor it is called with; what is called
    several times adds up. Tensors whose first axis is not the batch are left aside, and so is a
    weight whose owner is never called, as the output projection of ``nn.MultiheadAttention``.
    Multiplications are unknown where an owner has several weights, or returns nothing that has as
    many channels as the weight has rows.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        self._model = model
        self._samples = samples
        self._seen = {name: _Seen() for name in named_weights(model)}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Starts watching."""
        names = {each: name for name, each in named_weights(self._model).items()}
        for module in self._model.modules():
            owned = [names[each] for each in module.parameters(recurse=False) if each in names]
            if owned:
                entering, leaving = self._watchers(owned)
                hook = module.register_forward_pre_hook(entering, with_kwargs=True)
                self._hooks += [hook, module.register_forward_hook(leaving, with_kwargs=True)]
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops watching and takes all hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def inputs(self, layers: Iterable[str]) -> InputStatistics:
        """Returns statistics of the inputs of these weights' layers."""
        seen = [self._seen[name] for name in layers]
        mean = [_ratio(each.total, each.elements) for each in seen]
        second_moment = [_ratio(each.squares, each.elements) for each in seen]
        variance = [each - root**2 for each, root in zip(second_moment, mean, strict=True)]
        return InputStatistics(
            mean=fixed(mean),
            std=fixed(np.sqrt(np.clip(variance, 0.0, None))),
            abs_max=fixed(each.abs_max if each.elements else math.nan for each in seen),
            second_moment=fixed(second_moment),
        )

    def macs(self, layers: Iterable[str]) -> FloatArray:
        """Returns (L,) multiplications a sample; NaN where shapes do not say, see the class."""
        return fixed(self._seen[name].macs for name in layers)

    def grams(self, layers: Iterable[str]) -> Tensor:
        """Returns (L, b, b) centred Gram matrices of the outputs; NaN where none was seen."""
        unseen = torch.full((self._samples, self._samples), math.nan, dtype=torch.float64)
        found = [self._seen[name].gram for name in layers]
        return torch.stack([unseen if each is None else each.cpu() for each in found])

    def _watchers(self, names: Sequence[str]) -> tuple[Callable[..., None], Callable[..., None]]:
        def entering(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            x = self._batch_tensor((*args, *kwargs.values()))
            if x is not None and x.is_floating_point():
                for name in names:
                    self._seen[name].add_input(x)

        def leaving(module: nn.Module, args: Any, kwargs: Mapping[str, Any], outputs: Any) -> None:
            x = self._batch_tensor((*args, *kwargs.values()))
            y = self._batch_tensor(outputs if isinstance(outputs, tuple) else (outputs,))
            if x is None or y is None or not y.is_floating_point():
                return
            for name in names:
                self._seen[name].add_output(y)
            if len(names) == 1:
                self._seen[names[0]].add_macs(_macs(module, x, y) / self._samples)

        return entering, leaving

    def _batch_tensor(self, values: Iterable[Any]) -> Tensor | None:
        tensors = (each.detach() for each in values if isinstance(each, Tensor))
        first = next(tensors, None)
        if first is None or first.dim() == 0 or len(first) != self._samples or not first.numel():
            return None
        return first


def _macs(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Returns the multiplications of a call: of the whole weight at each place of the outputs."""
    if isinstance(module, nn.Embedding):
        return 0.0
    weight = next(each for each in module.parameters(recurse=False) if each.dim() >= 2)
    places = x if isinstance(module, _ConvTransposeNd) else y  # transposed: inputs come first
    if len(weight) not in places.shape[1:]:
        return math.nan
    return places.numel() / len(weight) * weight.numel()


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan

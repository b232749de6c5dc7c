"""How little the channels of each layer's outputs depend on one another.  Letters: b samples."""

import math
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, forward_pass
from predictors.zerocost.proxy import Proxy, ProxyScore
from predictors.zerocost.running import CallNames

__all__ = ["MECO"]

_ROUNDING = 4.0  # a channel that varies by less than this many roundings is constant


class ChannelCorrelationRecorder:
    """Takes the smallest eigenvalue of the correlations between channels, call by call.

    Watched are modules without children that return one tensor (b, channels, ...), unless they
    hand on what they were given, as ``nn.Identity`` and ``nn.Flatten`` do.

    Attributes:
        eigenvalues: For each call, in their order, 0..1. A name is that of the module, with
            ``#2``, ``#3``, ... for further calls.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        self.eigenvalues: dict[str, float] = {}
        self._names = {
            module: name or type(module).__name__
            for name, module in model.named_modules()
            if next(module.children(), None) is None
        }
        self._samples = samples
        self._calls = CallNames()
        self._given: list[dict[int, int]] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Starts watching."""
        for module in self._names:
            self._hooks.append(module.register_forward_pre_hook(self._entering))
            self._hooks.append(module.register_forward_hook(self._leaving))
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

    def _entering(self, module: nn.Module, inputs: Any) -> None:
        tensors = (each for each in inputs if isinstance(each, Tensor))
        self._given.append({each.data_ptr(): each._version for each in tensors})

    def _leaving(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        given = self._given.pop()
        if not isinstance(outputs, Tensor) or given.get(outputs.data_ptr()) == outputs._version:
            return
        x = outputs.detach()
        if x.dim() >= 2 and len(x) == self._samples and x.numel() and x.is_floating_point():
            name = self._calls.fresh(self._names[module])
            if not all(math.isfinite(bound) for bound in x.aminmax()):
                raise ProxyError(f"the output of the module {name!r} is not finite")
            self.eigenvalues[name] = _smallest_eigenvalue(x)


def _smallest_eigenvalue(x: Tensor) -> float:
    """Returns that of the correlations between the channels of x, (b, channels, ...), 0..1.

    It is 0 if a channel is constant, or if there are no more places than channels.
    """
    rows = x.movedim(1, 0).flatten(1)
    channels, places = rows.shape
    largest = rows.abs().amax(1)
    rows = rows - rows.mean(1, keepdim=True)
    products = (rows @ rows.T).double()
    norms = products.diagonal().sqrt()
    rounding = _ROUNDING * torch.finfo(x.dtype).eps * math.sqrt(places) * largest.double()
    if places <= channels or bool((norms <= rounding).any()):
        return 0.0
    correlations = products / torch.outer(norms, norms)
    return max(0.0, float(torch.linalg.eigvalsh(correlations)[0]))


def _score(passes: Passes) -> ProxyScore:
    layers = passes.of(forward_pass).record(ChannelCorrelationRecorder).eigenvalues
    if not layers:
        raise ProxyError("meco saw no outputs: no module without children returns a tensor")
    return ProxyScore(math.fsum(layers.values()), layers)


MECO = Proxy(
    name="meco",
    direction="up",
    log=False,
    needs=frozenset({"F"}),
    needs_labels=False,
    source="Jiang et al., MeCo: Zero-Shot NAS with One Data and Single Forward Pass via Minimum "
    "Eigenvalue of Correlation, NeurIPS 2023",
    convention="variant on the batch itself instead of one random image: sum, over the outputs of "
    "modules without children, each output once, of the smallest eigenvalue of the correlations "
    "between channels over all samples and places, a constant channel correlating 0 even with "
    "itself; layers: per output, they sum to the value",
    score=_score,
    recorder=ChannelCorrelationRecorder,
)

"""Watches how the loss depends on the channels of each layer's outputs.  Letters: b samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from predictors.zerocost.errors import ProxyError

__all__ = ["ChannelGradients", "ChannelRecorder"]


@dataclass(frozen=True)
class ChannelGradients:
    """How the loss depends on the channels of one layer.

    Attributes:
        sums: (b, channels) for each sample the sum of a * dL/da over all places of the outputs a,
            and over all calls of the layer: the gradient for a factor in front of the channel.
        filter_size: Weights that make one channel.
    """

    sums: Tensor
    filter_size: float

    def fisher(self) -> Tensor:
        """Returns (channels,) the Fisher information of the channels' factors."""
        return 0.5 * self.sums.double().square().mean(0)


class ChannelRecorder(TorchDispatchMode):
    """Sums outputs times their gradients, in the backward pass of the loss.

    A layer is a module, of any class, that owns one trainable parameter with two or more axes.
    Its outputs' channels are their last axis if the parameter has two axes, as in a linear layer,
    and the second one otherwise. Left aside is what is no tensor with the batch as its first axis.

    Attributes:
        channels: For each layer that a gradient reaches, by the name of its parameter, in the
            model's order.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self._layers = list(_layers(model))
        self._samples = samples
        self._hooks: list[RemovableHandle] = []
        self._kept: dict[int, list[_Kept]] = {}
        self._found: dict[str, ChannelGradients] = {}
        self._is_loss = False

    @property
    def channels(self) -> dict[str, ChannelGradients]:
        """The layers, in the model's order."""
        names = (name for name, _, _ in self._layers)
        return {name: self._found[name] for name in names if name in self._found}

    def __enter__(self) -> Self:
        """Starts watching the forward pass."""
        super().__enter__()
        for name, module, weight in self._layers:
            self._hooks.append(module.register_forward_hook(self._leaving(name, weight)))
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops watching the forward pass."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        super().__exit__(error_type, error, traceback)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Copies outputs just before something writes into them."""
        kwargs = kwargs or {}
        if self._kept and func._schema.is_mutable:
            for tensor in _written(func, args, kwargs):
                for kept in self._kept.pop(_storage(tensor), ()):
                    kept.values = kept.values.clone()
        return func(*args, **kwargs)

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Watches the backward pass of the loss."""
        self._is_loss = True
        try:
            yield
        finally:
            self._is_loss = False
            self._kept.clear()

    def _leaving(self, name: str, weight: Tensor) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not isinstance(outputs, Tensor) or not outputs.requires_grad:
                return
            if outputs.dim() >= 2 and len(outputs) == self._samples:
                kept = _Kept(outputs.detach())
                self._kept.setdefault(_storage(outputs), []).append(kept)
                outputs.register_hook(self._receiving(name, weight, kept))

        return hook

    def _receiving(self, name: str, weight: Tensor, kept: "_Kept") -> Callable[[Tensor], None]:
        axis = -1 if weight.dim() == 2 else 1

        def hook(gradient: Tensor) -> None:
            if self._is_loss:
                products = (kept.values * gradient.detach()).movedim(axis, 1)
                sums = products.flatten(2).sum(2) if products.dim() > 2 else products
                self._add(name, sums, weight)

        return hook

    def _add(self, name: str, sums: Tensor, weight: Tensor) -> None:
        if not bool(torch.isfinite(sums).all()):
            raise ProxyError(
                f"outputs of the layer of {name!r}, or their gradient, are not finite"
            )
        if name in self._found:
            sums = sums + self._found[name].sums
        self._found[name] = ChannelGradients(sums, weight.numel() / sums.shape[1])


@dataclass
class _Kept:
    """The values of some outputs, as they were when their layer returned them."""

    values: Tensor


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Yields the modules that own one trainable weight, with its name and itself."""
    for path, module in model.named_modules():
        own = module.named_parameters(recurse=False)
        weights = [(name, each) for name, each in own if each.dim() >= 2]
        if len(weights) == 1 and weights[0][1].requires_grad:
            name, weight = weights[0]
            yield f"{path}.{name}" if path else name, module, weight


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors that a call will write into."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            values = value if isinstance(value, list | tuple) else [value]
            yield from (each for each in values if isinstance(each, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

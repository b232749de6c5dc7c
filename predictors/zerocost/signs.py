"""Watches rectifiers, called as modules or as functions, and compares samples by their signs.

What counts: ``relu``, ``relu6``, ``leaky_relu``, ``rrelu``, ``prelu``, ``elu``, ``selu``,
``celu``, ``silu``, ``gelu``, ``mish`` and ``hardswish``, from ``torch``, ``torch.nn.functional``,
as methods or in place, hence also through modules such as ``torch.nn.ReLU``; ``clamp``, ``clip``,
``clamp_min`` and ``hardtanh`` from 0 to nothing or to 6. Clamps from 0 to another bound are taken
for quantizers and do not count. Nor do sigmoids, ``maximum``, calls on parameters, calls on
tensors whose first axis is not the batch, and calls inside scripted or compiled modules.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from predictors.zerocost.errors import ProxyError

__all__ = ["SignRecorder"]

_RECTIFIERS = frozenset(
    {
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "rrelu", "rrelu_", "prelu"),
        *("elu", "elu_", "selu", "selu_", "celu", "celu_"),
        *("silu", "gelu", "mish", "hardswish"),
    }
)
_CLAMPS = frozenset(
    {"clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_", "hardtanh", "hardtanh_"}
)
_EXACT_UNITS = 2**24  # a sum of this many signs is still exact in fp32


class SignRecorder(TorchFunctionMode):
    """Counts, for every rectifier and pair of samples, the units whose inputs agree in sign.

    Attributes:
        agreements: For each rectifier, in the order of the calls, (b, b) float64 numbers of units
            where both inputs are above 0 or both are not; the diagonal holds the number of units.
            A name is that of the module that makes the call (the function's in the outermost
            module), with ``#2``, ``#3``, ... for further calls.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self.agreements: dict[str, Tensor] = {}
        self._model = model
        self._samples = samples
        self._running: list[str] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Starts watching."""
        super().__enter__()
        for name, module in self._model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
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
        super().__exit__(error_type, error, traceback)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Looks at a rectifier's input before the call, which may overwrite it."""
        kwargs = kwargs or {}
        function = getattr(func, "__name__", "")
        if function in _RECTIFIERS or (function in _CLAMPS and _is_rectifier(args, kwargs)):
            x = args[0] if args else kwargs.get("input")
            if _is_activation(x, self._samples):
                self._record(function, x.detach())
        return func(*args, **kwargs)

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._running.append(name)

        return hook

    def _leaving(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._running.pop()

    def _record(self, function: str, x: Tensor) -> None:
        name = self._fresh_name(function.rstrip("_"))
        if not all(math.isfinite(bound) for bound in x.aminmax()):  # far faster than isfinite
            raise ProxyError(f"the input of the rectifier {name!r} is not finite")
        self.agreements[name] = _agreement(x.reshape(self._samples, -1))

    def _fresh_name(self, function: str) -> str:
        first = (self._running[-1] if self._running else "") or function
        name, count = first, 1
        while name in self.agreements:
            count += 1
            name = f"{first}#{count}"
        return name


def _is_activation(x: Any, samples: int) -> TypeGuard[Tensor]:
    return (
        isinstance(x, Tensor)
        and not isinstance(x, nn.Parameter)
        and x.dim() > 0
        and len(x) == samples
        and x.is_floating_point()
        and x.numel() > 0
    )


def _is_rectifier(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tells whether the bounds of a clamp or hardtanh are 0 and nothing, or 0 and 6."""
    lowest = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
    highest = args[2] if len(args) > 2 else kwargs.get("max", kwargs.get("max_val"))
    return _is_number(lowest, 0) and (highest is None or _is_number(highest, 6))


def _is_number(bound: Any, number: int) -> bool:
    return isinstance(bound, int | float) and bound == number


def _agreement(x: Tensor) -> Tensor:
    """Returns (b, b) numbers of columns in which two rows of x, (b, units), agree in sign."""
    active = torch.gt(x, 0, out=torch.empty_like(x, dtype=torch.float32))
    parts = active.split(_EXACT_UNITS, dim=1)
    both = torch.stack([(part @ part.T).double() for part in parts]).sum(0)
    alone = both.diagonal()
    return both + (x.shape[1] - alone[:, None] - alone[None, :] + both)

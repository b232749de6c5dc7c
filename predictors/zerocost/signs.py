"""Watches the signs of what enters rectifiers, called as modules or as functions.

What counts: ``relu``, ``relu6``, ``leaky_relu``, ``rrelu``, ``prelu``, ``elu``, ``selu``,
``celu``, ``silu``, ``gelu``, ``mish`` and ``hardswish``, from ``torch``, ``torch.nn.functional``,
as methods or in place, hence also through modules such as ``torch.nn.ReLU``; ``clamp``, ``clip``,
``clamp_min`` and ``hardtanh`` from 0 to nothing or to 6. Clamps from 0 to another bound are taken
for quantizers and do not count. Nor do sigmoids, ``maximum``, calls on parameters, calls on
tensors whose first axis is not the batch, and calls inside scripted or compiled modules.

Letters: b samples, u units of a rectifier.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.running import CallNames, RunningModule

__all__ = ["PatternRecorder", "SignRecorder", "log_determinant"]

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
_SIGNS_PER_PART, _PARTS_PER_WORD = 16, 4  # a part is exact in fp32, a word fills an int64
_RIDGE = 1e-12  # of the diagonal: finite where samples switch alike, unseen elsewhere


class _RectifierRecorder(TorchFunctionMode):
    """Gives a name to each call of a rectifier and hands on its input.

    A name is that of the module that makes the call (the function's in the outermost module),
    with ``#2``, ``#3``, ... for further calls.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self._samples = samples
        self._running = RunningModule(model)
        self._calls = CallNames()

    @abstractmethod
    def _record(self, name: str, x: Tensor) -> None:
        """Takes a rectifier's input, (b, u)."""

    def __enter__(self) -> Self:
        """Starts watching."""
        super().__enter__()
        self._running.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops watching and takes all hooks away."""
        self._running.stop()
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
                name = self._calls.fresh(self._running.name or function.rstrip("_"))
                self._check_and_record(name, x.detach())
        return func(*args, **kwargs)

    def _check_and_record(self, name: str, x: Tensor) -> None:
        if not all(math.isfinite(bound) for bound in x.aminmax()):  # far faster than isfinite
            raise ProxyError(f"the input of the rectifier {name!r} is not finite")
        self._record(name, x.reshape(self._samples, -1))


class SignRecorder(_RectifierRecorder):
    """Counts, for every rectifier and pair of samples, the units whose inputs agree in sign.

    Attributes:
        agreements: For each rectifier, in the order of the calls, (b, b) float64 numbers of units
            where both inputs are above 0 or both are not; the diagonal holds the number of units.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__(model, samples)
        self.agreements: dict[str, Tensor] = {}

    def _record(self, name: str, x: Tensor) -> None:
        self.agreements[name] = _agreement(x)


class PatternRecorder(_RectifierRecorder):
    """Keeps, for every rectifier and unit, for which samples its input is above 0.

    Attributes:
        patterns: For each rectifier, in the order of the calls, (words, u) int64: a column holds
            the b signs of a unit, 64 in a word.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__(model, samples)
        self.patterns: dict[str, Tensor] = {}

    def _record(self, name: str, x: Tensor) -> None:
        self.patterns[name] = _patterns(x)


def log_determinant(kernel: Tensor) -> float:
    """Returns the log of the determinant of a kernel, (b, b), plus 1e-12 of its diagonal."""
    ridge = _RIDGE * kernel.diagonal()
    return float(torch.linalg.slogdet(kernel + torch.diag(ridge)).logabsdet)


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
    parts = _active(x).split(_EXACT_UNITS, dim=1)
    both = torch.stack([(part @ part.T).double() for part in parts]).sum(0)
    alone = both.diagonal()
    return both + (x.shape[1] - alone[:, None] - alone[None, :] + both)


def _patterns(x: Tensor) -> Tensor:
    """Returns (words, units) the signs of x, (b, units), as bits."""
    powers = 2.0 ** torch.arange(_SIGNS_PER_PART, device=x.device)
    words: list[Tensor] = []
    for index, part in enumerate(_active(x).split(_SIGNS_PER_PART, dim=0)):
        bits = (powers[: len(part)] @ part).long()
        place = index % _PARTS_PER_WORD
        if place == 0:
            words.append(bits)
        else:
            words[-1] += bits << (place * _SIGNS_PER_PART)
    return torch.stack(words)


def _active(x: Tensor) -> Tensor:
    """Returns 1.0 where x is above 0 and 0.0 elsewhere."""
    return torch.gt(x, 0, out=torch.empty_like(x, dtype=torch.float32))

"""Multiplications of a forward pass: a baseline that every report of a proxy must print."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, run_model
from predictors.zerocost.proxy import Proxy, ProxyScore
from predictors.zerocost.running import RunningModule

__all__ = ["FLOPS"]

_FLOPS_PER_MAC = 2
_SAMPLES = 2  # batch normalisation may refuse a single one


class _MacCounter(TorchDispatchMode):
    """Counts multiply-accumulates of convolutions and matrix products, whoever calls them.

    Attributes:
        macs: Of all samples, for each module that makes such calls itself, in the model's
            order; calls outside of all modules but the outermost have the function's name.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs: dict[str, float] = {}
        self._running = RunningModule(model)
        aten = torch.ops.aten
        self._counters: dict[Any, Callable[..., int]] = {
            **flop_registry,
            aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
                aten._scaled_dot_product_flash_attention
            ],
        }

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

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Counts after the call, when the shape of its output is known."""
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        counter = self._counters.get(func.overloadpacket)
        if counter is not None:
            flops = counter(*args, **kwargs, out_val=outputs)
            name = self._running.name or func.overloadpacket.__name__
            self.macs[name] = self.macs.get(name, 0.0) + flops / _FLOPS_PER_MAC
        return outputs


def _score(passes: Passes) -> ProxyScore:
    inputs = passes.inputs[:_SAMPLES]
    # With a function mode open, torch takes no short cut through transformer layers.
    with torch.no_grad(), BaseTorchFunctionMode(), _MacCounter(passes.model) as counter:
        run_model(passes.model, inputs)
    if not counter.macs:
        raise ProxyError("flops saw no convolution and no matrix product")
    layers = {name: each / len(inputs) for name, each in counter.macs.items()}
    return ProxyScore(math.fsum(layers.values()), layers)


FLOPS = Proxy(
    name="flops",
    direction="up",
    log=False,
    needs=frozenset({"own"}),
    needs_labels=False,
    source="Krishnakumar et al., NAS-Bench-Suite-Zero, NeurIPS 2022 (as a baseline)",
    convention="multiply-accumulates (half the floating-point operations) of convolutions and "
    "matrix products, attention included, in a forward pass of its own, for one sample; "
    "biases, normalisations, activations, pools and sums are not counted; layers: per module that "
    "makes the calls, they sum to the value",
    score=_score,
)

"""The passes that proxies share, each run at most once for a requested set.

Letters: b samples.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.untouched import untouched

__all__ = [
    "ForwardPass",
    "LossPass",
    "Need",
    "Passes",
    "Recorder",
    "forward_pass",
    "loss_pass",
    "named_weights",
    "reference_pass",
]

Need: TypeAlias = Literal["L", "F", "reference", "own"]
"""L: loss, forward and backward. F: forward. reference: forward of the reference. own: its own."""

Result = TypeVar("Result")


class Recorder(Protocol):
    """Watches the forward pass of a model: a context that is open while the model runs.

    It may hook into the model, must take its hooks away at the end, and keeps what it saw in
    attributes.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        """Prepares to watch a model on a batch of that many samples."""

    def __enter__(self) -> Self:
        """Starts watching."""

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops watching."""


AnyRecorder = TypeVar("AnyRecorder", bound=Recorder)


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass.

    Attributes:
        outputs: (b, ...) what the model returned, cut from the graph.
        records: The recorders that watched, by type.
    """

    outputs: Tensor
    records: Mapping[type[Recorder], Recorder]

    def record(self, kind: type[AnyRecorder]) -> AnyRecorder:
        """Returns the recorder of that type."""
        return cast(AnyRecorder, self.records[kind])


@dataclass(frozen=True)
class LossPass:
    """One forward and one backward pass of the loss.

    Attributes:
        forward: The forward half.
        loss: The loss of the batch.
        weights: The weights that a gradient reached, by name, cut from the graph.
        gradients: Their gradients, same names, same shapes.
    """

    forward: ForwardPass
    loss: float
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Passes:
    """What one computation may use: models, batch, and every pass, run when first asked for.

    Attributes:
        model: The network to score.
        inputs: (b, ...) network inputs.
        labels: (b, ...) targets of the loss, or None.
        loss: Maps outputs and labels to a scalar.
        reference: The full-precision twin of the model, or None.
        quantize: Format name to a function on tensors.
        seed: Seed of each pass.
        planned: The needs of all proxies of this computation together.
        recorders: What watches the forward pass of the model.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor | None
    loss: Callable[[Tensor, Tensor], Tensor]
    reference: nn.Module | None
    quantize: Mapping[str, Callable[[Tensor], Tensor]]
    seed: int
    planned: frozenset[Need] = frozenset()
    recorders: tuple[type[Recorder], ...] = ()
    _done: dict[Callable[..., Any], Any] = field(default_factory=dict, init=False, repr=False)

    def of(self, run: Callable[["Passes"], Result]) -> Result:
        """Returns what a pass, such as :func:`loss_pass`, found; runs it the first time only."""
        if run not in self._done:
            self._done[run] = run(self)
        return cast(Result, self._done[run])


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters with two or more axes: weights of convolutions and linear layers.

    This takes in layers of any class; biases and the vectors of normalisations are left out.
    """
    return {name: each for name, each in model.named_parameters() if each.dim() >= 2}


def forward_pass(passes: Passes) -> ForwardPass:
    """Returns the model's forward pass: that of the loss if a proxy of the set needs the loss."""
    if "L" in passes.planned:
        return passes.of(loss_pass).forward
    with untouched(passes.model, seed=passes.seed), torch.no_grad():
        return _watched_forward(passes)


def reference_pass(passes: Passes) -> Tensor:
    """Returns the reference's outputs, (b, ...), for the same inputs and seed.

    Raises:
        ProxyError: There is no reference.
    """
    if passes.reference is None:
        raise ProxyError("there is no reference: give ProxySession(..., reference=fp32_model)")
    with untouched(passes.reference, seed=passes.seed), torch.no_grad():
        return run_model(passes.reference, passes.inputs)


def loss_pass(passes: Passes) -> LossPass:
    """Returns loss and gradients of every weight that takes a gradient; ``grad`` stays as it is.

    Raises:
        ProxyError: No labels, no gradient for any weight, or a loss that is no finite scalar.
    """
    if passes.labels is None:
        raise ProxyError("the loss needs labels, and the batch has none")
    with untouched(passes.model, seed=passes.seed), torch.enable_grad():
        forward = _watched_forward(passes)
        loss = passes.loss(forward.outputs, passes.labels.clone())
        _check_loss(loss)
        weights, gradients = _gradients(loss, named_weights(passes.model))
    detached = ForwardPass(forward.outputs.detach(), forward.records)
    return LossPass(detached, float(loss.detach()), weights, gradients)


def run_model(model: nn.Module, inputs: Tensor) -> Tensor:
    """Returns the outputs for a copy of the inputs, since a layer may write into what it reads.

    Raises:
        ProxyError: The model returns no tensor.
    """
    outputs = model(inputs.detach().clone())
    if not isinstance(outputs, Tensor):
        raise ProxyError(f"the model must return a tensor, got {type(outputs).__name__}")
    return outputs


def _watched_forward(passes: Passes) -> ForwardPass:
    records = {kind: kind(passes.model, len(passes.inputs)) for kind in passes.recorders}
    with ExitStack() as stack:
        for recorder in records.values():
            stack.enter_context(recorder)
        outputs = run_model(passes.model, passes.inputs)
    return ForwardPass(outputs, records)


def _check_loss(loss: Tensor) -> None:
    if loss.numel() != 1:
        raise ProxyError(f"the loss must be a scalar, got shape {tuple(loss.shape)}")
    if not bool(torch.isfinite(loss)):
        raise ProxyError(f"the loss is not finite: {float(loss.detach())}")


def _gradients(
    loss: Tensor, weights: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the weights that the loss depends on, and their gradients."""
    trainable = {name: each for name, each in weights.items() if each.requires_grad}
    found: tuple[Tensor | None, ...] = ()
    if trainable and loss.requires_grad:
        found = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    gradients = {
        name: each for name, each in zip(trainable, found, strict=False) if each is not None
    }
    if not gradients:
        raise ProxyError(
            f"no gradient reaches any weight: of {len(weights)} weights with 2 or more axes "
            f"{len(weights) - len(trainable)} are frozen and {len(trainable)} unused"
        )
    for name, each in gradients.items():
        if not bool(torch.isfinite(each).all()):
            raise ProxyError(f"the gradient of {name!r} is not finite")
    return {name: trainable[name].detach() for name in gradients}, gradients

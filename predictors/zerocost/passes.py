"""The passes that proxies share, each run at most once for a requested set.

Letters: b samples.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.recorder import BackwardRecorder, Recorder
from predictors.zerocost.twice_differentiable import TwiceDifferentiable
from predictors.zerocost.untouched import untouched

__all__ = [
    "Batch",
    "ForwardPass",
    "LossPass",
    "Need",
    "Passes",
    "curvature_pass",
    "forward_pass",
    "input_gradient_pass",
    "loss_pass",
    "loss_passes",
    "named_weights",
    "reference_pass",
    "run_model",
]

Need: TypeAlias = Literal["L", "F", "J", "H", "batches", "reference", "own"]
"""What a proxy reads.

L: loss, forward and backward. F: forward. J: backward from the sum of the outputs to the inputs.
H: backward through the backward pass of the loss. batches: L on each further batch. reference:
forward of the reference. own: a pass of its own. L, F, J and H share one forward pass.
"""

Batch: TypeAlias = tuple[Tensor, Tensor | None]
"""Inputs (b, ...) and labels (b, ...)."""

Result = TypeVar("Result")
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
        inputs: (b, ...) network inputs, cut from any graph.
        labels: (b, ...) targets of the loss, or None.
        loss: Maps outputs and labels to a scalar.
        reference: The full-precision twin of the model, or None.
        quantize: Format name to a function on tensors.
        seed: Seed of each pass.
        planned: The needs of all proxies of this computation together.
        recorders: What watches the forward pass of the model.
        more_batches: Further batches, for what compares several.
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
    more_batches: tuple[Batch, ...] = ()
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
    """Returns the model's forward pass: that of the gradients if a proxy of the set needs any."""
    if passes.planned & {"L", "J", "H"}:
        return passes.of(_graph_pass).forward
    with untouched(passes.model, seed=passes.seed), torch.no_grad():
        return _watched_forward(passes, passes.inputs)


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
    return _wanted(_graph_with("L", passes).loss)


def loss_passes(passes: Passes) -> list[LossPass]:
    """Returns the loss passes of the batch and of each further one.

    Raises:
        ProxyError: As for :func:`loss_pass`.
    """
    others = [
        replace(passes, inputs=inputs, labels=labels, planned=frozenset({"L"}), recorders=())
        for inputs, labels in passes.more_batches
    ]
    return [passes.of(loss_pass), *(loss_pass(each) for each in others)]


def input_gradient_pass(passes: Passes) -> Tensor:
    """Returns the gradient of the sum of all outputs for the inputs, (b, ...).

    The row of a sample sums over the outputs, so it is not that sample's Jacobian; and where
    samples meet in batch statistics, the outputs of the others add to it.

    Raises:
        ProxyError: The inputs are no floating numbers, or the outputs do not depend on them.
    """
    return _wanted(_graph_with("J", passes).input_gradient)


def curvature_pass(passes: Passes) -> Mapping[str, float]:
    """Returns w . (H g) of each weight w that a gradient g of the loss reaches, by name.

    H is the Hessian of the batch's loss for all those weights together.

    Raises:
        ProxyError: As for :func:`loss_pass`, or the model cannot be differentiated twice.
    """
    return _wanted(_graph_with("H", passes).curvatures)


def run_model(model: nn.Module, inputs: Tensor) -> Tensor:
    """Returns the outputs for a copy of the inputs, since a layer may write into what it reads.

    Raises:
        ProxyError: The model returns no tensor, or normalises single values.
    """
    try:
        outputs = model(inputs.clone())
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ProxyError(
            "batch normalisation in training mode needs more than 1 value per channel, and this "
            f"batch has {len(inputs)} samples: give more, or the model in evaluation mode"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ProxyError(f"the model must return a tensor, got {type(outputs).__name__}")
    return outputs


@dataclass(frozen=True)
class _GraphPass:
    """One forward pass, and the backward passes through it that were planned."""

    forward: ForwardPass
    loss: LossPass | None
    curvatures: Mapping[str, float] | None
    input_gradient: Tensor | None


@dataclass(frozen=True)
class _Graph:
    """A forward pass that can still be differentiated."""

    passes: Passes
    inputs: Tensor
    outputs: Tensor
    records: Mapping[type[Recorder], Recorder]
    twice: TwiceDifferentiable | None


def _graph_with(need: Need, passes: Passes) -> _GraphPass:
    if need in passes.planned:
        return passes.of(_graph_pass)
    return _graph_pass(replace(passes, planned=frozenset({need})))


def _wanted(result: Result | None) -> Result:
    assert result is not None  # it was planned
    return result


def _graph_pass(passes: Passes) -> _GraphPass:
    """Runs every planned backward pass through one forward pass, while its graph is there."""
    if passes.planned & {"L", "H"} and passes.labels is None:
        raise ProxyError("the loss needs labels, and the batch has none")
    loss = curvatures = input_gradient = None
    with untouched(passes.model, seed=passes.seed), torch.enable_grad():
        graph = _graph(passes)
        forward = ForwardPass(graph.outputs.detach(), graph.records)
        if "J" in passes.planned:  # first: the pass that needs most memory frees it as it goes
            input_gradient = _input_gradient(graph)
        if passes.planned & {"L", "H"}:
            loss, curvatures = _backward_of_loss(graph, forward)
    return _GraphPass(forward, loss, curvatures, input_gradient)


def _graph(passes: Passes) -> _Graph:
    inputs, twice = passes.inputs, None
    if "J" in passes.planned:
        if not inputs.is_floating_point():
            raise ProxyError(f"the gradient of the inputs needs numbers, got {inputs.dtype}")
        inputs = inputs.detach().requires_grad_()
    with ExitStack() as stack:
        if "H" in passes.planned:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the others have one gradient only
            twice = stack.enter_context(TwiceDifferentiable(named_weights(passes.model)))
        forward = _watched_forward(passes, inputs)
    return _Graph(passes, inputs, forward.outputs, forward.records, twice)


def _watched_forward(passes: Passes, inputs: Tensor) -> ForwardPass:
    records = {kind: kind(passes.model, len(inputs)) for kind in passes.recorders}
    with ExitStack() as stack:
        for recorder in records.values():
            stack.enter_context(recorder)
        outputs = run_model(passes.model, inputs)
    return ForwardPass(outputs, records)


def _backward_of_loss(
    graph: _Graph, forward: ForwardPass
) -> tuple[LossPass, Mapping[str, float] | None]:
    passes = graph.passes
    loss = passes.loss(graph.outputs, _wanted(passes.labels).clone())
    _check_loss(loss)
    with ExitStack() as stack:
        for recorder in graph.records.values():
            if isinstance(recorder, BackwardRecorder):
                stack.enter_context(recorder.backward())
        weights, gradients = _gradients(loss, graph)
    curvatures = None
    if graph.twice is not None:
        curvatures = graph.twice.curvatures(gradients)
    detached = {name: each.detach() for name, each in gradients.items()}
    return LossPass(forward, float(loss.detach()), weights, detached), curvatures


def _check_loss(loss: Tensor) -> None:
    if loss.numel() != 1:
        raise ProxyError(f"the loss must be a scalar, got shape {tuple(loss.shape)}")
    if not bool(torch.isfinite(loss)):
        raise ProxyError(f"the loss is not finite: {float(loss.detach())}")


def _gradients(loss: Tensor, graph: _Graph) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the weights that the loss depends on, and their gradients."""
    weights = named_weights(graph.passes.model)
    trainable = {name: each for name, each in weights.items() if each.requires_grad}
    found: Iterable[Tensor | None] = ()
    if trainable and loss.requires_grad:
        found = torch.autograd.grad(
            loss,
            list(trainable.values()),
            allow_unused=True,
            create_graph=graph.twice is not None,
            retain_graph=graph.twice is not None,
        )
    gradients = {
        name: each for name, each in zip(trainable, found, strict=False) if each is not None
    }
    if not gradients:
        raise ProxyError(
            f"no gradient reaches any weight: of {len(weights)} weights with 2 or more axes "
            f"{len(weights) - len(trainable)} are frozen and {len(trainable)} unused"
        )
    for name, each in gradients.items():
        if not all(math.isfinite(bound) for bound in each.detach().aminmax()):
            raise ProxyError(f"the gradient of {name!r} is not finite")
    return {name: trainable[name].detach() for name in gradients}, gradients


def _input_gradient(graph: _Graph) -> Tensor:
    found: Tensor | None = None
    if graph.outputs.requires_grad:
        ones = torch.ones_like(graph.outputs)
        (found,) = torch.autograd.grad(
            graph.outputs,
            graph.inputs,
            ones,
            allow_unused=True,
            retain_graph=bool(graph.passes.planned & {"L", "H"}),
        )
    if found is None:
        raise ProxyError("the outputs do not depend on the inputs")
    if not bool(torch.isfinite(found).all()):
        raise ProxyError("the gradient of the inputs is not finite")
    return found

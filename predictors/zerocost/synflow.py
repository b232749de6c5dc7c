"""How much flows through a network whose parameters are all made positive.

Kept in float64 the flow still overflows in very deep networks, so there is a second way. If every
source of the forward pass (inputs and biases of convolutions and linear layers) and the start of
the backward pass are multiplied by a power of two, the score is multiplied by its square, which
its logarithm gives back. That holds for networks that are otherwise homogeneous (convolutions,
rectifiers, pools, sums, concatenations); it is checked before it is believed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, named_weights
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["SYNFLOW"]

_BYPASSED = frozenset(
    {
        *("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
        "feature_alpha_dropout",
    }
)
_BIASED = frozenset(
    {
        *("linear", "conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    }
)
_BIAS = 2  # where these functions take their bias
_EXPONENTS = (0, -900, 450)  # powers of two that are tried: plain, flow too large, too small
_HOMOGENEITY_TOLERANCE = 1e-9
_OUT_OF_RANGE = (
    "synflow leaves the range of float64, and only networks of convolutions, linear layers, "
    "rectifiers, pools and sums can be rescaled"
)


class _PositivePaths(TorchFunctionMode):
    """Skips normalisations and dropout; multiplies biases by a power of two."""

    def __init__(self, exponent: int) -> None:
        super().__init__()
        self._factor = 2.0**exponent

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        function = getattr(func, "__name__", "")
        if function in _BYPASSED:
            return args[0] if args else kwargs["input"]
        if function in _BIASED and self._factor != 1.0:
            if len(args) > _BIAS and args[_BIAS] is not None:
                args = (*args[:_BIAS], args[_BIAS] * self._factor, *args[_BIAS + 1 :])
            elif kwargs.get("bias") is not None:
                kwargs["bias"] = kwargs["bias"] * self._factor
        return func(*args, **kwargs)


def _score(passes: Passes) -> ProxyScore:
    model = passes.model if passes.reference is None else passes.reference
    weights = list(named_weights(model))
    magnitudes = _magnitudes(model, weights)
    totals = []
    for exponent in _EXPONENTS:
        flows = _flows(model, magnitudes, weights, passes.inputs, exponent)
        totals.append(sum(flows.values()))
        if 0.0 < totals[-1] < math.inf:
            if exponent != 0:
                _check_homogeneity(model, magnitudes, passes.inputs, exponent)
            return _log_score(flows, exponent)
    raise ProxyError(_reason(totals[0]))


def _reason(total: float) -> str:
    if total == 0.0:
        return "synflow is 0: no path of non-zero weights leads to the outputs"
    if math.isfinite(total):
        return f"synflow has no logarithm: the flow is {total}"
    return _OUT_OF_RANGE


def _log_score(flows: Mapping[str, float], exponent: int) -> ProxyScore:
    offset = 2 * exponent * math.log(2.0)
    layers = {name: math.log(flow) - offset for name, flow in flows.items() if flow > 0.0}
    return ProxyScore(math.log(sum(flows.values())) - offset, layers)


def _magnitudes(model: nn.Module, weights: Sequence[str]) -> dict[str, Tensor]:
    """Returns the magnitudes of all parameters in float64; those of weights take gradients."""
    magnitudes = {name: each.detach().double().abs() for name, each in model.named_parameters()}
    for name, each in magnitudes.items():
        if not bool(torch.isfinite(each).all()):
            raise ProxyError(f"the parameter {name!r} is not finite")
    for name in weights:
        magnitudes[name].requires_grad_()
    return magnitudes


def _flows(
    model: nn.Module,
    magnitudes: Mapping[str, Tensor],
    weights: Sequence[str],
    inputs: Tensor,
    exponent: int,
) -> dict[str, float]:
    """Returns sum(w * dR/dw) per weight, times 2**(2 * exponent), R being the sum of outputs."""
    with torch.enable_grad():
        outputs = _outputs(model, magnitudes, inputs, exponent)
        found: tuple[Tensor | None, ...] = ()
        if outputs.requires_grad:
            found = torch.autograd.grad(
                outputs,
                [magnitudes[name] for name in weights],
                torch.full_like(outputs, 2.0**exponent),
                allow_unused=True,
            )
    flows = {
        name: float((magnitudes[name].detach() * gradient).sum())
        for name, gradient in zip(weights, found, strict=False)
        if gradient is not None
    }
    if not flows:
        raise ProxyError(
            f"synflow reaches no weight: the outputs depend on none of {len(weights)} weights "
            "with 2 or more axes"
        )
    return flows


def _outputs(
    model: nn.Module, magnitudes: Mapping[str, Tensor], inputs: Tensor, exponent: int
) -> Tensor:
    """Returns the outputs, (1, ...), for one input of ones, times 2**exponent."""
    ones = torch.ones_like(inputs[:1])
    if inputs.is_floating_point():
        ones = ones.double().mul_(2.0**exponent)
    buffers = {
        name: each.to(torch.float64 if each.is_floating_point() else each.dtype, copy=True)
        for name, each in model.named_buffers()
    }
    with _PositivePaths(exponent):
        outputs = functional_call(model, {**buffers, **magnitudes}, (ones,))
    if not isinstance(outputs, Tensor):
        raise ProxyError(f"the model must return a tensor, got {type(outputs).__name__}")
    return outputs


def _check_homogeneity(
    model: nn.Module, magnitudes: Mapping[str, Tensor], inputs: Tensor, exponent: int
) -> None:
    """Checks that half the sources give half the outputs."""
    with torch.no_grad():
        whole, half = (
            float(_outputs(model, magnitudes, inputs, each).sum())
            for each in (exponent, exponent - 1)
        )
    if not math.isclose(whole, 2.0 * half, rel_tol=_HOMOGENEITY_TOLERANCE):
        raise ProxyError(_OUT_OF_RANGE)


SYNFLOW = Proxy(
    name="synflow",
    direction="up",
    log=True,
    needs=frozenset({"own"}),
    needs_labels=False,
    source="Tanaka et al., Pruning neural networks without any data by iteratively conserving "
    "synaptic flow, NeurIPS 2020; as a proxy: Abdelfattah et al., ICLR 2021",
    convention="log of the sum of w * dR/dw over weights with 2 or more axes, frozen ones too; R "
    "is the sum of outputs for one input of ones, with every parameter replaced by its magnitude, "
    "in float64, normalisations and dropout bypassed; of the reference if there is one; layers: "
    "log of the part of each weight through which something flows, their logsumexp is the value",
    score=_score,
)

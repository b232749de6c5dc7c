"""A forward pass whose gradient can be differentiated once more, at little cost.

Torch differentiates convolutions and batch normalisations twice through long chains of small
steps. Here they are replaced, for one forward pass, by functions of the same values and the same
first gradients whose second pass is short. Besides, a second pass that only wants w . (H v) of
each weight w, v fixed, needs no gradient for a convolution's weight: with the weight multiplied by
a number s, w . (H v) is the derivative with respect to s, and since a convolution is linear in
its weight, that is inner products of tensors that the pass computes anyway.

Letters: b samples, C channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.second_derivatives import (
    check_differentiable_twice,
    refusing_single_derivatives,
)

__all__ = ["TwiceDifferentiable"]

_AXES = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


class TwiceDifferentiable(TorchFunctionMode):
    """Replaces convolutions and batch normalisations while it is open.

    Only where that changes nothing but time: the ordinary function runs under autocast, for mixed
    types, inputs without a batch axis, padding by name, or statistics that are not the batch's.

    Args:
        weights: The weights whose w . (H v) is wanted, by name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._weights = dict(weights)
        self._names = {id(each): name for name, each in weights.items() if each.requires_grad}
        self._scales: list[tuple[str, Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replaces a call, or passes it on."""
        kwargs = kwargs or {}
        function = getattr(func, "__name__", "")
        if function in _AXES:
            convolution = _Convolve(*args, **kwargs)
            if convolution.is_plain(_AXES[function]):
                return self._convolve(convolution, _AXES[function])
        elif function == "batch_norm":
            norm = _Normalize(*args, **kwargs)
            if norm.is_plain():
                return _BatchNorm.apply(*vars(norm).values())
        elif function == "relu" and not (kwargs.get("inplace") or any(args[1:])):
            return _Relu.apply(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)

    def curvatures(self, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns w . (H v) of each weight, v being the values of the gradients.

        The graph is freed on the way.

        Args:
            gradients: Gradients of weights, by name, from a backward pass with ``create_graph``
                through the forward pass that ran while this was open.

        Raises:
            ProxyError: A function in the model cannot be differentiated twice.
        """
        check_differentiable_twice(gradients.values())
        totals = dict.fromkeys(gradients, 0.0)
        bent = [each for each in gradients.values() if each.requires_grad]
        if not bent:  # the loss is linear in all weights
            return totals
        weights = [(name, self._weights[name]) for name in gradients]
        targets = [*self._scales, *weights]
        found = _second_gradients(bent, [each for _, each in targets])
        for (name, target), product in zip(targets, found, strict=True):
            if product is not None and name in totals:
                totals[name] += float((target.detach() * product).sum(dtype=torch.float64))
        for name, total in totals.items():
            if not math.isfinite(total):
                raise ProxyError(f"the second gradient of {name!r} is not finite")
        return totals

    def _convolve(self, call: "_Convolve", axes: int) -> Tensor:
        geometry = _Geometry(
            stride=_per_axis(call.stride, axes),
            padding=_per_axis(call.padding, axes),
            dilation=_per_axis(call.dilation, axes),
            groups=call.groups,
        )
        scale = None
        has_own_bias = call.bias is None or call.bias.is_leaf  # a computed one needs gradients
        if id(call.weight) in self._names and has_own_bias:
            scale = torch.ones((), dtype=torch.float64, requires_grad=True)
            self._scales.append((self._names[id(call.weight)], scale))
        outputs: Tensor = _Convolution.apply(call.input, call.weight, call.bias, scale, geometry)
        return outputs


@dataclass(frozen=True)
class _Convolve:
    """The arguments of a convolution."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: int | Sequence[int] = 1
    padding: int | str | Sequence[int] = 0
    dilation: int | Sequence[int] = 1
    groups: int = 1

    def is_plain(self, axes: int) -> bool:
        return (
            not isinstance(self.padding, str)
            and self.input.dim() == self.weight.dim() == axes + 2
            and _are_plain(self.input, self.weight, self.bias)
        )


@dataclass(frozen=True)
class _Normalize:
    """The arguments of a batch normalisation."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    def is_plain(self) -> bool:
        x = self.input
        several = x.dim() >= 2 and x.numel() > x.shape[1]
        return self.training and several and _are_plain(x, self.weight, self.bias)


def _are_plain(x: Tensor, *others: Tensor | None) -> bool:
    return (
        x.is_floating_point()
        and not torch.is_autocast_enabled(x.device.type)
        and all(each is None or each.dtype == x.dtype for each in others)
    )


def _per_axis(value: int | str | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(int(each) for each in value)
    return values * axes if len(values) == 1 else values


@dataclass(frozen=True)
class _Geometry:
    """How a convolution moves over its input; one number for each axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        none = (0,) * len(self.stride)
        return torch.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, none, self.groups
        )

    def gradients(
        self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the gradients for x, weight and bias, those that are wanted."""
        none = (0,) * len(self.stride)
        found: tuple[Tensor | None, Tensor | None, Tensor | None] = (
            torch.ops.aten.convolution_backward(
                *(gradient, x, weight, [weight.shape[0]]),
                *(self.stride, self.padding, self.dilation, False, none, self.groups),
                list(wanted),
            )
        )
        return found


class _Convolution(torch.autograd.Function):
    """A convolution; its weight counts as multiplied by a scale of 1, if there is one.

    The gradient for the weight itself is then only computed where it will be differentiated.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        geometry: _Geometry,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry = geometry
        return geometry.convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if scale is None or torch.is_grad_enabled():
            found = _ConvolutionBackward.apply(
                gradients[0], x, weight, scale, ctx.geometry, wanted
            )
            return (*found, None, None)
        if not wanted[0]:
            _, found, _ = ctx.geometry.gradients(gradients[0], x, weight, (False, True, False))
            return None, None, None, _inner(found, weight), None
        found, _, _ = ctx.geometry.gradients(gradients[0], x, weight, (True, False, False))
        return found, None, None, _inner(found, x), None


class _ConvolutionBackward(torch.autograd.Function):
    """The gradients of a convolution for its input, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        geometry: _Geometry,
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, x, weight, scale)
        ctx.geometry, ctx.wanted = geometry, wanted
        return geometry.gradients(gradient, x, weight, wanted)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Takes the gradients for the three gradients, each None where it is zero."""
        gradient, x, weight, scale = ctx.saved_tensors
        for_x, for_weight, for_bias = gradients
        geometry = ctx.geometry
        parts = []
        found_scale = found_x = found_weight = None
        if for_x is not None:
            parts.append(geometry.convolve(for_x, weight))
            if scale is not None:
                found_scale = _inner(parts[0], gradient)
            elif ctx.wanted[1]:
                _, found_weight, _ = geometry.gradients(
                    gradient, for_x, weight, (False, True, False)
                )
        if for_weight is not None:
            parts.append(geometry.convolve(x, for_weight))
            if ctx.wanted[0]:
                found_x, _, _ = geometry.gradients(gradient, x, for_weight, (True, False, False))
        if for_bias is not None:
            parts.append(for_bias.view(-1, *(1,) * len(geometry.stride)).expand_as(gradient))
        return _sum(parts), found_x, found_weight, found_scale, None, None


class _BatchNorm(torch.autograd.Function):
    """A batch normalisation with the statistics of the batch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        outputs, mean, inverse_std = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, training, momentum, eps
        )
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps = eps
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        for_x, for_weight, for_bias = _BatchNormBackward.apply(
            gradients[0], x, weight, mean, inverse_std, ctx.eps
        )
        _, _, _, has_weight, has_bias, *_ = ctx.needs_input_grad
        return (
            *(for_x, None, None),
            *(for_weight if has_weight else None, for_bias if has_bias else None),
            *(None, None, None),
        )


class _BatchNormBackward(torch.autograd.Function):
    """The gradients of a batch normalisation for its input, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        inverse_std: Tensor,
        eps: float,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        found = _norm_gradients(gradient, x, weight, mean, inverse_std, eps)
        ctx.save_for_backward(gradient, x, weight, mean, inverse_std, *found[1:])
        ctx.eps = eps
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Takes the gradients for the three gradients, each None where it is zero.

        With n values a channel, z the normalised x, r = 1/std, g the gradient and v that for the
        gradient for x: v . (gradient for x) = weight r n (mean(vg) - mean(v) mean(g)
        - mean(vz) mean(gz)). That is differentiated here, through z and r as well.
        """
        g, x, weight, mean, r, sum_gz, sum_g = ctx.saved_tensors
        v, for_weight, for_bias = gradients
        n = x.numel() / x.shape[1]
        gain = r if weight is None else weight * r
        mean_g, mean_gz = sum_g / n, sum_gz / n
        found_g = found_weight = None
        by_v = by_g = by_z = mean_v = torch.zeros_like(r)  # by_: factors of the gradient for x
        if v is not None:
            found_g, sum_vz, sum_v = _norm_gradients(v, x, weight, mean, r, ctx.eps)
            mean_v, mean_vz = sum_v / n, sum_vz / n
            left = _channel_sums(v, g) / n - mean_v * mean_g - mean_vz * mean_gz
            found_weight = None if weight is None else r * n * left
            by_v, by_g = -gain * r * mean_gz, -gain * r * mean_vz
            by_z = gain * r * (2.0 * mean_vz * mean_gz - left)
        if for_weight is not None:
            by_g, by_z = by_g + for_weight * r, by_z - for_weight * r * mean_gz
            found_g = _sum([found_g, _per_channel(for_weight, x) * _normalized(x, mean, r)])
        if for_bias is not None:
            found_g = _sum([found_g, _per_channel(for_bias, x).expand_as(x)])
        by_x = by_z * r
        offset = _per_channel(-by_g * mean_g - by_v * mean_v - by_x * mean, x)
        found_x = torch.addcmul(offset, g, _per_channel(by_g, x))
        found_x.addcmul_(x, _per_channel(by_x, x))
        if v is not None:
            found_x.addcmul_(v, _per_channel(by_v, x))
        return found_g, found_x, found_weight, None, None, None


class _Relu(torch.autograd.Function):
    """A rectifier; torch's own second pass adds zeros to the gradient for the outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        outputs = torch.relu(x)
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found: Tensor = _ReluBackward.apply(gradients[0], *ctx.saved_tensors)
        return found


class _ReluBackward(torch.autograd.Function):
    """The gradient of a rectifier for its input: linear in the gradient, constant in the rest."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, outputs: Tensor) -> Tensor:
        ctx.save_for_backward(outputs)
        return _where_positive(gradient, outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _where_positive(gradients[0], *ctx.saved_tensors), None


def _where_positive(gradient: Tensor, outputs: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.threshold_backward(gradient, outputs, 0)
    return found


def _norm_gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse_std: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of a batch normalisation for x, weight and bias."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, None, None, mean, inverse_std, True, eps, [True, True, True]
    )
    return found


def _normalized(x: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    return (x - _per_channel(mean, x)) * _per_channel(inverse_std, x)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Returns values, (C,), in a shape that multiplies x, (b, C, ...)."""
    return values.view(1, -1, *(1,) * (x.dim() - 2))


def _channel_sums(one: Tensor, other: Tensor) -> Tensor:
    """Returns (C,) sums of products of two tensors (b, C, ...)."""
    return (one * other).sum((0, *range(2, one.dim())))


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Returns the inner product in float64."""
    return _channel_sums(one, other).sum(dtype=torch.float64)


def _sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Returns a sum, written into the first part if there are several."""
    present = [each for each in parts if each is not None]
    for each in present[1:]:
        present[0].add_(each)
    return present[0] if present else None


def _second_gradients(
    gradients: Sequence[Tensor], targets: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Returns the gradients of half the squared norm of gradients."""
    with refusing_single_derivatives():
        return torch.autograd.grad(
            gradients,
            targets,
            [each.detach() for each in gradients],
            allow_unused=True,
        )

"""Puts quantized layers into any module that has convolutions and linear layers."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, fx, nn

from apqkit.errors import FormatError
from apqkit.formats import NumberFormat, format_named
from apqkit.quant.activations import ObservedQuantizer
from apqkit.quant.layers import BatchNorm, ConvGeometry, QuantConv, QuantLayer, QuantLinear
from apqkit.quant.weights import DEFAULT_SCHEME, QuantScheme
from apqkit.registry import did_you_mean

__all__ = ["LayerFormats", "fold_batch_norms", "keep_batch_norms", "prepare"]

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_CHANNEL_AXIS, _FEATURE_AXIS = 1, -1


@dataclass(frozen=True)
class LayerFormats:
    """Formats of one layer.

    Attributes:
        weight: A format's name.
        activation: That of the layer's input; ``fp32`` quantizes weights alone.
    """

    weight: str = "int8"
    activation: str = "int8"


def prepare(
    model: nn.Module,
    formats: LayerFormats | Mapping[str, LayerFormats],
    *,
    scheme: QuantScheme = DEFAULT_SCHEME,
) -> nn.Module:
    """Returns a copy of a model whose convolutions and linear layers compute on quantized tensors.

    A batch normalisation that directly follows a convolution is folded into what is quantized,
    with its own statistics, which stand still; it is found by tracing the model. Where tracing
    fails it stays a layer of its own. All other layers, sums and pools stay as they are, in fp32.
    Call :func:`apqkit.quant.calibrate` next, before the model runs, is trained or exported.

    Args:
        model: Any module. Conv1d, Conv2d, Conv3d and Linear become quantized layers.
        formats: The same for every such layer, or by name as in ``model.named_modules()``;
            names may be patterns (``blocks.*``), and the last that fits counts. Layers that none
            fits stay in fp32. Integers are named without sign: calibration finds out whether an
            input can be negative, and uses ``uint8`` for ``int8`` where it cannot.
        scheme: How layers find their scales.

    Raises:
        FormatError: A name fits no layer, a layer is of a kind that cannot be quantized, a format
            does not fit the layer, or there is nothing to quantize.
        UnknownNameError: No format of that name.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> type(prepare(net, LayerFormats("int4", "int8"))[0]).__name__
    'QuantConv'
    """
    if any(isinstance(each, QuantLayer) for each in model.modules()):
        raise FormatError("the model has quantized layers already: prepare the plain one")
    prepared = copy.deepcopy(model).eval()
    aliases = _aliases(prepared)
    chosen = _formats_by_layer(prepared, formats)
    norms = _norms_of_convolutions(prepared)
    for name, each in chosen.items():
        layer = prepared.get_submodule(name)
        weight_format, activation_format = _checked(name, layer, each, scheme)
        quantizer = ObservedQuantizer(
            activation_format,
            scheme,
            name=f"{name}.input",
            block_axis=_FEATURE_AXIS if isinstance(layer, nn.Linear) else _CHANNEL_AXIS,
        )
        made = _quantized_layer(name, layer, quantizer, weight_format, scheme, norms.get(name))
        _copy_frozenness(layer, made)
        made = made.eval().to(_device(layer))
        for path in aliases[id(layer)]:
            prepared.set_submodule(path, made)
        if name in norms:
            for path in aliases[id(norms[name][1])]:
                prepared.set_submodule(path, nn.Identity())
    return prepared


def _copy_frozenness(layer: nn.Module, made: QuantLayer) -> None:
    """Keeps weights out of training that were."""
    weight, new = layer.weight, made.weight
    assert isinstance(weight, Tensor)
    assert isinstance(new, Tensor)
    new.requires_grad_(weight.requires_grad)


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    """Returns every path of each module, by identity."""
    paths: dict[int, list[str]] = {}
    for name, each in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(each), []).append(name)
    return paths


def keep_batch_norms(model: nn.Module) -> None:
    """Makes quantized convolutions train with the statistics that calibration stored.

    Their scales and offsets keep training; weights are quantized as folded with them.

    Raises:
        CalibrationError: The model is not calibrated.
    """
    for layer in model.modules():
        if isinstance(layer, QuantConv):
            layer.keep_statistics()


def fold_batch_norms(model: nn.Module) -> None:
    """Folds batch normalisations of quantized convolutions into their weights for good.

    Raises:
        CalibrationError: The model is not calibrated.
    """
    for layer in model.modules():
        if isinstance(layer, QuantConv):
            layer.fold()


def _formats_by_layer(
    model: nn.Module, formats: LayerFormats | Mapping[str, LayerFormats]
) -> dict[str, LayerFormats]:
    if isinstance(model, _Conv | nn.Linear):
        raise FormatError("the model is a single layer: wrap it in a Sequential")
    paths = _aliases(model)
    names = {name: own[0] for own in paths.values() for name in own if name}
    layers = [n for n in names if isinstance(model.get_submodule(n), _Conv | nn.Linear)]
    if isinstance(formats, LayerFormats):
        formats = {"*": formats}
    if not isinstance(formats, Mapping):
        raise FormatError(
            f"formats must be LayerFormats or a mapping of names to them, got {formats!r}"
        )
    chosen: dict[str, LayerFormats] = {}
    for pattern, each in formats.items():
        if not isinstance(each, LayerFormats):
            raise FormatError(f"formats of {pattern!r} must be LayerFormats, got {each!r}")
        fitting = [names[name] for name in layers if fnmatchcase(name, pattern)]
        if not fitting and pattern in names:
            kind = type(model.get_submodule(pattern)).__name__
            raise FormatError(
                f"layer {pattern!r} is a {kind}; "
                f"formats are for Conv1d, Conv2d, Conv3d and Linear layers"
            )
        if not fitting:
            hint = did_you_mean(pattern, layers)
            raise FormatError(
                f"no layer is named {pattern!r}{hint}; layers that take formats: "
                f"{', '.join(layers) or 'none'}"
            )
        chosen.update(dict.fromkeys(fitting, each))
    quantized = {
        name: each for name, each in chosen.items() if {each.weight, each.activation} != {"fp32"}
    }
    if not quantized:
        raise FormatError("there is nothing to quantize: every layer stays in fp32")
    return quantized


def _checked(
    name: str, layer: nn.Module, formats: LayerFormats, scheme: QuantScheme
) -> tuple[NumberFormat, NumberFormat]:
    """Returns the formats of weight and input, or raises if they or the layer do not do."""
    weight, activation = format_named(formats.weight), format_named(formats.activation)
    for each in (weight, activation):
        if not each.signed:
            raise FormatError(
                f"formats of layers are named without sign, got {each.name!r} for {name}: "
                f"calibration finds out whether an input can be negative"
            )
    if scheme.activation_granularity == "token" and not isinstance(layer, nn.Linear):
        raise FormatError(
            f"per-token activations are for Linear layers, {name} is a {type(layer).__name__}"
        )
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise FormatError(f"{name} pads with {layer.padding_mode!r}; only zeros are supported")
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    if not any(type(layer).forward is kind.forward for kind in kinds):
        raise FormatError(
            f"{name} is a {type(layer).__name__}, which computes in its own way: "
            f"give it no formats"
        )
    stored = layer.weight
    if isinstance(stored, nn.UninitializedParameter) or stored.dtype != torch.float32:
        got = "no shape yet" if isinstance(stored, nn.UninitializedParameter) else stored.dtype
        raise FormatError(f"{name} must have float32 weights to be quantized, got {got}")
    return weight, activation


def _quantized_layer(
    name: str,
    layer: nn.Module,
    quantizer: ObservedQuantizer,
    weight_format: NumberFormat,
    scheme: QuantScheme,
    norm: tuple[str, _BatchNorm] | None,
) -> QuantLayer:
    if isinstance(layer, nn.Linear):
        return QuantLinear(
            quantizer,
            layer.weight.detach().clone(),
            _copied(layer.bias),
            weight_format=weight_format,
            name=name,
            scheme=scheme,
        )
    assert isinstance(layer, _Conv)
    geometry = ConvGeometry(layer.stride, _padding(name, layer), layer.dilation, layer.groups)
    return QuantConv(
        quantizer,
        layer.weight.detach().clone(),
        _batch_norm(layer, None if norm is None else norm[1]),
        weight_format=weight_format,
        geometry=geometry,
        relu=False,
        name=name,
        scheme=scheme,
    )


def _padding(name: str, layer: _Conv) -> tuple[int, ...]:
    """Returns the zeros on either side of each axis, where they are as many on both."""
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(span % 2 for span in spans):
        raise FormatError(f"{name} pads its two sides differently, which is not supported")
    return tuple(span // 2 for span in spans)


def _batch_norm(layer: _Conv, norm: _BatchNorm | None) -> BatchNorm:
    """Returns what normalises a convolution; without a norm, what leaves it alone."""
    ones = torch.ones(layer.out_channels, device=layer.weight.device)
    zeros = torch.zeros_like(ones)
    bias = _copied(layer.bias)
    bias = zeros if bias is None else bias
    if norm is None:
        return BatchNorm(ones, bias, zeros, ones, eps=0.0, trained=False)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gamma, beta = _copied(norm.weight), _copied(norm.bias)
    gamma, beta = ones if gamma is None else gamma, zeros if beta is None else beta
    return BatchNorm(gamma, beta, norm.running_mean - bias, norm.running_var, eps=norm.eps)


def _copied(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().clone()


def _norms_of_convolutions(model: nn.Module) -> dict[str, tuple[str, _BatchNorm]]:
    """Returns, by name of a convolution, the batch norm that alone reads it, and its name."""
    try:
        graph = fx.symbolic_trace(copy.deepcopy(model)).graph  # tracing may leave marks
    except Exception:  # noqa: BLE001 - tracing runs the model's own code, which may raise anything
        return {}
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    found: dict[str, tuple[str, _BatchNorm]] = {}
    for node in graph.nodes:
        if node.op != "call_module" or called.count(node.target) > 1:
            continue
        norm = model.get_submodule(str(node.target))
        source = node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        conv = model.get_submodule(str(source.target))
        if isinstance(conv, _Conv) and called.count(source.target) == 1:
            found[str(source.target)] = (str(node.target), norm)
    return found


def _device(layer: nn.Module) -> torch.device:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.device

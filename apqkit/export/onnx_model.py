"""A frozen network as an ONNX file with explicit QuantizeLinear and DequantizeLinear nodes.

torch writes the folded network with a mark where each quantizer stands; every mark is then
replaced by the nodes that compute what that quantizer computes, with its own scale.
"""

import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from apqkit.errors import ApqkitError, ExportError
from apqkit.quant.activations import ActivationQuantizer, ObservedQuantizer
from apqkit.quant.carriers import carrier_bits
from apqkit.quant.layers import QuantConv, QuantLinear
from apqkit.quant.onnx_marker import MARKER_DOMAIN, MARKER_OP
from apqkit.quant.qdq import (
    FLOAT8_FORMATS,
    OPSET,
    Carrier,
    GraphParts,
    check_carrier,
    dequantize_apart,
    lower_activation,
    lower_bias,
    lower_weight,
)
from apqkit.run import write_atomically

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "export_onnx", "onnx_model"]

INPUT_NAME, OUTPUT_NAME = "images", "logits"
_TRACED_OPSET = 20  # the newest that torch's tracing exporter writes; later ones mean the same
_FIRST_OPSET, _LAST_OPSET = 13, 26  # scales an axis; the newest that ONNX Runtime 1.31 loads
_WITH_BIAS = ("Conv", "Gemm")
_KERNEL_BITS = 8  # of the integers that runtimes compute with

_Weighted = QuantConv | QuantLinear
_Named = TypeVar("_Named", ActivationQuantizer, _Weighted)


def export_onnx(
    model: nn.Module,
    input_shape: tuple[int, ...],
    path: Path,
    metadata: Mapping[str, Any],
    *,
    carrier: Carrier = "int8",
    opset: int | None = None,
) -> None:
    """Writes a calibrated model as ONNX.

    Args:
        model: Frozen by :func:`apqkit.quant.calibrate`.
        input_shape: Of one input, without the batch axis: (channels, height, width) for images.
        path: Where the file goes; it is written whole or not at all.
        metadata: JSON values kept in the file by name.
        carrier: ``int8`` stores weights under 8 bits as int8, for which runtimes have kernels;
            ``packed`` stores int2 in 2 bits and int3 and int4 in 4 bits, for a small file that is
            unpacked when it is loaded, which needs a newer runtime. The numbers are the same.
        opset: ONNX operator set; None takes 21, or the first later one that has all types.

    Raises:
        CalibrationError: The model is not frozen.
        ExportError: A format has no ONNX form or the operator set lacks its type, two quantizers
            share a name, or the graph is not valid.
    """
    exported = onnx_model(model, input_shape, metadata, carrier=carrier, opset=opset)
    write_atomically(Path(path), exported.SerializeToString())


def onnx_model(
    model: nn.Module,
    input_shape: tuple[int, ...],
    metadata: Mapping[str, Any],
    *,
    carrier: Carrier = "int8",
    opset: int | None = None,
) -> onnx.ModelProto:
    """Returns a calibrated model as an ONNX model (see :func:`export_onnx`)."""
    check_carrier(carrier)
    if opset is not None and not _FIRST_OPSET <= opset <= _LAST_OPSET:
        raise ExportError(f"opset must be {_FIRST_OPSET} to {_LAST_OPSET}, got {opset}")
    traced_opset = min(_TRACED_OPSET, opset or _TRACED_OPSET)
    traced = onnx.load_from_string(_trace(model, input_shape, traced_opset))
    parts = GraphParts()
    graph = _lower(traced.graph, model, parts, carrier)
    imported = helper.make_opsetid("", _opset_for(parts, opset))
    lowered = helper.make_model(
        graph,
        opset_imports=[imported],
        ir_version=helper.find_min_ir_version_for([imported]),
        producer_name="apqkit",
    )
    helper.set_model_props(lowered, {name: _as_text(each) for name, each in metadata.items()})
    try:
        onnx.checker.check_model(lowered, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as fault:
        reason = " ".join(str(fault).split())
        raise ExportError(f"the exported graph is not valid: {reason}") from None
    return lowered


@contextmanager
def _faults_named(text: str) -> Iterator[None]:
    try:
        yield
    except ApqkitError:
        raise
    except Exception as fault:  # noqa: BLE001 - a model's own code may raise anything
        reason = str(fault).strip().partition("\n")[0]
        raise ExportError(f"{text}: {reason}") from None


def _opset_for(parts: GraphParts, asked: int | None) -> int:
    """Returns the operator set to write, one that has all that is needed."""
    if asked is None:
        return max([OPSET, *parts.needs.values()])
    for what, least in parts.needs.items():
        if asked < least:
            raise ExportError(f"{what} need opset {least} or later, got {asked}")
    return asked


def _trace(model: nn.Module, input_shape: tuple[int, ...], opset: int) -> bytes:
    buffer: Any = io.BytesIO()  # torch writes to one, though its annotation says paths only
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    example = torch.zeros(1, *input_shape, device=device)
    with (
        torch.no_grad(),
        _faults_named(f"the model cannot run on an input of {tuple(input_shape)}"),
    ):
        model.eval()(example)  # refuses a model that is not frozen, which a trace would not
    named = _faults_named("torch cannot export the model")
    with warnings.catch_warnings(), torch.no_grad(), named:
        warnings.simplefilter("ignore")  # torch calls its tracing exporter legacy
        torch.onnx.export(
            model,
            (example,),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
            do_constant_folding=False,
        )
    content: bytes = buffer.getvalue()
    return content


def _lower(
    graph: onnx.GraphProto, model: nn.Module, parts: GraphParts, carrier: Carrier
) -> onnx.GraphProto:
    """Replaces every mark by real nodes, and the biases of integer layers by int32 ones."""
    modules = list(model.modules())
    activations = _by_name(each for each in modules if isinstance(each, ActivationQuantizer))
    layers = _by_name(each for each in modules if isinstance(each, QuantConv | QuantLinear))
    weighted = {f"{name}.weight": layer for name, layer in layers.items()}
    near = _neighbours(graph, activations, weighted)
    layer_of_weight: dict[str, _Weighted] = {}
    for node in graph.node:
        if not _is_mark(node):
            guarded = _guarded(parts, node, near)
            parts.nodes.append(_with_bias(parts, guarded, layer_of_weight, near))
            continue
        name, target = _mark_name(node), node.output[0]
        if name in weighted:
            layer_of_weight[target] = weighted[name]
            _lower_stored(parts, target, weighted[name], carrier, folds=target not in near.fused)
        else:
            _lower_quantizer(parts, node.input[0], target, activations[name])
    kept = [*graph.initializer, *parts.constants]
    nodes = _needed(parts.nodes, {each.name for each in graph.output})
    used = {name for node in nodes for name in node.input}
    return helper.make_graph(
        nodes,
        "apqkit",
        list(graph.input),
        list(graph.output),
        [each for each in kept if each.name in used],
    )


def _needed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Returns the nodes that outputs depend on; runtimes run the others, too."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]


@dataclass(frozen=True)
class _Neighbours:
    """Which layers stand between quantizers, by the name of their weight.

    Attributes:
        fused: Runtimes fuse them into one integer kernel: they read an integer of 8 bits and, if
            they are convolutions, write one too.
        unfused: The input channels of others that read from one quantizer and write to another.
    """

    fused: frozenset[str]
    unfused: Mapping[str, int]


def _neighbours(
    graph: onnx.GraphProto,
    activations: Mapping[str, ActivationQuantizer],
    layers: Mapping[str, _Weighted],
) -> _Neighbours:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    marks = {node.output[0]: _mark_name(node) for node in graph.node if _is_mark(node)}
    sources = {mark: activations[name] for mark, name in marks.items() if name in activations}
    stored = {mark: layers[name] for mark, name in marks.items() if name in layers}

    def reader(tensor: str) -> ActivationQuantizer | None:
        following = readers.get(tensor, [])
        if len(following) == 1 and following[0].op_type == "Relu":
            following = readers.get(following[0].output[0], [])
        return sources.get(following[0].output[0]) if len(following) == 1 else None

    shapes = {each.name: list(each.dims) for each in graph.initializer}
    shapes |= {n.output[0]: shapes.get(n.input[0], []) for n in graph.node if _is_mark(n)}
    fused, unfused = set(), {}
    for node in graph.node:
        if node.op_type not in _WITH_BIAS or not _is_code(sources.get(node.input[0])):
            continue
        source, target = sources[node.input[0]], reader(node.output[0])
        weight = node.input[1]
        both = _fits_kernel(source) and (node.op_type == "Gemm" or _fits_kernel(target))
        if both and weight in stored and _has_integer_weights(stored[weight]):
            fused.add(weight)
        elif _is_code(target) and shapes.get(weight):
            unfused[weight] = shapes[weight][1] * _groups(node)
    return _Neighbours(frozenset(fused), unfused)


def _groups(node: onnx.NodeProto) -> int:
    return next((each.i for each in node.attribute if each.name == "group"), 1)


def _is_code(quantizer: ActivationQuantizer | None) -> bool:
    """Whether a quantizer becomes a pair of QuantizeLinear and DequantizeLinear."""
    if quantizer is None:
        return False
    return quantizer.is_static_integer or quantizer.number_format.name in FLOAT8_FORMATS


def _fits_kernel(quantizer: ActivationQuantizer | None) -> bool:
    return (
        quantizer is not None
        and quantizer.is_static_integer
        and carrier_bits(quantizer.number_format) == _KERNEL_BITS
    )


def _has_integer_weights(layer: _Weighted) -> bool:
    stored = layer.stored_weight()
    return stored.group_size is None and carrier_bits(stored.number_format) == _KERNEL_BITS


def _mark_name(node: onnx.NodeProto) -> str:
    name: bytes = helper.get_node_attr_value(node, "name")
    return name.decode()


def _lower_stored(
    parts: GraphParts, target: str, layer: _Weighted, carrier: Carrier, *, folds: bool
) -> None:
    stored = layer.stored_weight()
    lower_weight(
        parts,
        target,
        stored.number_format,
        _array(stored.values),
        _array(stored.scale),
        group_size=stored.group_size,
        carrier=carrier,
        folds=folds,
    )


def _lower_quantizer(
    parts: GraphParts, source: str, target: str, quantizer: ActivationQuantizer
) -> None:
    scale: float | None = float(quantizer.scale)
    zero_point = 0
    if isinstance(quantizer, ObservedQuantizer):
        scale = None if quantizer.per_token else scale
        zero_point = int(quantizer.zero_point)
    lower_activation(parts, source, target, quantizer.number_format, scale, zero_point)


def _by_name(modules: Iterable[_Named]) -> dict[str, _Named]:
    """Returns modules by the name that their marks carry; it must be theirs alone."""
    named: dict[str, _Named] = {}
    for each in modules:
        if each.name in named:
            raise ExportError(f"two {type(each).__name__} modules are named {each.name!r}")
        named[each.name] = each
    return named


def _with_bias(
    parts: GraphParts,
    node: onnx.NodeProto,
    layer_of_weight: Mapping[str, _Weighted],
    near: _Neighbours,
) -> onnx.NodeProto:
    """Returns a node whose bias, if it belongs to an integer layer, is stored as int32."""
    layer = next((layer_of_weight[name] for name in node.input if name in layer_of_weight), None)
    step = None if layer is None else layer.bias_step(layer.frozen_scale)
    if layer is None or step is None or node.op_type not in _WITH_BIAS:
        return node
    target = f"{layer.name}.bias"
    if not any(target in each.output for each in parts.nodes):  # a module may run twice
        folds = node.input[1] not in near.fused
        lower_bias(parts, target, _array(layer.frozen_bias), _array(step), folds=folds)
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.input[2] = target
    return changed


def _guarded(parts: GraphParts, node: onnx.NodeProto, near: _Neighbours) -> onnx.NodeProto:
    """Returns a node whose input keeps ONNX Runtime from quantizing its weights.

    Between quantizers the runtime rounds weights that it finds in fp32 to int8 by itself, unless
    the input has a scale for each channel.
    """
    if node.op_type not in _WITH_BIAS or node.input[1] not in near.unfused:
        return node
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.input[0] = dequantize_apart(parts, node.input[0], near.unfused[node.input[1]])
    return changed


def _is_mark(node: onnx.NodeProto) -> bool:
    return node.domain == MARKER_DOMAIN and node.op_type == MARKER_OP


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().contiguous().numpy().astype(np.float32)


def _as_text(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError) as fault:
        raise ExportError(f"metadata must be JSON values: {fault}") from None

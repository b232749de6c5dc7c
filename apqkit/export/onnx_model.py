"""A frozen network as an ONNX file with explicit QuantizeLinear and DequantizeLinear nodes.

torch writes the folded network with a mark where each quantizer stands; every mark is then
replaced by the nodes that compute what that quantizer computes, with its own scale.
"""

import io
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from apqkit.errors import ExportError
from apqkit.quant.layers import ActivationQuantizer, QuantConv, QuantLinear
from apqkit.quant.onnx_marker import MARKER_DOMAIN, MARKER_OP
from apqkit.quant.qdq import OPSET, GraphParts, lower_activation, lower_bias, lower_weight
from apqkit.run import write_atomically

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "export_onnx", "onnx_model"]

INPUT_NAME, OUTPUT_NAME = "images", "logits"
_TRACED_OPSET = 20  # the newest that torch's tracing exporter writes; its ops mean the same in 21
_IR_VERSION = 10

_Weighted = QuantConv | QuantLinear
_Named = TypeVar("_Named", ActivationQuantizer, _Weighted)


def export_onnx(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    path: Path,
    metadata: Mapping[str, Any],
) -> None:
    """Writes a calibrated model as ONNX.

    Args:
        model: Frozen by :func:`apqkit.quant.calibrate.calibrate`.
        image_shape: (channels, height, width) of the images it takes, fp32 in 0..1.
        path: Where the file goes; it is written whole or not at all.
        metadata: JSON values kept in the file by name.

    Raises:
        CalibrationError: The model is not frozen.
        ExportError: A format has no ONNX form, two quantizers share a name, or the graph is not
            valid.
    """
    write_atomically(path, onnx_model(model, image_shape, metadata).SerializeToString())


def onnx_model(
    model: nn.Module, image_shape: tuple[int, int, int], metadata: Mapping[str, Any]
) -> onnx.ModelProto:
    """Returns a calibrated model as an ONNX model (see :func:`export_onnx`)."""
    traced = onnx.load_from_string(_trace(model, image_shape))
    graph = _lower(traced.graph, model)
    lowered = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="apqkit",
    )
    helper.set_model_props(lowered, {name: _as_text(each) for name, each in metadata.items()})
    try:
        onnx.checker.check_model(lowered, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as fault:
        reason = " ".join(str(fault).split())
        raise ExportError(f"the exported graph is not valid: {reason}") from None
    return lowered


def _trace(model: nn.Module, image_shape: tuple[int, int, int]) -> bytes:
    buffer: Any = io.BytesIO()  # torch writes to one, though its annotation says paths only
    example = torch.zeros(1, *image_shape)
    with torch.no_grad():
        model.eval()(example)  # refuses a model that is not frozen, which a trace would not
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch calls its tracing exporter legacy
        torch.onnx.export(
            model,
            (example,),
            buffer,
            dynamo=False,
            opset_version=_TRACED_OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
            do_constant_folding=False,
        )
    content: bytes = buffer.getvalue()
    return content


def _lower(graph: onnx.GraphProto, model: nn.Module) -> onnx.GraphProto:
    """Replaces every mark by real nodes, and the biases of integer layers by int32 ones."""
    modules = list(model.modules())
    activations = _by_name(each for each in modules if isinstance(each, ActivationQuantizer))
    layers = _by_name(each for each in modules if isinstance(each, QuantConv | QuantLinear))
    weighted = {f"{name}.weight": layer for name, layer in layers.items()}
    parts = GraphParts()
    layer_of_weight: dict[str, _Weighted] = {}
    for node in graph.node:
        if not _is_mark(node):
            parts.nodes.append(_with_bias(parts, node, layer_of_weight))
            continue
        name, target = helper.get_node_attr_value(node, "name").decode(), node.output[0]
        if name in weighted:
            layer_of_weight[target] = weighted[name]
            stored = weighted[name].weight_quantizer()
            values, scale = _array(stored.values), _array(stored.scale)
            lower_weight(parts, target, stored.number_format, values, scale)
        else:
            quantizer = activations[name]
            scale_value = float(quantizer.scale)
            lower_activation(parts, node.input[0], target, quantizer.number_format, scale_value)
    kept = [*graph.initializer, *parts.constants]
    used = {name for node in parts.nodes for name in node.input}
    return helper.make_graph(
        parts.nodes,
        "apqkit",
        list(graph.input),
        list(graph.output),
        [each for each in kept if each.name in used],
    )


def _by_name(modules: Iterable[_Named]) -> dict[str, _Named]:
    """Returns modules by the name that their marks carry; it must be theirs alone."""
    named: dict[str, _Named] = {}
    for each in modules:
        if each.name in named:
            raise ExportError(f"two {type(each).__name__} modules are named {each.name!r}")
        named[each.name] = each
    return named


def _with_bias(
    parts: GraphParts, node: onnx.NodeProto, layer_of_weight: Mapping[str, _Weighted]
) -> onnx.NodeProto:
    """Returns a node whose bias, if it belongs to an integer layer, is stored as int32."""
    layer = next((layer_of_weight[name] for name in node.input if name in layer_of_weight), None)
    step = None if layer is None else layer.bias_step(layer.frozen_scale)
    if layer is None or step is None:
        return node
    target = f"{layer.name}.bias"
    lower_bias(parts, target, _array(layer.frozen_bias), _array(step))
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.input[2] = target
    return changed


def _is_mark(node: onnx.NodeProto) -> bool:
    return node.domain == MARKER_DOMAIN and node.op_type == MARKER_OP


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().contiguous().numpy().astype(np.float32)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

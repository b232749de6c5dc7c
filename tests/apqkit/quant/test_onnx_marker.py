import io

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from apqkit.quant.onnx_marker import MARKER_DOMAIN, MARKER_OP, mark_for_export


class Marked(nn.Module):
    def forward(self, x):
        return mark_for_export(torch.relu(x), "stem.input") + 1.0


def traced(model):
    buffer = io.BytesIO()
    torch.onnx.export(model, (torch.zeros(1, 3),), buffer, dynamo=False, opset_version=20)
    return onnx.load_from_string(buffer.getvalue()).graph


def test_a_mark_is_a_copy():
    x = torch.randn(3)
    marked = mark_for_export(x, "name")
    assert torch.equal(marked, x)
    assert marked.data_ptr() != x.data_ptr()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch calls its tracing legacy
def test_a_traced_graph_holds_a_node_with_the_name():
    graph = traced(Marked())
    marks = [node for node in graph.node if node.domain == MARKER_DOMAIN]
    assert [node.op_type for node in marks] == [MARKER_OP]
    assert helper.get_node_attr_value(marks[0], "name") == b"stem.input"
    before, after = graph.node[0], graph.node[-1]
    assert before.op_type == "Relu"
    assert list(marks[0].input) == list(before.output)
    assert after.op_type == "Add"
    assert marks[0].output[0] in after.input

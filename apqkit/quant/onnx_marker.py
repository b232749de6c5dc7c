"""Marks where a quantizer stands while torch writes a graph; the exporter replaces the marks."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["MARKER_DOMAIN", "MARKER_OP", "mark_for_export"]

MARKER_DOMAIN = "apqkit"
MARKER_OP = "Quantize"


class _Marker(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        return x.clone()

    @staticmethod
    def symbolic(graph: Any, x: Any, name: str) -> Any:
        return graph.op(f"{MARKER_DOMAIN}::{MARKER_OP}", x, name_s=name).setType(x.type())


def mark_for_export(x: Tensor, name: str) -> Tensor:
    """Returns x and leaves a node ``apqkit::Quantize`` with this name in the traced graph."""
    return _Marker.apply(x, name)  # type: ignore[no-any-return]

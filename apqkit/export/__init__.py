"""Frozen networks as runnable ONNX, and the check that they compute what was measured."""

from apqkit.export.check import check_model, onnx_logits, run_times, time_models
from apqkit.export.onnx_model import export_onnx

__all__ = ["check_model", "export_onnx", "onnx_logits", "run_times", "time_models"]

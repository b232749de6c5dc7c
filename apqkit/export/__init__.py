"""Frozen networks as runnable ONNX, and the check that they compute what was measured."""

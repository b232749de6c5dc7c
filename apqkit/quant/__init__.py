"""Quantizers, ranges and quantized layers."""

"""How wide the tensors of a network are stored, which several cost models read."""

import numpy as np

from apqkit.formats import FORMATS
from apqkit.types import IntArray, LayerTable

__all__ = ["format_bits", "output_bits", "stored_tensors"]


def output_bits(table: LayerTable) -> IntArray:
    """(n, L) bits a value of each row's output: its first reader's format, fp32 if none reads."""
    return stored_tensors(table)[0]


def stored_tensors(table: LayerTable) -> tuple[IntArray, IntArray]:
    """(n, L) bits a value of each row's output, and the last row that reads it or itself."""
    count, rows = table.op.shape
    candidates = np.arange(count)
    bits = np.full((count, rows), FORMATS["fp32"].bits)
    last_reader = np.tile(np.arange(rows), (count, 1))
    for row in reversed(range(rows)):
        for producers in table.producers[:, row].T:
            reads = producers >= 0
            at = (candidates[reads], producers[reads])
            bits[at] = format_bits(table.activation_format[reads, row])
            last_reader[at] = np.maximum(last_reader[at], row)
    return bits, last_reader


def format_bits(codes: IntArray) -> IntArray:
    """Returns the bits of format codes of any shape; 0 where there is no format."""
    widths = np.array([*(each.bits for each in FORMATS.values()), 0])
    return np.asarray(widths[codes])  # -1 reads the last

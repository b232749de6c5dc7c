"""Which kernels a CPU runtime runs for networks, and what it converts between them.

A layer runs in an integer kernel if its input, its weights and its output are integers of at
most 8 bits, else in an fp32 kernel. Integer kernels read channels last, fp32 kernels channels in
blocks where the runtime has blocks; images and what linear layers read are in plain order. Every
change of number format or order is work of its own: the edges of a table.
The rules are those by which ONNX Runtime fuses graphs whose quantizers stand where
:func:`apqkit.elastic.network.make_plan` puts them. In OpenVINO every kernel reads channels last,
and an integer kernel may write fp32. Letters: n candidates, L rows, c key columns.
"""

from dataclasses import dataclass

import numpy as np

from apqkit.cost.keys import KEY_COLUMNS, TABLE_OPS
from apqkit.formats import FORMATS, format_code
from apqkit.types import OPS, BoolArray, IntArray, LayerTable

__all__ = ["EDGES", "ONNX_RUNTIME", "OPENVINO", "KernelTable", "conversion_keys", "kernel_table"]

ONNX_RUNTIME, OPENVINO = "onnxruntime", "openvino"
"""Runtimes whose rules are known, as a table's header names them."""

EDGES = (
    ("quantize", "fp32", "int8"),
    ("dequantize", "int8", "fp32"),
    ("requantize", "int8", "int8"),
    ("layout_in", "int8", "int8"),
    ("layout_out", "int8", "int8"),
    ("layout_in", "fp32", "fp32"),
    ("layout_out", "fp32", "fp32"),
)
"""The conversions by op, format read and format written."""

_QUANTIZE, _DEQUANTIZE, _REQUANTIZE, _IN, _OUT, _IN_FP32, _OUT_FP32 = range(len(EDGES))
_INPUT, _CONV, _LINEAR, _ADD, _POOL, _GLOBAL_POOL = range(len(OPS))
_FOLLOWERS = (_ADD, _POOL, _GLOBAL_POOL)  # they keep the order of what they read
_KERNEL_BITS = 8


@dataclass(frozen=True)
class KernelTable:
    """What runs for n networks.

    Attributes:
        keys: (n, L, c) the kernel of each row, formats by what computes it: int8 or fp32.
        runs: (n, L) False where an active row has a format that no kernel holds.
        inside: (n, L) sums that the convolution before them computes, whose ``residual`` is 1.
        conversions: (n, L, 7) how often each of :data:`EDGES` is run for what a row reads.
        shapes: (n, L, 3) channels, height and width of the tensors that a row reads.
    """

    keys: IntArray
    runs: BoolArray
    inside: BoolArray
    conversions: IntArray
    shapes: IntArray


def conversion_keys(shapes: IntArray, edge: int) -> IntArray:
    """(..., c) keys of a conversion, by its place in :data:`EDGES`, of tensors (..., 3)."""
    op, source, target = EDGES[edge]
    keys = np.zeros((*shapes.shape[:-1], len(KEY_COLUMNS)), dtype=np.int64)
    values = {
        "op": TABLE_OPS.index(op),
        "in_channels": shapes[..., 0],
        "out_channels": shapes[..., 0],
        "in_height": shapes[..., 1],
        "in_width": shapes[..., 2],
        "weight_format": -1,
        "activation_format": format_code(source),
        "output_format": format_code(target),
    }
    for name, value in values.items():
        keys[..., KEY_COLUMNS.index(name)] = value
    return keys


def kernel_table(table: LayerTable, *, block: int, runtime: str = ONNX_RUNTIME) -> KernelTable:
    """Returns the kernels and conversions of n networks.

    Args:
        table: n networks of L rows.
        block: Channels in a block of the runtime's fp32 kernels; 0 if they read plain order.
        runtime: Whose rules hold.
    """
    carriers = _Carriers.of(table)
    integer = _runs_in_integers(table, carriers, may_write_fp32=runtime == OPENVINO)
    walk = _Walk(table, carriers, integer, block)
    conversions, sums = walk.conversions(), walk.blocked_sums
    if runtime == OPENVINO:  # one order for all; what is cut to fewer levels is cut on the way
        conversions[..., [_REQUANTIZE, _IN, _OUT, _IN_FP32, _OUT_FP32]] = 0
        sums = table.active & (table.op == _ADD) & ~integer
    inside, sums_up = _fused(table, sums, ~integer)
    return KernelTable(
        keys=_node_keys(table, carriers, integer, sums_up),
        runs=carriers.held | ~table.active,
        inside=inside,
        conversions=conversions,
        shapes=np.stack([table.in_channels, table.in_height, table.in_width], axis=-1),
    )


@dataclass(frozen=True)
class _Carriers:
    """(n, L) each: what formats become.

    Attributes:
        weight: Whether the weights are integers of at most 8 bits, or there are none.
        source: Whether the input is stored as such integers.
        output: Whether the first reader of the output stores it as such integers.
        held: Whether kernels hold both weights and input.
    """

    weight: BoolArray
    source: BoolArray
    output: BoolArray
    held: BoolArray

    @classmethod
    def of(cls, table: LayerTable) -> "_Carriers":
        is_int = np.array(
            [*(f.family == "int" and f.bits <= _KERNEL_BITS for f in FORMATS.values()), False]
        )
        is_fp32 = np.array([*(f.is_fp32 for f in FORMATS.values()), True])  # -1: none
        weightless = table.weight_format < 0
        held = is_int | is_fp32
        source = is_int[table.activation_format]
        return cls(
            weight=is_int[table.weight_format] | weightless,
            source=source,
            output=_first_readers(table, source),
            held=held[table.weight_format] & held[table.activation_format],
        )


def _first_readers(table: LayerTable, source: BoolArray) -> BoolArray:
    """(n, L) what the first reader of each row's output has in ``source``; False without one."""
    count, rows = table.op.shape
    first = np.zeros((count, rows), dtype=bool)
    candidates = np.arange(count)
    for row in reversed(range(rows)):
        for producers in table.producers[:, row].T:
            reads = producers >= 0
            first[candidates[reads], producers[reads]] = source[reads, row]
    return first


def _runs_in_integers(
    table: LayerTable, carriers: _Carriers, *, may_write_fp32: bool
) -> BoolArray:
    """(n, L) whether each row runs in an integer kernel.

    Linear ones may write fp32. Global pools run in fp32: their output is flattened before it is
    quantized, and runtimes fuse nothing over that.
    """
    writes = carriers.output | (table.op == _LINEAR) | may_write_fp32
    other = (_INPUT,) if may_write_fp32 else (_INPUT, _GLOBAL_POOL)
    computes = table.active & ~np.isin(table.op, other)
    return np.asarray(computes & carriers.source & carriers.weight & writes)


def _fused(table: LayerTable, sums: BoolArray, fp32: BoolArray) -> tuple[BoolArray, BoolArray]:
    """(n, L) those of some sums that run inside an fp32 convolution, and those convolutions.

    It is one that nothing else reads and that no activation follows.
    """
    candidates = np.arange(len(table))
    readers = np.zeros((len(table), table.op.shape[1] + 1), dtype=np.int64)
    np.add.at(readers, (candidates[:, None, None], table.producers), 1)  # -1 counts as the last
    free = fp32 & (table.op == _CONV) & (table.activation == 0) & (readers[:, :-1] == 1)
    inside, sums_up = np.zeros_like(sums), np.zeros_like(sums)
    for row in np.flatnonzero(sums.any(axis=0)):
        for producer in table.producers[:, row].T:
            takes = sums[:, row] & ~inside[:, row] & (producer >= 0) & free[candidates, producer]
            inside[:, row] |= takes
            sums_up[candidates[takes], producer[takes]] = True
    return inside, sums_up


def _node_keys(
    table: LayerTable, carriers: _Carriers, integer: BoolArray, sums_up: BoolArray
) -> IntArray:
    computed = np.where(integer, format_code("int8"), format_code("fp32"))
    written = np.where(integer & carriers.output, format_code("int8"), format_code("fp32"))
    none = np.zeros_like(table.op)
    columns = {
        "hidden_channels": none,
        "squeeze_excite": none,
        "residual": sums_up,
        "weight_format": np.where(table.weight_format >= 0, computed, -1),
        "activation_format": computed,
        "output_format": written,
        "signed_input": table.signed_input & integer,
    }
    values = [columns[n] if n in columns else getattr(table, n) for n in KEY_COLUMNS]
    return np.stack(values, axis=-1) * table.active[..., None]


@dataclass(frozen=True)
class _Tensors:
    """(n,) each: what a row reads from one producer.

    Attributes:
        at: Candidates and their producers, as an index into (n, L).
        reads: Whether there is a producer.
        kept: Whether it is what other readers get, too, and not converted for this one alone.
        integer: Whether it is stored in integers.
        ordered: Whether it is in the order of kernels.
        both: Whether it was brought into plain order for an earlier reader.
    """

    at: tuple[IntArray, IntArray]
    reads: BoolArray
    kept: BoolArray
    integer: BoolArray
    ordered: BoolArray
    both: BoolArray


class _Walk:
    """Goes through the rows in order and notes what is converted; one use.

    Attributes:
        blocked_sums: (n, L) fp32 sums of tensors that are all in blocks.
    """

    def __init__(
        self, table: LayerTable, carriers: _Carriers, integer: BoolArray, block: int
    ) -> None:
        count, rows = table.op.shape
        self._table = table
        self._kernel = integer
        self._source = carriers.source
        self._block = block
        self._candidates = np.arange(count)
        self._integer = integer.copy()  # of each row's output, as it is kept
        self._ordered = np.zeros((count, rows), dtype=bool)
        self._both = np.zeros((count, rows), dtype=bool)  # in plain order, too
        self._format = np.full((count, rows), -1)  # in which it was stored by its first reader
        self._found = np.zeros((count, rows, len(EDGES)), dtype=np.int64)
        self.blocked_sums = np.zeros((count, rows), dtype=bool)
        bits = np.array([*(each.bits for each in FORMATS.values()), _KERNEL_BITS])
        self._narrow = bits[table.activation_format] < _KERNEL_BITS

    def conversions(self) -> IntArray:
        """(n, L, 7) how often each conversion runs for what a row reads."""
        for row in range(self._table.op.shape[1]):
            read = [self._fetched(row, each) for each in self._table.producers[:, row].T]
            wants = self._wants_order(row, read)
            for tensors in read:
                self._enter(row, tensors, wants)
            self._ordered[:, row] = wants | self._is_conv(row) & self._has_order(row)
            is_sum = self._table.op[:, row] == _ADD
            self.blocked_sums[:, row] = wants & is_sum & ~self._kernel[:, row]
        return self._found

    def _fetched(self, row: int, producer: IntArray) -> _Tensors:
        """Returns the tensors that a row reads, quantized if its plan says so."""
        reads = producer >= 0
        at = (self._candidates, np.where(reads, producer, 0))
        integer, ordered, both = self._integer[at], self._ordered[at], self._both[at]
        wanted, stored = self._table.activation_format[:, row], self._format[at]
        first = stored < 0
        same = (stored == wanted) & (self._table.weight_format[:, row] < 0)
        quantizes = reads & self._source[:, row] & ~same
        anew = quantizes & ~(first & integer)  # an integer kernel has quantized its own output
        leaves = anew & ~integer & ordered
        self._note(row, _DEQUANTIZE, anew & integer)
        self._note(row, _OUT_FP32, leaves & ~both)
        self._note(row, _QUANTIZE, anew)
        self._note(row, _REQUANTIZE, quantizes & self._narrow[:, row])
        self._both[at] |= leaves & ~first
        tensors = _Tensors(
            at, reads, first | ~anew, integer | quantizes, ordered & ~leaves, both & ~anew
        )
        self._keep(tensors, reads & first, wanted)
        return tensors

    def _keep(self, tensors: _Tensors, where: BoolArray, wanted: IntArray) -> None:
        """Stores tensors as their first reader wants them."""
        kept = tuple(each[where] for each in tensors.at)
        self._integer[kept], self._ordered[kept] = tensors.integer[where], tensors.ordered[where]
        self._format[kept] = wanted[where]

    def _wants_order(self, row: int, read: list[_Tensors]) -> BoolArray:
        """(n,) whether a row reads in the order of kernels."""
        table, kernel = self._table, self._kernel[:, row]
        few = (table.groups[:, row] == 1) & (table.in_channels[:, row] < self._block)
        conv = self._is_conv(row) & self._has_order(row) & (kernel | ~few)
        ordered = [each.ordered & (each.integer == kernel) | ~each.reads for each in read]
        follows = np.isin(table.op[:, row], _FOLLOWERS) & table.active[:, row]
        return np.asarray(conv | follows & np.all(ordered, axis=0))

    def _enter(self, row: int, tensors: _Tensors, wants: BoolArray) -> None:
        """Notes what brings tensors into the format and the order that a row's kernel reads."""
        kernel, reads = self._kernel[:, row], tensors.reads
        leaves = reads & tensors.integer & ~kernel
        self._note(row, _DEQUANTIZE, leaves)
        ordered = tensors.ordered & ~leaves
        turned = tensors.ordered & ~tensors.both
        self._note(row, _OUT, leaves & turned)
        self._note(row, _IN, reads & kernel & wants & ~ordered)
        self._note(row, _OUT, reads & kernel & ~wants & turned)
        self._note(row, _IN_FP32, reads & ~kernel & wants & ~ordered)
        self._note(row, _OUT_FP32, reads & ~kernel & ~wants & ordered & turned)
        self._both[tensors.at] |= reads & tensors.kept & tensors.ordered & (leaves | ~wants)

    def _note(self, row: int, edge: int, where: BoolArray) -> None:
        self._found[:, row, edge] += where

    def _is_conv(self, row: int) -> BoolArray:
        return np.asarray((self._table.op[:, row] == _CONV) & self._table.active[:, row])

    def _has_order(self, row: int) -> BoolArray:
        """(n,) whether the kernels of a row's format have an order of their own."""
        return np.asarray(self._kernel[:, row] | (self._block > 0))

"""Latency of networks from a look-up table: layers, conversions between them, and an error bar."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from apqkit.cost.interpolation import Interpolator, fit_interpolator
from apqkit.cost.kernels import (
    EDGES,
    ONNX_RUNTIME,
    OPENVINO,
    KernelTable,
    conversion_keys,
    kernel_table,
)
from apqkit.cost.keys import (
    BLOCK_OPS,
    KEY_COLUMNS,
    TABLE_OPS,
    column,
    distinct_keys,
    key_text,
)
from apqkit.cost.lut import LookupTable
from apqkit.errors import CostError
from apqkit.types import OPS, BoolArray, FloatArray, IntArray, LayerTable

__all__ = [
    "BLOCK_HEADER",
    "FREE_HEADER",
    "KIND_COLUMNS",
    "RUNTIME_HEADER",
    "Coverage",
    "LutCost",
    "WantedKeys",
    "plain_keys",
    "wanted_keys",
]

RUNTIME_HEADER, BLOCK_HEADER, FREE_HEADER = "runtime_rules", "fp32_block", "free_ops"
"""Names in a table's header: whose rules of fusion its rows follow (none: a row a layer), how many
channels stand together in its fp32 kernels, and which ops cost nothing in it."""

KIND_COLUMNS = ("op", "weight_format", "activation_format", "output_format")
"""Rows that are alike in these are estimated from each other."""

_CHUNK = 2048  # networks whose columns stay in the cache
_FEW = 8  # rows of a kind, below which rows of other formats help
_FAR = 1.0  # relative error of an estimate from rows of other ops
_SUM_ERROR = 0.04  # of whole networks, relative, as benchmarks/lut_fidelity.py finds it


@dataclass
class Coverage:
    """What a table could not look up.

    Attributes:
        estimated: Rows that it lacked, by text, with the estimate in ms.
        error: The relative standard error of each.
        left_out_error: For each kind of row that was estimated, by text, the median relative
            error of the known rows when they are left out.
    """

    estimated: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    left_out_error: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Price:
    latency_ms: float
    energy_mj: float
    variance: float  # of a measured row
    error_ms: float  # of an estimated one


@dataclass(frozen=True)
class _Kind:
    """What rows of a kind are estimated from."""

    latency: Interpolator
    energy: Interpolator | None  # where every energy is known
    least_error: float


class LutCost:
    """Prices networks from a table; satisfies :class:`apqkit.types.CostModel`.

    ``latency_ms`` is the sum of layers and of conversions between them; ``energy_mj`` likewise,
    where the table knows every energy. ``latency_error_ms`` is one standard error of the sum:
    rows that were measured vary independently, rows that were estimated count as if all were
    wrong in one direction, and in a table of a runtime's kernels a sum of kernels is off by 4 %
    by itself. Rows that the table lacks are estimated and noted in ``coverage``.

    Args:
        table: Nodes and edges.
        edges: False leaves conversions out, as additive tables do.

    Raises:
        CostError: The table's header names rules that there are not.
    """

    peaks: tuple[str, ...] = ()

    def __init__(self, table: LookupTable, *, edges: bool = True) -> None:
        self.table = table
        self.coverage = Coverage()
        self._edges = edges
        self._runtime, self._block, self._free = _rules(table.header)
        self._with_energy = bool(np.isfinite(table.energy_mj).all())
        rows = zip(table.keys.tolist(), _known_prices(table), strict=True)
        self._known: dict[tuple[int, ...], _Price] = {tuple(key): price for key, price in rows}
        once = [TABLE_OPS.index(each) for each in BLOCK_OPS[1:]]
        self._once = [price for key, price in self._known.items() if key[0] in once]
        self._kinds: dict[tuple[int, ...], _Kind] = {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what it computes."""
        energy = ("energy_mj",) if self._with_energy else ()
        return ("latency_ms", *energy, "latency_error_ms")

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{metric: (n,)}``; NaN where a format has no kernel or no row."""
        terms = self.layer_terms(table)
        return self.totals({name: values.sum(axis=1) for name, values in terms.items()})

    def totals(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns the metrics that follow from sums over rows of :meth:`layer_terms`."""
        own = _SUM_ERROR * sums["latency_ms"] if self._runtime else 0.0
        error = np.sqrt(sums["variance"] + own**2) + sums["error_ms"]
        found = {**sums, "latency_error_ms": error}
        return {name: found[name] for name in self.metrics}

    def layer_terms(self, table: LayerTable) -> dict[str, FloatArray]:
        """{term: (n, L)} what each row adds, conversions of what it reads included.

        Terms are ``latency_ms``, ``energy_mj``, ``variance`` of measured and ``error_ms`` of
        estimated rows. 0 where inactive or part of another row, NaN without a kernel.
        """
        costs = table.active & ~np.isin(table.op, self._free)
        if self._runtime:
            kernels = kernel_table(table, block=self._block, runtime=self._runtime)
            runs = kernels.runs & (self._knows_formats(kernels.keys) | ~costs)
            terms = self._priced(kernels.keys, costs & runs & ~kernels.inside)
            if self._edges:
                self._add_edges(kernels, runs, terms)
        else:
            keys = plain_keys(table)
            runs = self._knows_formats(keys) | ~costs
            terms = self._priced(keys, costs & runs)
        for values in terms.values():
            values[~runs] = np.nan
        for price in self._once:  # what a network costs beside its rows
            for name, values in terms.items():
                values[:, 0] += getattr(price, name)
        return terms

    def _knows_formats(self, keys: IntArray) -> BoolArray:
        """(n, L) whether the table has any row with the formats of a key."""
        found = [
            np.isin(column(keys, name), column(self.table.keys, name))
            for name in ("weight_format", "activation_format")
        ]
        return np.asarray(found[0] & found[1])

    def _add_edges(
        self, kernels: KernelTable, runs: BoolArray, terms: dict[str, FloatArray]
    ) -> None:
        for edge in range(len(EDGES)):
            times = kernels.conversions[..., edge]
            where = (times > 0) & runs
            found = self._prices(conversion_keys(kernels.shapes[where], edge))
            for name, values in found.items():
                terms[name][where] += values * times[where]

    def _priced(self, keys: IntArray, where: BoolArray) -> dict[str, FloatArray]:
        """{term: (n, L)} prices of keys (n, L, c), 0 elsewhere."""
        terms = {}
        for name, values in self._prices(keys[where]).items():
            terms[name] = np.zeros(where.shape)
            terms[name][where] = values
        return terms

    def _prices(self, keys: IntArray) -> dict[str, FloatArray]:
        """{term: (m,)} prices of keys (m, c)."""
        found = distinct_keys(keys, np.ones(len(keys), dtype=bool))
        prices = [self._price(tuple(key)) for key in found.keys.tolist()]
        terms = {}
        for name in ("latency_ms", "energy_mj", "variance", "error_ms"):
            if name != "energy_mj" or self._with_energy:
                each = np.array([getattr(price, name) for price in prices])
                terms[name] = each[found.index]
        return terms

    def _price(self, key: tuple[int, ...]) -> _Price:
        if key not in self._known:
            self._known[key] = self._estimated(np.array(key))
        return self._known[key]

    def _estimated(self, key: IntArray) -> _Price:
        """Prices a key that the table lacks, alone: what else is asked does not change a bit."""
        kind = self._kind(tuple(int(column(key, name)) for name in KIND_COLUMNS))
        latency, error = kind.latency.predict(key[None])
        latency_ms, share = float(latency[0]), max(float(error[0]), kind.least_error)
        energy_mj = float("nan")
        if kind.energy is not None:
            energy_mj = float(kind.energy.predict(key[None])[0][0])
        self.coverage.estimated[key_text(key)] = latency_ms
        self.coverage.error[key_text(key)] = share
        return _Price(latency_ms, energy_mj, 0.0, latency_ms * share)

    def _kind(self, kind: tuple[int, ...]) -> _Kind:
        if kind not in self._kinds:
            rows, least_error = self._alike(np.array(kind))
            alike = self.table.take(rows)
            latency = fit_interpolator(alike.keys, alike.latency_ms)
            energy = fit_interpolator(alike.keys, alike.energy_mj) if self._with_energy else None
            self._kinds[kind] = _Kind(latency, energy, least_error)
            error = float(np.median(latency.left_out_error))
            self.coverage.left_out_error[_kind_text(kind)] = error
        return self._kinds[kind]

    def _alike(self, kind: IntArray) -> tuple[IntArray, float]:
        """Returns the rows nearest in kind, and the least error of an estimate from them."""
        keys = self.table.keys
        own = np.stack([column(keys, name) for name in KIND_COLUMNS], axis=1) == kind
        same = np.flatnonzero(own.all(axis=1))
        if len(same) >= _FEW:
            return same, 0.0
        same_op = np.flatnonzero(own[:, 0])
        if len(same_op):
            return same_op, 0.0
        return np.arange(len(keys)), _FAR


def _rules(header: Mapping[str, str]) -> tuple[str, int, list[int]]:
    """Returns a table's runtime (or nothing), the block of its fp32 kernels and its free ops."""
    runtime, block = header.get(RUNTIME_HEADER, ""), header.get(BLOCK_HEADER, "0")
    if runtime not in ("", ONNX_RUNTIME, OPENVINO):
        raise CostError(
            f"a table's {RUNTIME_HEADER} must be {ONNX_RUNTIME} or {OPENVINO}, got {runtime!r}"
        )
    if not block.isdecimal():
        raise CostError(f"a table's {BLOCK_HEADER} must be a whole number, got {block!r}")
    free = header.get(FREE_HEADER, "input").split()
    for op in free:
        if op not in OPS:
            raise CostError(f"a table's {FREE_HEADER} must be of {', '.join(OPS)}, got {op!r}")
    return runtime, int(block), [OPS.index(op) for op in free]


def _kind_text(kind: tuple[int, ...]) -> str:
    key = np.zeros(len(KEY_COLUMNS), dtype=np.int64)
    key[[KEY_COLUMNS.index(name) for name in KIND_COLUMNS]] = kind
    return key_text(key)


def _known_prices(table: LookupTable) -> list[_Price]:
    variance = table.spread_ms**2
    columns = (each.tolist() for each in (table.latency_ms, table.energy_mj, variance))
    return [_Price(ms, mj, sd, 0.0) for ms, mj, sd in zip(*columns, strict=True)]


def plain_keys(table: LayerTable) -> IntArray:
    """(n, L, c) keys of a table that holds one row a layer, in the formats that it has."""
    none = np.zeros_like(table.op)
    left_out = {
        "hidden_channels": none,
        "activation": none,
        "squeeze_excite": none,
        "residual": none,
        "output_format": none - 1,
        "signed_input": none,
    }
    values = [left_out[n] if n in left_out else getattr(table, n) for n in KEY_COLUMNS]
    return np.stack(values, axis=-1)


@dataclass(frozen=True)
class WantedKeys:
    """What some networks need.

    Attributes:
        keys: (m, c) distinct kernels, then distinct conversions.
        uses: (m,) how often the networks need each.
    """

    keys: IntArray
    uses: IntArray


def wanted_keys(table: LayerTable, *, block: int, runtime: str = ONNX_RUNTIME) -> WantedKeys:
    """Returns the distinct kernels and conversions that networks need, in a fixed order.

    Args:
        table: The networks.
        block: As in :func:`apqkit.cost.kernels.kernel_table`.
        runtime: The same.

    Raises:
        CostError: No row has a kernel.
    """
    parts: list[list[WantedKeys]] = [[] for _ in range(1 + len(EDGES))]
    for start in range(0, len(table), _CHUNK):
        some = table.take(slice(start, start + _CHUNK))
        kernels = kernel_table(some, block=block, runtime=runtime)
        nodes = kernels.runs & some.active & ~kernels.inside & (some.op != OPS.index("input"))
        parts[0].append(_distinct(kernels.keys[nodes], np.ones(int(nodes.sum()))))
        for edge in range(len(EDGES)):
            times = kernels.conversions[..., edge]
            where = times > 0
            keys = conversion_keys(kernels.shapes[where], edge)
            parts[1 + edge].append(_distinct(keys, times[where]))
    whole = [
        _distinct(*(np.concatenate([getattr(e, name) for e in part]) for name in ("keys", "uses")))
        for part in parts
    ]
    if not len(whole[0].keys):
        raise CostError("there is no layer to time")
    return WantedKeys(
        np.concatenate([each.keys for each in whole]), np.concatenate([e.uses for e in whole])
    )


def _distinct(keys: IntArray, uses: FloatArray | IntArray) -> WantedKeys:
    """Returns the distinct ones of keys (m, c) with the sums of their uses (m,)."""
    found = distinct_keys(keys, np.ones(len(keys), dtype=bool))
    total = np.bincount(found.index, uses, len(found.keys))
    return WantedKeys(found.keys, total.astype(np.int64))

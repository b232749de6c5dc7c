"""NSGANetV2's table: latencies of Once-for-All's MobileNetV3 blocks on a desktop CPU, fp32.

``data/i7-8700K_lut.yaml`` of github.com/mikelzc1990/nsganetv2 is YAML of ``NAME: {mean, var}`` in
ms. Names are ``MBConv`` (a block, with ``-se:B`` at the end and the ratio after ``expand``),
``first_conv``, ``final_expand_layer`` (a 1x1 convolution and the average of its maps),
``feature_mix_layer`` (a 1x1 convolution) and ``classifier``; the grammar is that of
:mod:`apqkit.cost.importers.blocks`. Activation functions are not stated. The same as CSV has the
names in a column ``key`` beside ``mean_ms`` and ``var``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from apqkit.cost.importers.blocks import BLOCK, SHAPES, block_key, map_key, numbers
from apqkit.cost.importers.rows import (
    ImportedRows,
    Line,
    TableOptions,
    header_of,
    linear_key,
    measured,
)
from apqkit.cost.importers.sources import WHOLE, read_csv, read_flat_yaml
from apqkit.cost.lut import LookupTable
from apqkit.cost.lut_cost import FREE_HEADER
from apqkit.errors import CostError
from apqkit.types import IntArray

__all__ = ["NsganetTableOptions", "read_nsganetv2"]

_BLOCK = re.compile(rf"MBConv{BLOCK}-se:(?P<squeeze_excite>[01])", re.ASCII)
_LAYER = re.compile(
    rf"(?P<name>first_conv|final_expand_layer|feature_mix_layer){SHAPES}", re.ASCII
)
_CLASSIFIER = re.compile(
    rf"classifier-input:(?P<inputs>{WHOLE})-output:(?P<outputs>{WHOLE})", re.ASCII
)
_FIRST = {"kernel": 3, "stride": 2}
_POINTWISE = {"kernel": 1, "stride": 1}


class NsganetTableOptions(TableOptions):
    """What the header says of the table; the defaults are those of the published file."""

    device: Line = "Intel i7-8700K"
    licence: Line = "Apache-2.0"
    source: Line | None = "github.com/mikelzc1990/nsganetv2, data/i7-8700K_lut.yaml"


def read_nsganetv2(path: Path, options: NsganetTableOptions) -> LookupTable:
    """Reads NSGANetV2's table.

    Args:
        path: The YAML, or the same as CSV (also ``.gz``).
        options: For the header.

    Raises:
        CostError: The file is missing or broken, or a name is of another grammar.
    """
    rows = ImportedRows(path)
    for name, entry in _entries(path):
        where = f"{path}, {name!r}"
        rows.add(name, _key(name, where), measured(entry, where))
    free = {FREE_HEADER: "input add global_pool"}
    return rows.table(header_of(options, path) | free)


def _entries(path: Path) -> list[tuple[str, Mapping[str, object]]]:
    if not path.name.endswith((".csv", ".csv.gz")):
        return list(read_flat_yaml(path).items())
    frame = read_csv(path, ("key", "mean_ms", "var"))
    return [
        (name, {"mean": mean, "var": var})
        for name, mean, var in frame.itertuples(index=False, name=None)
    ]


def _key(name: str, where: str) -> IntArray:
    block = _BLOCK.fullmatch(name)
    if block is not None:
        found = numbers(block)
        hidden = found["expand"] * found["in_channels"]
        return block_key(found, where, hidden_channels=hidden, activation="none")
    classifier = _CLASSIFIER.fullmatch(name)
    if classifier is not None:
        return linear_key((int(classifier["inputs"]), int(classifier["outputs"])))
    layer = _LAYER.fullmatch(name)
    if layer is None:
        raise CostError(
            f"{where}: expected MBConv, first_conv, final_expand_layer, feature_mix_layer or "
            f"classifier with the shapes of input and output"
        )
    shapes = {part: int(text) for part, text in layer.groupdict().items() if part != "name"}
    return map_key(shapes, where, **(_FIRST if layer["name"] == "first_conv" else _POINTWISE))

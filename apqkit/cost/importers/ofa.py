"""Tables of ProxylessNAS and Once-for-All: latencies of whole blocks in fp32.

YAML of ``NAME: {count, mean, std or var}`` in ms, as phones measured them. Names are
``expanded_conv`` (a block), ``Conv`` (the first convolution), ``Conv_1`` and ``Conv_2`` (1x1
convolutions), ``AvgPool2D`` and ``Logits``; the grammar is that of
:mod:`apqkit.cost.importers.blocks`. ``expand`` of a block is the ratio in tables of ProxylessNAS
and the channels in tables of Once-for-All's MobileNetV3, which also say ``-se:B-hs:B`` (squeeze
and excite, hard swish). ProxylessNAS has var where Once-for-All has std. ``Logits`` of a map holds
the average before it. Known files: ``pixel_trim.yaml`` of ProxylessNAS' latency tools, and
``tutorial/checkpoints/latency_table@note10`` of github.com/mit-han-lab/once-for-all.
"""

import re
from pathlib import Path
from typing import Literal

from apqkit.cost.importers.blocks import BLOCK, SHAPES, block_key, map_key, numbers
from apqkit.cost.importers.rows import (
    ImportedRows,
    TableOptions,
    global_pool_key,
    header_of,
    linear_key,
    measured,
)
from apqkit.cost.importers.sources import WHOLE, read_flat_yaml
from apqkit.cost.lut import LookupTable
from apqkit.cost.lut_cost import FREE_HEADER
from apqkit.errors import CostError
from apqkit.types import IntArray

__all__ = ["OfaTableOptions", "read_ofa"]

_BLOCK = re.compile(
    rf"expanded_conv{BLOCK}(?:-se:(?P<squeeze_excite>[01])-hs:(?P<hard_swish>[01]))?", re.ASCII
)
_LAYER = re.compile(rf"(?P<name>Conv|Conv_1|Conv_2|AvgPool2D){SHAPES}", re.ASCII)
_LOGITS = re.compile(
    rf"Logits-input:(?P<height>{WHOLE})x(?P<width>{WHOLE})x(?P<inputs>{WHOLE})"
    rf"-output:(?P<outputs>{WHOLE})",
    re.ASCII,
)
_LARGEST_RATIO = 16  # published ones reach 6, published channels begin at 24
_FIRST = {"kernel": 3, "stride": 2}
_POINTWISE = {"kernel": 1, "stride": 1}


class OfaTableOptions(TableOptions):
    """What the header says of the table, and what it writes after ``expand``."""

    expand: Literal["ratio", "channels"]  # the hidden channels over those read, or themselves


def read_ofa(path: Path, options: OfaTableOptions) -> LookupTable:
    """Reads a table of ProxylessNAS or Once-for-All.

    Args:
        path: The YAML.
        options: For the header, and the meaning of ``expand``.

    Raises:
        CostError: The file is missing or broken, or a name is of another grammar.
    """
    rows = ImportedRows(path)
    pooled = False
    for name, entry in read_flat_yaml(path).items():
        where = f"{path}, {name!r}"
        logits = _LOGITS.fullmatch(name)
        pooled |= logits is not None and int(logits["height"]) * int(logits["width"]) > 1
        key = _linear(logits) if logits else _key(name, where, options.expand)
        rows.add(name, key, measured(entry, where))
    free = "input add global_pool" if pooled else "input add"
    return rows.table(header_of(options, path) | {FREE_HEADER: free})


def _linear(match: re.Match[str]) -> IntArray:
    named = numbers(match)
    return linear_key((named["inputs"], named["outputs"]), (named["height"], named["width"]))


def _key(name: str, where: str, expand: str) -> IntArray:
    block = _BLOCK.fullmatch(name)
    if block is not None:
        return _block_key(numbers(block), where, expand)
    layer = _LAYER.fullmatch(name)
    if layer is None:
        raise CostError(
            f"{where}: expected expanded_conv, Conv, Conv_1, Conv_2, AvgPool2D or Logits "
            f"with the shapes of input and output"
        )
    kind = layer["name"]
    shapes = {part: int(text) for part, text in layer.groupdict().items() if part != "name"}
    if kind == "AvgPool2D":
        return _pool_key(shapes, where)
    return map_key(shapes, where, **(_FIRST if kind == "Conv" else _POINTWISE))


def _block_key(block: dict[str, int], where: str, expand: str) -> IntArray:
    inputs, expand_by = block["in_channels"], block["expand"]
    if expand == "ratio" and expand_by > _LARGEST_RATIO:
        raise CostError(f"{where}: {expand_by} is no ratio; take expand as 'channels'")
    if expand == "channels" and expand_by < inputs:
        raise CostError(
            f"{where}: {expand_by} hidden channels are fewer than the {inputs} read; "
            f"take expand as 'ratio'"
        )
    hidden = expand_by * inputs if expand == "ratio" else expand_by
    activation = "h_swish" if block.get("hard_swish") else "relu"
    if "hard_swish" not in block:
        activation = "relu6"  # of ProxylessNAS, whose tables do not say
    return block_key(block, where, hidden_channels=hidden, activation=activation)


def _pool_key(shapes: dict[str, int], where: str) -> IntArray:
    if shapes["in_channels"] != shapes["out_channels"] or (
        shapes["out_height"],
        shapes["out_width"],
    ) != (1, 1):
        raise CostError(f"{where}: an average of whole maps is expected")
    return global_pool_key(shapes["in_channels"], (shapes["in_height"], shapes["in_width"]))

"""The grammar in which tables of ProxylessNAS and its successors name layers and blocks.

``NAME-input:HxWxC-output:HxWxC``, for inverted residual blocks followed by
``-expand:E-kernel:K-stride:S-idskip:B``, where ``idskip`` says whether the input is added.
"""

import re
from collections.abc import Mapping

from apqkit.cost.importers.rows import conv_key
from apqkit.cost.importers.sources import WHOLE
from apqkit.cost.keys import key_of
from apqkit.errors import CostError
from apqkit.types import IntArray

__all__ = ["BLOCK", "SHAPES", "block_key", "map_key", "numbers"]


def _shape(side: str) -> str:
    names = (f"{side}_height", f"{side}_width", f"{side}_channels")
    return "x".join(rf"(?P<{name}>{WHOLE})" for name in names)


SHAPES = f"-input:{_shape('in')}-output:{_shape('out')}"
"""Pattern of two shapes."""

BLOCK = SHAPES + "".join(
    rf"-{written}:(?P<{name}>{pattern})"
    for written, name, pattern in (
        ("expand", "expand", WHOLE),
        ("kernel", "kernel", WHOLE),
        ("stride", "stride", WHOLE),
        ("idskip", "residual", "[01]"),
    )
)
"""Pattern of the shapes of a block and what it is."""


def numbers(match: re.Match[str]) -> dict[str, int]:
    """Returns the named groups that matched, as whole numbers."""
    return {name: int(text) for name, text in match.groupdict().items() if text is not None}


def map_key(layer: Mapping[str, int], where: str, *, kernel: int, stride: int) -> IntArray:
    """(c,) the key of a convolution between two shapes.

    Raises:
        CostError: The output has not the size that the stride gives.
    """
    _check_output(layer, stride, where)
    channels = (layer["in_channels"], layer["out_channels"])
    size = (layer["in_height"], layer["in_width"])
    return conv_key(channels, size, kernel=kernel, stride=stride)


def block_key(
    block: Mapping[str, int], where: str, *, hidden_channels: int, activation: str
) -> IntArray:
    """(c,) the key of an inverted residual block in fp32.

    Args:
        block: Shapes, kernel, stride, residual and squeeze_excite.
        where: File and name of the block.
        hidden_channels: That its depthwise convolution filters.
        activation: Between its convolutions; none where it is not stated.

    Raises:
        CostError: There can be no such block.
    """
    _check_output(block, block["stride"], where)
    if block["kernel"] % 2 == 0:
        raise CostError(f"{where}: the kernel must be odd, got {block['kernel']}")
    same = block["stride"] == 1 and block["in_channels"] == block["out_channels"]
    if block["residual"] and not same:
        raise CostError(f"{where}: idskip 1 needs stride 1 and as many channels out as in")
    names = ("in_channels", "out_channels", "kernel", "stride", "in_height", "in_width")
    columns: dict[str, int | str] = {name: block[name] for name in names}
    columns |= {
        "hidden_channels": hidden_channels,
        "groups": hidden_channels,
        "activation": activation,
        "squeeze_excite": block.get("squeeze_excite", 0),
        "residual": block["residual"],
        "weight_format": "fp32",
        "activation_format": "fp32",
    }
    return key_of("inverted_residual", columns)


def _check_output(layer: Mapping[str, int], stride: int, where: str) -> None:
    size = tuple((layer[f"in_{side}"] - 1) // stride + 1 for side in ("height", "width"))
    got = (layer["out_height"], layer["out_width"])
    if size != got:
        raise CostError(
            f"{where}: at stride {stride} the output must be {size[0]}x{size[1]}, "
            f"got {got[0]}x{got[1]}"
        )

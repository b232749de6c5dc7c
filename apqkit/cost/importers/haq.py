"""HAQ's table: MobileNetV2 on a simulated accelerator, each layer at every pair of bit widths.

``qmobilenetv2_imagenet100_batch16_latency_table.npy`` of github.com/mit-han-lab/haq holds
(53, 8, 8) whole numbers: layer, bits of weights less one, bits of activations less one. Their unit
is not stated, so whoever imports them says what they take it for. The layers are those of the
network in that repository. Its classifier has 1,000 outputs whatever the file is called after,
which the last row confirms: 1,280 x 1,000 weights take their bits over 256, and up to 21 more.
"""

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from apqkit.config import Positive
from apqkit.cost.importers.rows import (
    Figures,
    ImportedRows,
    Line,
    TableOptions,
    conv_key,
    header_of,
)
from apqkit.cost.importers.sources import LARGEST_FIGURE, positive
from apqkit.cost.keys import KEY_COLUMNS, key_of
from apqkit.cost.lut import LookupTable
from apqkit.cost.lut_cost import FREE_HEADER
from apqkit.errors import CostError
from apqkit.formats import FORMATS
from apqkit.types import IntArray

__all__ = ["HaqTableOptions", "read_haq"]

_BITS = 8
_BLOCKS = (  # expansion, channels, blocks, stride of the first: table 2 of Sandler et al. 2018
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_IMAGE_SIZE, _STEM, _HEAD, _CLASSES = 224, 32, 1280, 1000


class HaqTableOptions(TableOptions):
    """What the header says of HAQ's table, and what its numbers are taken for."""

    device: Line = "cloud accelerator of HAQ"
    runtime: Line = "simulator"
    batch: Positive = 16
    licence: Line = "MIT"
    source: Line | None = (
        "github.com/mit-han-lab/haq, "
        "lib/simulator/lookup_tables/qmobilenetv2_imagenet100_batch16_latency_table.npy"
    )
    # The source states no unit; for cycles of a clock of f Hz this would be 1000 / f.
    ms_per_unit: float = Field(gt=0.0)


class _Layer(NamedTuple):
    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int
    groups: int


def _mobilenet_v2() -> list[_Layer]:
    """Returns the 52 convolutions and the classifier, in the order of computation."""
    channels, size = _STEM, _IMAGE_SIZE // 2
    layers = [_Layer(3, _STEM, _IMAGE_SIZE, 3, 2, 1)]
    for expansion, outputs, blocks, first_stride in _BLOCKS:
        for index in range(blocks):
            stride = first_stride if index == 0 else 1
            hidden = channels * expansion
            if expansion > 1:
                layers.append(_Layer(channels, hidden, size, 1, 1, 1))
            layers.append(_Layer(hidden, hidden, size, 3, stride, hidden))
            size //= stride
            layers.append(_Layer(hidden, outputs, size, 1, 1, 1))
            channels = outputs
    layers.append(_Layer(channels, _HEAD, size, 1, 1, 1))
    layers.append(_Layer(_HEAD, _CLASSES, 1, 1, 1, 1))
    return layers


def read_haq(path: Path, options: HaqTableOptions) -> LookupTable:
    """Reads HAQ's table; layers of one shape become one row a pair of widths.

    Args:
        path: The array as ``.npy``, or alone in an ``.npz``.
        options: For the header, and the unit.

    Raises:
        CostError: The file is missing, broken or of another shape, a figure is not above 0, or
            layers of one shape have different figures.
    """
    layers = _mobilenet_v2()
    array = _checked(path, _read_array(path), len(layers))
    widths = [bits for bits in range(1, _BITS + 1) if f"int{bits}" in FORMATS]
    rows = ImportedRows(path)
    for layer, index in _shapes(path, layers, array).items():
        for w_bits, a_bits in product(widths, widths):
            name = f"layer {index} W{w_bits}A{a_bits}"
            latency = float(array[index, w_bits - 1, a_bits - 1]) * options.ms_per_unit
            key = _key(layer, (f"int{w_bits}", f"int{a_bits}"))
            rows.add(name, key, Figures(positive(latency, "latency in ms", f"{path}, {name}")))
    left_out = len(layers) * (_BITS**2 - len(widths) ** 2)
    return rows.table(
        header_of(options, path)
        | {
            "source_unit": "unstated",
            "ms_per_unit": f"{options.ms_per_unit:g}",
            "left_out": f"{left_out} figures at bit widths without a format",
            FREE_HEADER: "input add pool global_pool",
        }
    )


def _shapes(path: Path, layers: list[_Layer], array: NDArray[np.float64]) -> dict[_Layer, int]:
    """Returns the first layer of each shape, in order; all of a shape must have its figures."""
    first: dict[_Layer, int] = {}
    for index, layer in enumerate(layers):
        same = first.setdefault(layer, index)
        if not np.array_equal(array[index], array[same]):
            raise CostError(
                f"{path}: layers {same} and {index} are of one shape with different figures"
            )
    return first


def _read_array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            if len(found.files) != 1:
                names = ", ".join(found.files) or "none"
                raise CostError(f"{path} must hold one array, got {names}")
            return np.asarray(found[found.files[0]])
    except CostError:
        raise
    except OSError as fault:
        raise CostError(f"{path} cannot be read: {fault.strerror or 'damaged'}") from None
    except Exception as fault:  # a broken file can raise anything from zip, zlib or the tokenizer
        raise CostError(f"{path} is no array of numbers as numpy writes it") from fault


def _checked(path: Path, array: NDArray[Any], layers: int) -> NDArray[np.float64]:
    wanted = (layers, _BITS, _BITS)
    if array.shape != wanted or array.dtype.kind not in "iuf":
        raise CostError(
            f"{path} must hold numbers of shape {wanted}, got {array.dtype} of shape {array.shape}"
        )
    figures = array.astype(np.float64)
    wrong = np.argwhere(~((figures > 0) & (figures <= LARGEST_FIGURE)))
    if len(wrong):
        layer, w_bits, a_bits = wrong[0].tolist()
        raise CostError(
            f"{path}, layer {layer} W{w_bits + 1}A{a_bits + 1}: "
            f"a figure must be a positive number, got {array[layer, w_bits, a_bits]}"
        )
    return figures


def _key(layer: _Layer, formats: tuple[str, str]) -> IntArray:
    key = conv_key(
        (layer.inputs, layer.outputs),
        (layer.size, layer.size),
        kernel=layer.kernel,
        stride=layer.stride,
        groups=layer.groups,
        formats=formats,
    )
    if layer.outputs == _CLASSES:
        key[KEY_COLUMNS.index("op")] = key_of("linear", {})[0]
    return key

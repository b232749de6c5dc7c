"""The search space of APQ (Wang et al., CVPR 2020), for prices from its table; no supernet.

21 inverted residual blocks in six stages at a resolution of 224: depth, kernels, hidden widths,
and bits of weights and activations, each once for the two pointwise convolutions of a block and
once for the depthwise one. As published in github.com/mit-han-lab/apq (BSD-2-Clause), whose table
prices these convolutions one by one, and what comes before and after all blocks as a whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from apqkit.config import Section, SpaceConfig
from apqkit.errors import ConfigError
from apqkit.formats import FORMATS
from apqkit.spaces.base import Block, BlockSpace, TableRows
from apqkit.types import Dim, IntArray, LayerTable

if TYPE_CHECKING:
    from apqkit.elastic.supernet import ElasticSupernet

__all__ = ["ApqOptions", "ApqSpace"]


@dataclass(frozen=True)
class _Stage:
    width: int  # output channels
    blocks: int  # at the most
    stride: int  # of the first block


_STAGES = (
    _Stage(24, 4, 2),
    _Stage(40, 4, 2),
    _Stage(80, 4, 2),
    _Stage(96, 4, 1),
    _Stage(192, 4, 2),
    _Stage(320, 1, 1),
)
_FEWEST_BLOCKS = 2  # of a stage that is elastic
_HEAD_CHANNELS, _HEAD_SIZE = 16, 112  # what the first block reads
_EXPANSION, _HIDDEN_STEP = (4, 6), 8  # least and largest over the input channels
_FORMATS = ("int4", "int6", "int8")
_HEAD_TAIL_FORMATS = ("int8",)
_IMAGE, _CLASSES = (3, 224, 224), 1000


class ApqOptions(Section):
    """``[space.options]`` of the apq space."""

    # A 7x7 kernel has no price where it reads 4-bit activations; APQ never draws the two together.
    kernels: Annotated[tuple[Literal[3, 5, 7], ...], Field(min_length=1)] = (3, 5, 7)


class ApqSpace(BlockSpace):
    """APQ's space of quantized ProxylessNAS blocks, priced by tables only.

    Rows are the input and the searchable convolutions. Additions of residuals have none: the
    table does not price them.

    Args:
        config: Formats that are offered, among int4, int6 and int8, and ``options``.
        image_shape: (3, 224, 224).
        classes: 1000.

    Raises:
        ConfigError: The table prices no such formats, images or classes.
    """

    name = "apq"

    def __init__(
        self,
        config: SpaceConfig,
        options: ApqOptions,
        image_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        _check_priced(config, image_shape, classes)
        self._options = options
        blocks = [
            Block(stage, index)
            for stage, each in enumerate(_STAGES)
            for index in range(each.blocks)
        ]
        super().__init__(list(self._all_dims(config, blocks)), blocks)

    def network(self, picks: IntArray) -> LayerTable:
        """Returns the n networks as columns of shape (n, L)."""
        rows = TableRows(len(picks))
        size = _HEAD_SIZE
        current = rows.add(
            "input", "input", _HEAD_CHANNELS, _HEAD_CHANNELS, (size, size),
            activation_format=self._format(picks, f"a_format.{self._blocks[0].name}.pointwise"),
        )  # fmt: skip
        for block in self._blocks:
            current = self._add_block(picks, rows, block, current, size)
            size //= _stride(block)
        return rows.table()

    def supernet(self, seed: int) -> "ElasticSupernet":
        """Refuses: there is none.

        Raises:
            ConfigError: Always.
        """
        del seed
        raise ConfigError(
            "space 'apq' has no supernet: it prices networks from tables only, "
            "choose another space to train one"
        )

    def _all_dims(self, config: SpaceConfig, blocks: list[Block]) -> Iterable[Dim]:
        for number, stage in enumerate(_STAGES):
            fewest = min(_FEWEST_BLOCKS, stage.blocks)
            yield Dim(f"depth.s{number}", tuple(range(fewest, stage.blocks + 1)), "arch")
        kernels = tuple(sorted(set(self._options.kernels)))
        for block in blocks:
            yield Dim(f"kernel.{block.name}", kernels, "arch")
        for block in blocks:
            yield Dim(f"keep.{block.name}", _hidden_widths(block), "prune")
        for block in blocks:
            for part in ("pointwise", "depthwise"):
                for side, names in (
                    ("w", config.weight_formats),
                    ("a", config.activation_formats),
                ):
                    offered = sorted(set(names), key=lambda name: FORMATS[name].bits)
                    yield Dim(f"{side}_format.{block.name}.{part}", tuple(offered), "quant")

    def _add_block(
        self, picks: IntArray, rows: TableRows, block: Block, source: IntArray, size: int
    ) -> IntArray:
        """Adds the three convolutions of a block and returns what the next one reads."""
        used = self._block_active(picks, block)
        hidden = self._value(picks, f"keep.{block.name}")
        inputs, outputs = _input_channels(block), _STAGES[block.stage].width
        small = size // _stride(block)
        pointwise, depthwise = (
            (
                self._format(picks, f"w_format.{block.name}.{part}"),
                self._format(picks, f"a_format.{block.name}.{part}"),
            )
            for part in ("pointwise", "depthwise")
        )
        last = rows.add(
            f"{block.name}.expand", "conv", inputs, hidden, (size, size), kernel=1, relu=True,
            weight_format=pointwise[0], activation_format=pointwise[1],
            active=used, producers=(source,),
        )  # fmt: skip
        last = rows.add(
            f"{block.name}.depthwise", "conv", hidden, hidden, (size, size), relu=True,
            kernel=self._value(picks, f"kernel.{block.name}"), stride=_stride(block),
            groups=hidden, weight_format=depthwise[0], activation_format=depthwise[1],
            active=used, producers=(last,),
        )  # fmt: skip
        last = rows.add(
            f"{block.name}.project", "conv", hidden, outputs, (small, small), kernel=1,
            weight_format=pointwise[0], activation_format=pointwise[1],
            active=used, producers=(last,),
        )  # fmt: skip
        return np.where(used, last, source)


def _check_priced(config: SpaceConfig, image_shape: tuple[int, int, int], classes: int) -> None:
    if tuple(image_shape) != _IMAGE or classes != _CLASSES:
        shapes = ["x".join(map(str, shape)) for shape in (_IMAGE, image_shape)]
        raise ConfigError(
            f"space 'apq' prices images of {shapes[0]} in {_CLASSES} classes, "
            f"got {shapes[1]} in {classes}"
        )
    for key, allowed in (
        ("weight_formats", _FORMATS),
        ("activation_formats", _FORMATS),
        ("first_last_formats", _HEAD_TAIL_FORMATS),
    ):
        for name in getattr(config, key):
            if name not in allowed:
                raise ConfigError(
                    f"space.{key} of the apq space must be among {', '.join(allowed)}, "
                    f"got {name!r}"
                )


def _stride(block: Block) -> int:
    return _STAGES[block.stage].stride if block.index == 0 else 1


def _input_channels(block: Block) -> int:
    if block.index > 0:
        return _STAGES[block.stage].width
    return _STAGES[block.stage - 1].width if block.stage > 0 else _HEAD_CHANNELS


def _hidden_widths(block: Block) -> tuple[int, ...]:
    least, largest = (times * _input_channels(block) for times in _EXPANSION)
    return tuple(range(least, largest + 1, _HIDDEN_STEP))

"""Inverted residual blocks with elastic depth, width, kernel, hidden width and number formats.

Stages of blocks in the manner of MobileNetV2 and ProxylessNAS: a 1x1 convolution expands to the
hidden width, a depthwise convolution filters, a 1x1 convolution projects back; blocks after the
first of a stage add their input. Each convolution has a weight format and an activation format of
its own, except that depthwise weights, nine taps a channel, may keep one.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from apqkit.config import Positive, Rate, Section, SpaceConfig
from apqkit.errors import ConfigError
from apqkit.formats import format_code, space_format
from apqkit.spaces.base import Block, BlockSpace, TableRows
from apqkit.types import Dim, IntArray, LayerTable

__all__ = ["MobileNetOptions", "MobileNetSpace", "StageOptions"]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise PydanticCustomError("odd", "odd")
    return value


_Kernel = Annotated[Positive, AfterValidator(_odd)]  # an even one has no middle to share


class StageOptions(Section):
    """One stage: blocks at the same resolution, except for the first one's stride."""

    width: Positive  # output channels at the largest
    depth: Positive  # blocks at the most
    stride: Positive = 1  # of the first block
    kernels: Annotated[tuple[_Kernel, ...], Field(min_length=1)] = (3, 5)
    width_shares: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.5, 0.75, 1.0)
    min_depth: Positive = 1


class MobileNetOptions(Section):
    """``[space.options]`` of the mobilenet space."""

    pool: Positive = 1  # the input is averaged over pool x pool pixels first
    stem: Positive = 8  # channels of the first convolution
    stem_stride: Positive = 1
    stages: tuple[StageOptions, ...] = (
        StageOptions(width=8, depth=2),
        StageOptions(width=16, depth=3, stride=2),
        StageOptions(width=24, depth=2, stride=2),
    )
    expand: float = Field(default=4.0, gt=0.0)  # largest hidden width over stage width
    smallest_expand: float = Field(default=0.5, gt=0.0)
    hidden_choices: Positive = 10  # how many hidden widths are offered, at the most
    channel_step: Positive = 4  # widths are multiples of this
    head: Positive = 48  # channels of the last convolution
    depthwise_formats: Annotated[tuple[str, ...], Field(min_length=1)] = ("int8",)


class MobileNetSpace(BlockSpace):
    """The elastic MobileNet space.

    Args:
        config: Formats that are offered, and ``options`` (see :class:`MobileNetOptions`).
        image_shape: (channels, height, width) of the user's images.
        classes: Number of classes.

    Raises:
        ConfigError: Options contradict each other or the images, a format is unsigned, or every
            dim is left with one choice.
        UnknownNameError: A format is in no table.
    """

    name = "mobilenet"

    def __init__(
        self,
        config: SpaceConfig,
        options: MobileNetOptions,
        image_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        self._options = options
        self._image_shape = image_shape
        self._classes = classes
        _check_options(options, image_shape)
        self._blocks = [
            Block(stage, index)
            for stage, each in enumerate(options.stages)
            for index in range(each.depth)
        ]
        super().__init__(list(self._all_dims(config)), self._blocks)

    def network(self, picks: IntArray) -> LayerTable:
        """Returns the n networks as columns of shape (n, L)."""
        rows = TableRows(len(picks))
        height, width = self._image_shape[1:]
        first_format = self._format(picks, "a_format.stem")
        channels: IntArray | int = self._image_shape[0]
        fp32 = format_code("fp32")
        current = rows.add(
            "input", "input", channels, channels, (height, width), activation_format=fp32
        )
        pool = self._options.pool
        if pool > 1:
            current = rows.add(
                "pool", "pool", channels, channels, (height, width), kernel=pool, stride=pool,
                activation_format=first_format, producers=(current,),
            )  # fmt: skip
            height, width = height // pool, width // pool
        stride = self._options.stem_stride
        current = rows.add(
            "stem", "conv", channels, self._options.stem, (height, width), kernel=3, stride=stride,
            relu=True, weight_format=self._format(picks, "w_format.stem"),
            activation_format=first_format, producers=(current,),
        )  # fmt: skip
        size = (_shrunk(height, stride), _shrunk(width, stride))
        current, channels, size = self._add_blocks(picks, rows, current, size)
        self._add_tail(picks, rows, current, channels, size)
        return rows.table()

    def _all_dims(self, config: SpaceConfig) -> Iterable[Dim]:
        options = self._options
        weights = _by_width(config.weight_formats)
        activations = _by_width(config.activation_formats)
        outer = _by_width(config.first_last_formats)
        depthwise = _by_width(options.depthwise_formats)
        for number, stage in enumerate(options.stages):
            depths = tuple(range(stage.min_depth, stage.depth + 1))
            yield Dim(f"depth.s{number}", depths, "arch")
            yield Dim(f"width.s{number}", self._widths(stage), "arch")
        for block in self._blocks:
            yield Dim(f"kernel.{block.name}", self._kernels(block), "arch")
        for block in self._blocks:
            yield Dim(f"keep.{block.name}", self._hidden_widths(block.stage), "prune")
        yield Dim("w_format.stem", outer, "quant")
        yield Dim("a_format.stem", outer, "quant")
        for block in self._blocks:
            yield Dim(f"w_format.{block.name}.expand", weights, "quant")
            yield Dim(f"a_format.{block.name}.expand", activations, "quant")
            yield Dim(f"w_format.{block.name}.depthwise", depthwise, "quant")
            yield Dim(f"a_format.{block.name}.depthwise", activations, "quant")
            yield Dim(f"w_format.{block.name}.project", weights, "quant")
            yield Dim(f"a_format.{block.name}.project", activations, "quant")
        yield Dim("w_format.head", weights, "quant")
        yield Dim("a_format.head", activations, "quant")
        yield Dim("w_format.classifier", outer, "quant")
        yield Dim("a_format.classifier", outer, "quant")

    def _widths(self, stage: StageOptions) -> tuple[int, ...]:
        step = self._options.channel_step
        return _distinct(_rounded(stage.width * share, step) for share in stage.width_shares)

    def _hidden_widths(self, stage: int) -> tuple[int, ...]:
        options = self._options
        width = options.stages[stage].width
        smallest = options.smallest_expand if options.hidden_choices > 1 else options.expand
        shares = np.linspace(smallest, options.expand, options.hidden_choices)
        return _distinct(_rounded(width * share, options.channel_step) for share in shares)

    def _kernels(self, block: Block) -> tuple[int, ...]:
        """Kernels whose outer taps can meet the block's map: 5x5 computes what 3x3 does on 2x2."""
        offered = _distinct(self._options.stages[block.stage].kernels)
        most = 2 * max(self._input_size(block)) - 1
        return tuple(each for each in offered if each <= most) or offered[:1]

    def _input_size(self, block: Block) -> tuple[int, int]:
        """Returns height and width of the map that a block reads."""
        options = self._options
        strides = [options.stem_stride, *(each.stride for each in options.stages[: block.stage])]
        if block.index > 0:
            strides.append(options.stages[block.stage].stride)
        height, width = (each // options.pool for each in self._image_shape[1:])
        for stride in strides:
            height, width = _shrunk(height, stride), _shrunk(width, stride)
        return height, width

    def _add_blocks(
        self, picks: IntArray, rows: TableRows, current: IntArray, size: tuple[int, int]
    ) -> tuple[IntArray, IntArray, tuple[int, int]]:
        channels: IntArray = np.full(len(picks), self._options.stem)
        formats_after = self._formats_after(picks)
        for block in self._blocks:
            used = self._block_active(picks, block)
            stride = self._options.stages[block.stage].stride if block.index == 0 else 1
            out = self._value(picks, f"width.s{block.stage}")
            hidden = self._value(picks, f"keep.{block.name}")
            shrunk = (_shrunk(size[0], stride), _shrunk(size[1], stride))
            last = rows.add(
                f"{block.name}.expand", "conv", channels, hidden, size, kernel=1, relu=True,
                weight_format=self._format(picks, f"w_format.{block.name}.expand"),
                activation_format=self._format(picks, f"a_format.{block.name}.expand"),
                active=used, producers=(current,),
            )  # fmt: skip
            last = rows.add(
                f"{block.name}.depthwise", "conv", hidden, hidden, size, stride=stride, relu=True,
                kernel=self._value(picks, f"kernel.{block.name}"), groups=hidden,
                weight_format=self._format(picks, f"w_format.{block.name}.depthwise"),
                activation_format=self._format(picks, f"a_format.{block.name}.depthwise"),
                active=used, producers=(last,),
            )  # fmt: skip
            last = rows.add(
                f"{block.name}.project", "conv", hidden, out, shrunk, kernel=1,
                weight_format=self._format(picks, f"w_format.{block.name}.project"),
                activation_format=self._format(picks, f"a_format.{block.name}.project"),
                active=used, producers=(last,),
            )  # fmt: skip
            if block.index > 0:
                last = rows.add(
                    f"{block.name}.add", "add", out, out, shrunk,
                    activation_format=formats_after[block.name],
                    active=used, producers=(current, last),
                )  # fmt: skip
            current = np.where(used, last, current)
            channels = np.where(used, out, channels)
            size = shrunk
        return current, channels, size

    def _formats_after(self, picks: IntArray) -> dict[str, IntArray]:
        """For each block, the activation format (n,) of the convolution that follows it."""
        following = self._format(picks, "a_format.head")
        after = {}
        for block in reversed(self._blocks):
            after[block.name] = following
            used = self._block_active(picks, block)
            own = self._format(picks, f"a_format.{block.name}.expand")
            following = np.where(used, own, following)
        return after

    def _add_tail(
        self,
        picks: IntArray,
        rows: TableRows,
        current: IntArray,
        channels: IntArray,
        size: tuple[int, int],
    ) -> None:
        head = self._options.head
        last_format = self._format(picks, "a_format.classifier")
        current = rows.add(
            "head", "conv", channels, head, size, kernel=1, relu=True,
            weight_format=self._format(picks, "w_format.head"),
            activation_format=self._format(picks, "a_format.head"), producers=(current,),
        )  # fmt: skip
        current = rows.add(
            "global_pool", "global_pool", head, head, size,
            activation_format=last_format, producers=(current,),
        )  # fmt: skip
        rows.add(
            "classifier", "linear", head, self._classes, (1, 1), kernel=1,
            weight_format=self._format(picks, "w_format.classifier"),
            activation_format=last_format, producers=(current,),
        )  # fmt: skip


def _check_options(options: MobileNetOptions, image_shape: tuple[int, int, int]) -> None:
    if min(image_shape[1:]) < options.pool:
        raise ConfigError(
            f"space.options.pool must be at most the image size "
            f"{image_shape[1]}x{image_shape[2]}, got {options.pool}"
        )
    if options.smallest_expand > options.expand:
        raise ConfigError(
            f"space.options.smallest_expand must be at most space.options.expand "
            f"{options.expand}, got {options.smallest_expand}"
        )
    for number, stage in enumerate(options.stages):
        if stage.min_depth > stage.depth:
            raise ConfigError(
                f"space.options.stages.{number}.min_depth must be at most the depth "
                f"{stage.depth}, got {stage.min_depth}"
            )


def _shrunk(size: int, stride: int) -> int:
    return (size - 1) // stride + 1


def _rounded(width: float, step: int) -> int:
    return max(step, int(width / step + 0.5) * step)


def _distinct(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))


def _by_width(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(dict.fromkeys(names), key=lambda name: space_format(name).bits))

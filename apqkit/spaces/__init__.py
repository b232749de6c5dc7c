"""Search spaces: dims, canonical form, network tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apqkit.config import Section, SpaceConfig, validate_model
from apqkit.registry import lookup
from apqkit.spaces.apq import ApqOptions, ApqSpace
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace
from apqkit.types import Space

__all__ = ["SPACES", "SpaceEntry", "build_space", "space_options"]


@dataclass(frozen=True)
class SpaceEntry:
    """How a space is made.

    Attributes:
        options: Model of ``[space.options]``.
        build: (config, options, (channels, height, width), classes) -> space.
    """

    options: type[Section]
    build: Callable[[SpaceConfig, Any, tuple[int, int, int], int], Space]


SPACES: dict[str, SpaceEntry] = {
    "apq": SpaceEntry(ApqOptions, ApqSpace),
    "mobilenet": SpaceEntry(MobileNetOptions, MobileNetSpace),
}
"""Search spaces by the name that ``space.name`` takes."""


def build_space(config: SpaceConfig, image_shape: tuple[int, int, int], classes: int) -> Space:
    """Returns the search space of a configuration.

    Args:
        config: The ``[space]`` part.
        image_shape: (channels, height, width) of the images.
        classes: Number of classes.

    Raises:
        UnknownNameError: No space or format of that name.
        ConfigError: Its options are wrong.
    """
    entry = lookup(SPACES, config.name, "space")
    return entry.build(config, space_options(config), image_shape, classes)


def space_options(config: SpaceConfig) -> Section:
    """Returns the validated options of a space, defaults filled in."""
    options: Mapping[str, Any] = config.options
    return validate_model(lookup(SPACES, config.name, "space").options, options, "space.options")

"""What the stages of a run share, loaded when first asked for."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor, nn

from apqkit.config import Config
from apqkit.cost import NetworkCost, compile_cost, device_model
from apqkit.data import ImageSet, Splits, load_splits
from apqkit.errors import ConfigError, CostError
from apqkit.pipeline.proxies import ProxyColumns
from apqkit.prediction import FeatureBuilder, feature_builder
from apqkit.run import RunDirectory
from apqkit.sampling import SubnetMeasurer
from apqkit.spaces import build_space
from apqkit.training.checkpoint import load_tensors, load_weights
from apqkit.types import AdditiveCost, Choice, FloatArray, IntArray, LayerTable, Progress, Space

__all__ = ["SUPERNET_FILE", "RunContext", "candidate_key", "load_plugins"]

SUPERNET_FILE = "weights.safetensors"
"""Final weights of the supernet, in its stage's directory."""


class RunContext:
    """One open run: its configuration, its directory, and what stages make of them.

    Attributes:
        config: Validated.
        run: The open run directory.
        progress: Shows how far a stage is.
    """

    def __init__(self, config: Config, run: RunDirectory, progress: Progress) -> None:
        self.config = config
        self.run = run
        self.progress = progress

    @cached_property
    def splits(self) -> Splits:
        """Training and validation images; test images on request."""
        return load_splits(self.config.data, self.config.seed)

    @cached_property
    def space(self) -> Space:
        """The search space for these images."""
        return build_space(self.config.space, self.splits.image_shape, self.splits.classes)

    @cached_property
    def device(self) -> AdditiveCost:
        """The cost model of ``cost.device``; it notes what its table lacks of what is asked."""
        return self._fresh_device()

    def _fresh_device(self) -> AdditiveCost:
        return device_model(
            self.config.cost.device,
            batch=self.config.cost.batch,
            table_path=self.run.path / "cost" / "lut.csv",
        )

    @cached_property
    def features(self) -> FeatureBuilder:
        """Turns picks into predictor columns."""
        return feature_builder(self.space)

    @cached_property
    def supernet(self) -> nn.Module:
        """The trained supernet."""
        path = self.run.path / "supernet" / SUPERNET_FILE
        tensors, _ = load_tensors(path, "use --redo supernet")
        supernet = self.space.supernet(self.config.seed)
        load_weights(supernet, tensors, path)
        return supernet.train()

    @cached_property
    def proxies(self) -> ProxyColumns:
        """Proxy scores of subnets, remembered over the stages."""
        return ProxyColumns(
            self.space,
            self.supernet,  # type: ignore[arg-type]
            self.splits,
            self.progress,
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all costs."""
        return (*self.device.metrics, *NetworkCost().metrics)

    def cost_of(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns every cost of networks, ``{metric: (n,)}``."""
        return {**self.device.cost(table), **NetworkCost().cost(table)}

    def costs(self, picks: IntArray) -> dict[str, FloatArray]:
        """Returns every cost of candidates, ``{metric: (n,)}``."""
        return self.cost_of(self.space.network(picks))

    @cached_property
    def quick_costs(self) -> Callable[[IntArray], dict[str, FloatArray]]:
        """Every cost of candidates for the search: of whole numbers the same, of others nearly.

        Looked up straight from picks where the space allows it, else as :meth:`costs` has it.
        """
        seed, progress = self.config.seed, self.progress
        models = (self._fresh_device(), NetworkCost())
        try:
            compiled = [
                compile_cost(each, self.space, seed=seed, progress=progress) for each in models
            ]
        except CostError as fault:
            self.say(f"costs are computed anew for every candidate: {fault}")
            return self.costs
        return lambda picks: {**compiled[0](picks), **compiled[1](picks)}

    def calibration_images(self, *, final: bool = False) -> Tensor:
        """Returns the fixed calibration images; more of them for the front's members."""
        samples = self.config.samples
        count = samples.final_calibration_images if final else samples.calibration_images
        return self.splits.calibration_images(count).images()

    def measurer(self, images: ImageSet, *, final: bool = False) -> SubnetMeasurer:
        """Returns what measures subnets of the supernet on some images."""
        return SubnetMeasurer(
            self.supernet,  # type: ignore[arg-type]
            self.calibration_images(final=final),
            images,
        )

    def say(self, text: str) -> None:
        """Writes a line to the log and shows it."""
        self.run.log(text)
        self.progress.note(text)


def candidate_key(candidate: Mapping[str, Choice]) -> str:
    """Returns a short name for a candidate given by its active dims."""
    text = json.dumps(dict(candidate), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def load_plugins(config: Config) -> None:
    """Imports the modules of ``plugins``, which add to the plug-in tables.

    Raises:
        ConfigError: A module cannot be imported.
    """
    for name in config.plugins:
        try:
            import_module(name)
        except Exception as fault:  # noqa: BLE001 - a module can fail in any way
            reason = str(fault).partition("\n")[0] or type(fault).__name__
            raise ConfigError(f"plugins: module {name!r} cannot be imported: {reason}") from None


def check_device_formats(config: Config, space: Space, device: AdditiveCost) -> None:
    """Checks that a device prices every format that a space offers, with some partner.

    Raises:
        ConfigError: It names the first format that the device cannot run.
    """
    from apqkit.spaces.base import largest_picks

    table = space.network(largest_picks(space.dims))
    weights, activations = config.space.weight_formats, config.space.activation_formats
    offered: dict[str, dict[str, list[tuple[str, str]]]] = {
        "weight_formats": {each: [(each, other) for other in activations] for each in weights},
        "activation_formats": {each: [(other, each) for other in weights] for each in activations},
        "first_last_formats": {each: [(each, each)] for each in config.space.first_last_formats},
    }
    for key, pairs_by_name in offered.items():
        for name, pairs in pairs_by_name.items():
            if not any(_has_price(device, table.with_formats(*pair)) for pair in pairs):
                raise ConfigError(
                    f"space.{key} offers {name!r}, which device {config.cost.device!r} cannot "
                    f"run: leave it out or choose another cost.device"
                )


def _has_price(device: AdditiveCost, table: LayerTable) -> bool:
    return not any(np.isnan(values).any() for values in device.cost(table).values())


def flattened(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns nested mappings as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, name)
        else:
            flat[name] = value
    return flat

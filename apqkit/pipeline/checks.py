"""What is checked before anything is written, so that a typing error costs no training."""

from collections.abc import Collection

import torch

from apqkit.config import Config
from apqkit.cost import find_device
from apqkit.data import DATASETS
from apqkit.errors import ConfigError
from apqkit.formats import space_format
from apqkit.registry import lookup
from apqkit.search.strategies import STRATEGIES
from apqkit.search.study import check_storage
from predictors import PREDICTORS, TRANSFER_MODES
from predictors.zerocost import PROXIES

__all__ = ["check_machine", "check_names"]


def check_names(config: Config) -> None:
    """Checks every name in a configuration, even those that only a late stage looks up.

    Raises:
        UnknownNameError: A name is in no table.
        ConfigError: A format is named with its sign, or samples are asked for of one kind only, or
            there is no such way of transfer.
        CostError: There is no such device.
    """
    space = config.space
    for name in (*space.weight_formats, *space.activation_formats, *space.first_last_formats):
        space_format(name)
    lookup(DATASETS, config.data.name, "data set")
    find_device(config.cost.device)
    lookup(PREDICTORS, config.predictor.name, "predictor")
    if config.transfer.mode not in TRANSFER_MODES:
        raise ConfigError(
            f"transfer.mode must be one of {', '.join(TRANSFER_MODES)}, "
            f"got {config.transfer.mode!r}"
        )
    for name in config.predictor.proxies:
        lookup(PROXIES, name, "proxy")
    lookup(STRATEGIES, config.search.strategy, "search strategy")
    samples = config.samples
    if bool(samples.fp32) != bool(samples.mixed):
        raise ConfigError(
            "samples.fp32 and samples.mixed must both be 0, so that proxies alone propose, or "
            f"both be at least 8, got {samples.fp32} and {samples.mixed}"
        )


def check_machine(config: Config, stages: Collection[str]) -> None:
    """Checks that this machine has what the stages to come ask for.

    Args:
        config: The configuration.
        stages: Names of the stages that are not done yet.

    Raises:
        ConfigError: torch cannot use ``supernet.torch_device``.
        RunError: ``search.storage`` cannot be opened.
    """
    if "supernet" in stages:
        _check_torch_device(config.supernet.torch_device)
    if "search" in stages and config.search.storage is not None:
        check_storage(config.search.storage)


def _check_torch_device(name: str) -> None:
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as fault:
        reason = str(fault).partition("\n")[0]
        raise ConfigError(f"supernet.torch_device {name!r} cannot be used: {reason}") from None

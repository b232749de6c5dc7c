"""apqkit: joint search of network architecture, pruning and number formats.

The names below are loaded when first used, so that ``import apqkit`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apqkit.config import Config, load_config
    from apqkit.cost import DEVICES
    from apqkit.data import DATASETS, load_splits
    from apqkit.errors import ApqkitError
    from apqkit.formats import FORMATS, NumberFormat
    from apqkit.front import Evaluated, ParetoSet
    from apqkit.pipeline import (
        export_pick,
        finetune_pick,
        make_report,
        read_front,
        run_search,
        run_stages,
    )
    from apqkit.progress import RichProgress
    from apqkit.spaces import SPACES, build_space

__version__ = "0.1.0"

_HOMES = {
    "ApqkitError": "apqkit.errors",
    "Config": "apqkit.config",
    "DATASETS": "apqkit.data",
    "DEVICES": "apqkit.cost",
    "Evaluated": "apqkit.front",
    "FORMATS": "apqkit.formats",
    "NumberFormat": "apqkit.formats",
    "ParetoSet": "apqkit.front",
    "RichProgress": "apqkit.progress",
    "SPACES": "apqkit.spaces",
    "build_space": "apqkit.spaces",
    "export_pick": "apqkit.pipeline",
    "finetune_pick": "apqkit.pipeline",
    "load_config": "apqkit.config",
    "load_splits": "apqkit.data",
    "make_report": "apqkit.pipeline",
    "read_front": "apqkit.pipeline",
    "run_search": "apqkit.pipeline",
    "run_stages": "apqkit.pipeline",
}

__all__ = [
    "DATASETS",
    "DEVICES",
    "FORMATS",
    "SPACES",
    "ApqkitError",
    "Config",
    "Evaluated",
    "NumberFormat",
    "ParetoSet",
    "RichProgress",
    "build_space",
    "export_pick",
    "finetune_pick",
    "load_config",
    "load_splits",
    "make_report",
    "read_front",
    "run_search",
    "run_stages",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'apqkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

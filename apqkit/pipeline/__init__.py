"""The stages of a run in order, and the functions that a user calls."""

from apqkit.pipeline.api import (
    STAGES,
    config_toml,
    export_pick,
    finetune_pick,
    make_report,
    read_front,
    resolved,
    run_search,
    run_stages,
    unset_keys,
)

__all__ = [
    "STAGES",
    "config_toml",
    "export_pick",
    "finetune_pick",
    "make_report",
    "read_front",
    "resolved",
    "run_search",
    "run_stages",
    "unset_keys",
]

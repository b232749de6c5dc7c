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
from apqkit.pipeline.tables import (
    BuiltTable,
    build_space_table,
    check_space_table,
    prepare_space_table,
)

__all__ = [
    "STAGES",
    "BuiltTable",
    "build_space_table",
    "check_space_table",
    "config_toml",
    "export_pick",
    "finetune_pick",
    "make_report",
    "prepare_space_table",
    "read_front",
    "resolved",
    "run_search",
    "run_stages",
    "unset_keys",
]

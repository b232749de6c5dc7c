"""Candidates as columns of numbers. Letters: n candidates, k dims, d columns.

Encoders read dims (anything with ``name``, ``choices`` and ``role``), picks (n, k) and activity
(n, k). What is inactive leaves no trace, so equal networks have equal rows. Vocabularies come from
the dims, never from training rows.
"""

from predictors.encoders.candidate import CandidateEncoder
from predictors.encoders.columns import (
    layer_costs,
    log_columns,
    noise_columns,
    one_hot,
    ordinal,
    proxy_columns,
    rank_scaled,
    signed_log,
    slot_aggregates,
)
from predictors.encoders.dims import DimLike, check_picks, choice_shares
from predictors.encoders.sequences import LayerSequence, layer_sequence

__all__ = [
    "CandidateEncoder",
    "DimLike",
    "LayerSequence",
    "check_picks",
    "choice_shares",
    "layer_costs",
    "layer_sequence",
    "log_columns",
    "noise_columns",
    "one_hot",
    "ordinal",
    "proxy_columns",
    "rank_scaled",
    "signed_log",
    "slot_aggregates",
]

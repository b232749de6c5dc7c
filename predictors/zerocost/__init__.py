"""Zero-cost proxies: scores of a network from one batch, with as few passes as they need.

>>> import torch
>>> from predictors.zerocost import ProxySession
>>> model = torch.nn.Linear(2, 3, bias=False)
>>> session = ProxySession(model, (torch.ones(4, 2), torch.zeros(4, dtype=torch.long)))
>>> session.compute(["params"])["params"].value
6.0
"""

from predictors.zerocost.assembly import assemble, undefined_choices
from predictors.zerocost.batch_scores import BatchScores, score_subnets
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution import (
    LayerInputs,
    Program,
    SettingTable,
    evolve,
    inputs_of,
    load_program,
)
from predictors.zerocost.hessian import HessianEffort
from predictors.zerocost.layer_statistics import LayerStatistics
from predictors.zerocost.output_changes import output_divergence, with_output_changes
from predictors.zerocost.passes import ForwardPass, LossPass, Need, Passes
from predictors.zerocost.proxies import PROXIES
from predictors.zerocost.proxy import Direction, Proxy, ProxyScore
from predictors.zerocost.recorder import BackwardRecorder, Recorder
from predictors.zerocost.sensitivities import SENSITIVITIES, Sensitivity
from predictors.zerocost.session import ProxySession

__all__ = [
    "PROXIES",
    "SENSITIVITIES",
    "BackwardRecorder",
    "BatchScores",
    "Direction",
    "ForwardPass",
    "HessianEffort",
    "LayerInputs",
    "LayerStatistics",
    "LossPass",
    "Need",
    "Passes",
    "Program",
    "Proxy",
    "ProxyError",
    "ProxyScore",
    "ProxySession",
    "Recorder",
    "Sensitivity",
    "SettingTable",
    "assemble",
    "evolve",
    "inputs_of",
    "load_program",
    "output_divergence",
    "score_subnets",
    "undefined_choices",
    "with_output_changes",
]

"""How differently a network's rectifiers switch for the samples of a batch."""

import torch
from torch import Tensor

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, forward_pass
from predictors.zerocost.proxy import Proxy, ProxyScore
from predictors.zerocost.signs import SignRecorder, log_determinant

__all__ = ["NASWOT"]


def _score(passes: Passes) -> ProxyScore:
    if len(passes.inputs) < 2:
        raise ProxyError(f"naswot needs at least 2 samples, got {len(passes.inputs)}")
    agreements = passes.of(forward_pass).record(SignRecorder).agreements
    if not agreements:
        raise ProxyError("naswot saw no rectifier: the model calls no ReLU or its like")
    layers = {name: _disagreement(each) for name, each in agreements.items()}
    return ProxyScore(log_determinant(torch.stack(list(agreements.values())).sum(0)), layers)


def _disagreement(kernel: Tensor) -> float:
    """Returns the mean share of units, 0..1, in which two different samples differ."""
    samples = len(kernel)
    units = float(kernel[0, 0])
    agreeing = float(kernel.sum() - kernel.diagonal().sum()) / (samples * (samples - 1))
    return 1.0 - agreeing / units


NASWOT = Proxy(
    name="naswot",
    direction="up",
    log=True,
    needs=frozenset({"F"}),
    needs_labels=False,
    source="Mellor et al., Neural Architecture Search without Training, ICML 2021",
    convention="log det K, K = sum over rectifiers of x x' + (1 - x)(1 - x)', x = 1[input > 0] of "
    "shape (samples, units), plus 1e-12 of the diagonal; weights as they are, not normalised by "
    "the number of rectifiers; layers: per rectifier the mean share of units (0..1) in which two "
    "samples differ, they do not sum to the value",
    score=_score,
    recorder=SignRecorder,
)

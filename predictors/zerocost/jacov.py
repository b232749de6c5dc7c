"""How differently the outputs react to the inputs of the samples of a batch."""

import torch

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, input_gradient_pass
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["JACOV"]

_K = 1e-5


def _score(passes: Passes) -> ProxyScore:
    if len(passes.inputs) < 2:
        raise ProxyError(f"jacov needs at least 2 samples, got {len(passes.inputs)}")
    rows = passes.of(input_gradient_pass).flatten(1).double()
    correlations = torch.corrcoef(rows)
    if not bool(torch.isfinite(correlations).all()):
        flat = int((rows.amax(1) == rows.amin(1)).to(torch.uint8).argmax())
        raise ProxyError(f"jacov is not defined: the input gradient of sample {flat} is constant")
    eigenvalues = torch.linalg.eigvalsh(correlations).clamp_min(0.0) + _K
    return ProxyScore(-float((eigenvalues.log() + 1.0 / eigenvalues).sum()))


JACOV = Proxy(
    name="jacov",
    direction="up",
    log=False,
    needs=frozenset({"J"}),
    needs_labels=False,
    source="Mellor et al., Neural Architecture Search without Training, first version, "
    "arXiv 2006.04647, 2020",
    convention="-sum(log(v + k) + 1 / (v + k)), k = 1e-5, v the eigenvalues (of a symmetric "
    "matrix, at least 0) of the correlations between rows of J, one a sample; J is the gradient "
    "of the sum of all outputs for the inputs, not the Jacobian; no layers",
    score=_score,
)

"""How differently rectifiers switch, however many there are and however many units they have."""

import torch

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, forward_pass
from predictors.zerocost.proxy import Proxy, ProxyScore
from predictors.zerocost.signs import SignRecorder, log_determinant

__all__ = ["NASWOT_MEAN"]


def _score(passes: Passes) -> ProxyScore:
    if len(passes.inputs) < 2:
        raise ProxyError(f"naswot_mean needs at least 2 samples, got {len(passes.inputs)}")
    agreements = passes.of(forward_pass).record(SignRecorder).agreements
    if not agreements:
        raise ProxyError("naswot_mean saw no rectifier: the model calls no ReLU or its like")
    shares = {name: each / each[0, 0] for name, each in agreements.items()}
    layers = {name: log_determinant(each) for name, each in shares.items()}
    return ProxyScore(log_determinant(torch.stack(list(shares.values())).mean(0)), layers)


NASWOT_MEAN = Proxy(
    name="naswot_mean",
    direction="up",
    log=True,
    needs=frozenset({"F"}),
    needs_labels=False,
    source="Mellor et al., Neural Architecture Search without Training, ICML 2021 (its kernel)",
    convention="log det of the mean over rectifiers of K / units, K = x x' + (1 - x)(1 - x)', "
    "x = 1[input > 0] of shape (samples, units), plus 1e-12 of the diagonal, which is 1; at most "
    "0; more or larger rectifiers do not raise it by themselves; layers: the same of each "
    "rectifier alone, they do not sum to the value",
    score=_score,
    recorder=SignRecorder,
)

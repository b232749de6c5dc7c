"""How alike, within each class, the outputs react to the inputs."""

import itertools

import torch
from torch import Tensor

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, input_gradient_pass
from predictors.zerocost.proxy import Proxy, ProxyScore

__all__ = ["EPE_NAS"]

_K = 1e-5
_MANY_CLASSES = 100


def _score(passes: Passes) -> ProxyScore:
    labels = _classes(passes.labels)
    rows = passes.of(input_gradient_pass).flatten(1).double()
    sums = [
        _log_correlations(rows[labels == label], int(label))
        for label, count in zip(*labels.unique(return_counts=True), strict=True)
        if count > 1
    ]
    if not sums:
        raise ProxyError("epe_nas needs a class with 2 samples or more, and every label is single")
    if len(sums) <= _MANY_CLASSES:
        return ProxyScore(sum(abs(each) for each in sums))
    differences = (abs(one - other) for one, other in itertools.product(sums, sums))
    return ProxyScore(sum(differences) / len(sums))


def _classes(labels: Tensor | None) -> Tensor:
    if labels is None or labels.dim() != 1 or labels.is_floating_point():
        got = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ProxyError(f"epe_nas needs one whole number a sample as its class, got {got}")
    return labels


def _log_correlations(rows: Tensor, label: int) -> float:
    logs = (torch.corrcoef(rows).abs() + _K).log()
    if not bool(torch.isfinite(logs).all()):
        raise ProxyError(f"epe_nas is not defined: an input gradient of class {label} is constant")
    return float(logs.sum())


EPE_NAS = Proxy(
    name="epe_nas",
    direction="up",
    log=True,
    needs=frozenset({"J"}),
    needs_labels=True,
    source="Lopes et al., EPE-NAS: Efficient Performance Estimation Without Training for Neural "
    "Architecture Search, ICANN 2021",
    convention="s_c = sum of log(abs(r) + 1e-5) over correlations r between all rows of J of "
    "class c, J as for jacov; sum of abs(s_c), beyond 100 classes the sum of abs(s_c - s_d) over "
    "ordered pairs divided by the number of classes; classes with one sample do not count; no "
    "layers",
    score=_score,
)

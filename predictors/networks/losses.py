"""Losses that ask for the right order. Letters: m members (any leading axes), n rows.

Every loss takes predictions (m, n) and targets (m, n) and returns one loss a member, (m,). Those
of pairs take all pairs i < j of the rows whose targets differ; pairs of equal targets are left
out, and where no targets differ the loss is 0.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "Loss", "hinge", "listmle", "mse", "ranknet", "soft_tau"]

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def mse(predicted: Tensor, target: Tensor) -> Tensor:
    """(m,) mean squared errors."""
    return (predicted - target).square().mean(dim=-1)


def ranknet(predicted: Tensor, target: Tensor) -> Tensor:
    """(m,) means over pairs of log(1 + exp(-(p_i - p_j) * sign(y_i - y_j))).

    Source: Burges et al., Learning to Rank using Gradient Descent, ICML 2005.
    """
    agreement, signs = _agreement(predicted, target)
    return _mean_over_pairs(F.softplus(-agreement), signs)


def hinge(predicted: Tensor, target: Tensor, margin: float = 0.1) -> Tensor:
    """(m,) means over all pairs of max(0, margin - (p_i - p_j) * sign(y_i - y_j))."""
    agreement, signs = _agreement(predicted, target)
    return _mean_over_pairs(F.relu(margin - agreement), signs)


def listmle(predicted: Tensor, target: Tensor) -> Tensor:
    """(m,) negative log likelihoods a row of the target's order under Plackett and Luce's model.

    Rows are drawn best first, each with a probability in proportion to exp(p). Equal targets are
    drawn in the order of the rows. Source: Xia et al., Listwise Approach to Learning to Rank,
    ICML 2008.
    """
    order = torch.argsort(target, dim=-1, descending=True, stable=True)
    scores = predicted.gather(-1, order)
    left = scores.flip(-1).logcumsumexp(dim=-1).flip(-1)
    return (left - scores).mean(dim=-1)


def soft_tau(predicted: Tensor, target: Tensor, temperature: float = 0.5) -> Tensor:
    """(m,) negative Kendall taus, -1 (right order) to 1, with a tanh for the predictions' sign.

    Means over pairs of -tanh((p_i - p_j) / temperature) * sign(y_i - y_j).

    Args:
        predicted: (m, n).
        target: (m, n).
        temperature: In units of the predictions, more than 0; towards 0 it is the tau itself.
    """
    agreement, signs = _agreement(predicted, target)
    return _mean_over_pairs(-torch.tanh(agreement / temperature), signs)


def _agreement(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of predictions, positive where in order, and signs of targets, (m, n, n)."""
    signs = torch.sign(target.unsqueeze(-1) - target.unsqueeze(-2))
    return (predicted.unsqueeze(-1) - predicted.unsqueeze(-2)) * signs, signs


def _mean_over_pairs(values: Tensor, signs: Tensor) -> Tensor:
    """(m,) means where targets differ; both orders of a pair count, which changes nothing."""
    differ = signs.abs()
    return (values * differ).sum(dim=(-2, -1)) / differ.sum(dim=(-2, -1)).clamp(min=1.0)


LOSSES: dict[str, Loss] = {
    "mse": mse,
    "ranknet": ranknet,
    "hinge": hinge,
    "listmle": listmle,
    "soft_tau": soft_tau,
}
"""Losses by the name that ``MLPPredictor(loss=...)`` takes."""

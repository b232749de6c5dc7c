"""A mixer over layers with a Bayesian last layer, several members at once.

Letters: m members, n rows, b rows a batch, l positions (tokens), s statistics a token, c channels,
u units, f features.

A token is embedded into c channels and moved by a vector of its position. Then blocks: one mixes
positions (each channel by itself), one mixes channels (each position by itself), each added to
what came in, as in Tolstikhin et al., MLP-Mixer, NeurIPS 2021, without normalisation. Absent
positions are 0 before and after each of them, so they neither give nor take. The features are the
means over present positions and the sums over all divided by l, which also tell how many there
are. The last layer is linear, its weights independent normals.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from predictors.networks.losses import soft_tau
from predictors.networks.training import Descent, batches_of_bags, descend

__all__ = ["MixerShape", "MixerTask", "fit_mixers", "initial_mixers", "mixer_posterior"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_DECAYED = ("embedding", "across_in", "across_out", "within_in", "within_out")
_FIRST_DEVIATION = -3.0  # softplus of it, .05: first deviations of the last layer's weights
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class MixerShape:
    """Sizes.

    Attributes:
        positions: l.
        statistics: s.
        channels: c.
        units: u, hidden units of both kinds of mixing.
        blocks: Number of blocks.
    """

    positions: int
    statistics: int
    channels: int
    units: int
    blocks: int


@dataclass(frozen=True)
class MixerTask:
    """What the loss weighs.

    Attributes:
        rank_weight: Of the soft tau beside the likelihood.
        temperature: Of the soft tau, in deviations of the targets.
        prior_deviation: Of the last layer's weights.
    """

    rank_weight: float
    temperature: float
    prior_deviation: float


def initial_mixers(
    shape: MixerShape, members: int, rng: np.random.Generator
) -> dict[str, FloatArray]:
    """Returns first parameters by name, each with the members in front."""
    c, u, length = shape.channels, shape.units, shape.positions

    def drawn(*size: int, fan: int) -> FloatArray:
        return rng.normal(0.0, 1.0 / np.sqrt(fan), (members, *size))

    found = {
        "embedding": drawn(shape.statistics, c, fan=shape.statistics),
        "place": 0.1 * drawn(length, c, fan=1),
    }
    for block in range(shape.blocks):
        found[f"across_in.{block}"] = drawn(u, length, fan=length)
        found[f"across_bias.{block}"] = np.zeros((members, u, 1))
        found[f"across_out.{block}"] = drawn(length, u, fan=u)
        found[f"within_in.{block}"] = drawn(c, u, fan=c)
        found[f"within_bias.{block}"] = np.zeros((members, 1, u))
        found[f"within_out.{block}"] = drawn(u, c, fan=u)
    found["last_mean"] = drawn(2 * c + 1, fan=2 * c)
    found["last_deviation"] = np.full((members, 2 * c + 1), _FIRST_DEVIATION)
    found["noise"] = np.full((members, 1), -0.5)
    return found


def fit_mixers(
    parameters: Mapping[str, FloatArray],
    tokens: FloatArray,
    presence: FloatArray,
    targets: FloatArray,
    bags: BoolArray,
    task: MixerTask,
    descent: Descent,
    rng: np.random.Generator,
) -> dict[str, FloatArray]:
    """Returns fitted parameters.

    A member descends the negative evidence bound a row (the negative log likelihood of normal
    noise, and the Kullback-Leibler divergence of the last layer from its prior divided by the
    rows it sees) plus ``rank_weight`` times the soft tau of the batch. Outputs are drawn from the
    posterior, once a row and step.

    Args:
        parameters: Where to start.
        tokens: (n, l, s) standardised, 0 where absent.
        presence: (n, l) weights 0..1 of the positions, 0 where absent.
        targets: (n,) standardised.
        bags: (m, n) the rows that each member sees.
        task: What the loss weighs.
        descent: How.
        rng: Shuffles rows and draws outputs.
    """
    leaves = _leaves(parameters)
    rows_seen = torch.from_numpy(bags.sum(axis=1))
    values, mask, wanted = (torch.from_numpy(each) for each in (tokens, presence, targets))
    for leaf in leaves.values():
        leaf.requires_grad_()

    def loss_of(rows: Tensor) -> Tensor:
        mean, variance = _outputs(leaves, values[rows], mask[rows])
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape)))
        drawn, truth = mean + variance.sqrt() * noise, wanted[rows]
        precision = torch.exp(-2.0 * leaves["noise"])
        likelihood = (0.5 * precision * (drawn - truth).square() + leaves["noise"]).mean(dim=1)
        divergence = _divergence(leaves, task.prior_deviation) / rows_seen
        return (
            likelihood + divergence + task.rank_weight * soft_tau(drawn, truth, task.temperature)
        )

    decayed = [leaf for name, leaf in leaves.items() if name.split(".")[0] in _DECAYED]
    others = [leaf for name, leaf in leaves.items() if name.split(".")[0] not in _DECAYED]
    descend(others, decayed, loss_of, list(batches_of_bags(bags, descent, rng)), descent)
    return {name: leaf.detach().numpy() for name, leaf in leaves.items()}


def mixer_posterior(
    parameters: Mapping[str, FloatArray], tokens: FloatArray, presence: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Returns means and deviations (m, n) of the outputs, noise of the targets included."""
    leaves = _leaves(parameters)
    members = len(parameters["noise"])
    found = []
    with torch.no_grad():
        for first in range(0, len(tokens), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            values, mask = torch.from_numpy(tokens[part]), torch.from_numpy(presence[part])
            each = [one.expand(members, *one.shape) for one in (values, mask)]
            mean, variance = _outputs(leaves, *each)
            deviation = (variance + torch.exp(2.0 * leaves["noise"])).sqrt()
            found.append(torch.stack([mean, deviation]))
    mean, deviation = torch.cat(found, dim=2).numpy()
    return mean, deviation


def _leaves(parameters: Mapping[str, FloatArray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(each.copy()) for name, each in parameters.items()}


def _outputs(leaves: Mapping[str, Tensor], values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (m, b) for tokens (m, b, l, s) and presence (m, b, l)."""
    features = _features(leaves, values, mask)
    mean = torch.einsum("mbf,mf->mb", features, leaves["last_mean"])
    deviation = F.softplus(leaves["last_deviation"])
    return mean, torch.einsum("mbf,mf->mb", features.square(), deviation.square())


def _features(leaves: Mapping[str, Tensor], values: Tensor, mask: Tensor) -> Tensor:
    """(m, b, f)."""
    m, b, length = mask.shape
    shown = mask.unsqueeze(-1)
    embedded = torch.bmm(values.reshape(m, b * length, -1), leaves["embedding"])
    state = (embedded.view(m, b, length, -1) + leaves["place"].unsqueeze(1)) * shown
    for block in range(sum(name.startswith("across_in") for name in leaves)):
        state = state + _across(state, leaves, block) * shown
        state = state + _within(state, leaves, block) * shown
    total = state.sum(dim=2)
    count = shown.sum(dim=2)
    return torch.cat(
        [total / count.clamp(min=1e-6), total / length, torch.ones_like(count)], dim=-1
    )


def _across(state: Tensor, leaves: Mapping[str, Tensor], block: int) -> Tensor:
    """Mixes positions: (m, b, l, c) to the same."""
    hidden = leaves[f"across_in.{block}"].unsqueeze(1) @ state
    hidden = F.gelu(hidden + leaves[f"across_bias.{block}"].unsqueeze(1))
    return leaves[f"across_out.{block}"].unsqueeze(1) @ hidden


def _within(state: Tensor, leaves: Mapping[str, Tensor], block: int) -> Tensor:
    """Mixes channels: (m, b, l, c) to the same."""
    m, b, length, _ = state.shape
    rows = state.reshape(m, b * length, -1)
    hidden = F.gelu(torch.bmm(rows, leaves[f"within_in.{block}"]) + leaves[f"within_bias.{block}"])
    return torch.bmm(hidden, leaves[f"within_out.{block}"]).view(m, b, length, -1)


def _divergence(leaves: Mapping[str, Tensor], prior_deviation: float) -> Tensor:
    """(m,) of the last layer's weights from independent normals around 0, in nats."""
    deviation = F.softplus(leaves["last_deviation"]) / prior_deviation
    mean = leaves["last_mean"] / prior_deviation
    return (0.5 * (deviation.square() + mean.square() - 1.0) - deviation.log()).sum(dim=1)

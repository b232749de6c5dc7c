"""Training of multilayer perceptrons, several at once.

Letters: m members, n rows, d columns, b rows a batch, h units.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictors.networks.losses import LOSSES
from predictors.networks.training import Descent, batches_of_bags, descend

__all__ = ["fit_perceptrons", "initial_layers"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def initial_layers(
    sizes: Sequence[int], members: int, rng: np.random.Generator
) -> list[FloatArray]:
    """Returns a matrix (m, h + 1, h') a layer, its last row the bias, for rectified units."""
    layers = []
    for index, (width, units) in enumerate(pairwise(sizes)):
        deviation = np.sqrt((1.0 if index == len(sizes) - 2 else 2.0) / max(width, 1))
        layer = rng.normal(0.0, deviation, (members, width + 1, units))
        layer[:, -1] = 0.0
        layers.append(layer)
    return layers


def fit_perceptrons(
    layers: Sequence[FloatArray],
    X: FloatArray,
    targets: FloatArray,
    bags: BoolArray,
    loss: str,
    descent: Descent,
    rng: np.random.Generator,
) -> list[FloatArray]:
    """Returns fitted layers; double precision, so that threads and processors do not matter.

    Args:
        layers: Where to start, as :func:`initial_layers` gives them.
        X: (n, d) standardised.
        targets: (n,) standardised.
        bags: (m, n) the rows that each member sees.
        loss: Of :data:`predictors.networks.losses.LOSSES`.
        descent: How.
        rng: Shuffles rows.
    """
    columns, wanted = torch.from_numpy(X), torch.from_numpy(targets)
    weights = [torch.from_numpy(each[:, :-1].copy()).requires_grad_() for each in layers]
    biases = [torch.from_numpy(each[:, -1:].copy()).requires_grad_() for each in layers]
    measure = LOSSES[loss]

    def loss_of(rows: Tensor) -> Tensor:
        return measure(_outputs(weights, biases, columns[rows]), wanted[rows])

    descend(biases, weights, loss_of, list(batches_of_bags(bags, descent, rng)), descent)
    pairs = zip(weights, biases, strict=True)
    return [torch.cat(each, dim=1).detach().numpy() for each in pairs]


def _outputs(weights: Sequence[Tensor], biases: Sequence[Tensor], rows: Tensor) -> Tensor:
    """(m, b) outputs for rows (m, b, d)."""
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        rows = torch.baddbmm(bias, rows, weight)
        if index < len(weights) - 1:
            rows = torch.relu(rows)
    return rows.squeeze(-1)

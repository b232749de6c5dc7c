"""Curvature of the loss: traces and top eigenvalues of each layer's block of the Hessian.

Letters: L layers, k random vectors. H_l is the block of the Hessian of the batch's loss with
respect to the weights of layer l.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from predictors.zerocost.arrays import FloatArray, fixed
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, named_weights, run_model
from predictors.zerocost.second_derivatives import (
    check_differentiable_twice,
    refusing_single_derivatives,
)
from predictors.zerocost.untouched import untouched

__all__ = ["HessianEffort", "HessianSpectrum", "hessian_spectrum"]


@dataclass(frozen=True)
class HessianEffort:
    """How far estimates of the Hessian go.

    Attributes:
        relative_tolerance: A layer's trace is settled once its standard error is at most this
            part of its magnitude; above 0. Such a layer gets no more vectors, and what it added
            to the errors of the others ends too.
        fewest_vectors: Random vectors before that is asked for the first time, 2 or more: the
            standard error of a few is small by chance.
        most_vectors: Random vectors after which it ends anyway. Each costs one backward pass
            through forward and backward pass, for all layers together.
        most_iterations: Power iterations a layer for its top eigenvalue, each one backward pass;
            0 leaves eigenvalues out.
        eigenvalue_tolerance: A layer's iteration ends once norm2(H v - e v) is at most this part
            of abs(e), for v of norm 1; above 0.

    Raises:
        ProxyError: A number out of range.
    """

    relative_tolerance: float = 0.1
    fewest_vectors: int = 8
    most_vectors: int = 100
    most_iterations: int = 0
    eigenvalue_tolerance: float = 0.01

    def __post_init__(self) -> None:
        for name in ("relative_tolerance", "eigenvalue_tolerance"):
            if not getattr(self, name) > 0.0:
                raise ProxyError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 2 <= self.fewest_vectors <= self.most_vectors:
            raise ProxyError(
                "vectors must obey 2 <= fewest_vectors <= most_vectors, "
                f"got {self.fewest_vectors} and {self.most_vectors}"
            )
        if self.most_iterations < 0:
            raise ProxyError(f"most_iterations must be 0 or more, got {self.most_iterations}")


@dataclass(frozen=True, eq=False)
class HessianSpectrum:
    """Traces and top eigenvalues of the layers' blocks H_l.

    Attributes:
        traces: (L,) estimates of trace(H_l), not divided by the number of weights.
        trace_errors: (L,) their standard errors.
        trace_draws: (k, L) the draws whose means the traces are; NaN once a layer is settled.
        eigenvalues: (L,) of H_l the one that is largest in magnitude, with its sign; or None.
        eigenvalue_residuals: (L,) norm2(H v - e v) at the end: an eigenvalue is that close to e.
    """

    traces: FloatArray
    trace_errors: FloatArray
    trace_draws: FloatArray
    eigenvalues: FloatArray | None
    eigenvalue_residuals: FloatArray | None


def hessian_spectrum(
    passes: Passes, layers: Sequence[str], effort: HessianEffort
) -> HessianSpectrum:
    """Returns the spectrum of the Hessian of the batch's loss, from one graph of the gradient.

    Traces by Hutchinson's estimator, the mean of v_l' (H v)_l over vectors v of random signs: one
    vector covers all layers at once, since blocks between layers average out; they add to the
    standard error, which counts them. Quantizers are differentiated as they pass gradients on.
    Before training traces are often negative, which no score of curvature is made for.

    Args:
        passes: Model, batch, loss and seed.
        layers: (L,) names of weights that the loss depends on.
        effort: When to stop.

    Raises:
        ProxyError: A part of the model has no second derivative, or it is not finite.
    """
    generator = torch.Generator().manual_seed(passes.seed)
    eigenvalues = residuals = None
    with _gradient_graph(passes, layers) as graph:
        draws = _trace_draws(graph, effort, generator)
        if effort.most_iterations:
            places = range(len(layers))
            found = [_top_eigenvalue(graph, place, effort, generator) for place in places]
            eigenvalues = fixed(eigenvalue for eigenvalue, _ in found)
            residuals = fixed(residual for _, residual in found)
    return HessianSpectrum(
        traces=fixed(np.nanmean(draws, axis=0)),
        trace_errors=fixed(_standard_error(each[~np.isnan(each)]) for each in draws.T),
        trace_draws=fixed(draws),
        eigenvalues=eigenvalues,
        eigenvalue_residuals=residuals,
    )


@dataclass(frozen=True)
class _GradientGraph:
    """Gradients that can be differentiated once more, any number of times."""

    layers: Sequence[str]
    weights: Sequence[Tensor]
    gradients: Sequence[Tensor]

    def products(self, places: Sequence[int], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Returns H v of the layers at these places, v being 0 in all other layers."""
        weights = [self.weights[place] for place in places]
        pairs = [
            (self.gradients[place], vector)
            for place, vector in zip(places, vectors, strict=True)
            if self.gradients[place].requires_grad  # of a loss that is linear in it it does not
        ]
        found: Sequence[Tensor | None] = [None] * len(weights)
        if pairs:
            outputs, directions = zip(*pairs, strict=True)
            found = torch.autograd.grad(
                outputs, weights, directions, retain_graph=True, allow_unused=True
            )
        products = [
            torch.zeros_like(weight) if each is None else each
            for weight, each in zip(weights, found, strict=True)
        ]
        for place, each in zip(places, products, strict=True):
            if not bool(torch.isfinite(each).all()):
                raise ProxyError(f"the Hessian of {self.layers[place]!r} is not finite")
        return products


@contextmanager
def _gradient_graph(passes: Passes, layers: Sequence[str]) -> Iterator[_GradientGraph]:
    weights = named_weights(passes.model)
    chosen = [weights[layer] for layer in layers]
    labels = passes.labels
    assert labels is not None  # or there would be no layers that the loss depends on
    with (
        untouched(passes.model, seed=passes.seed),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),  # the other forms of attention have one derivative only
        refusing_single_derivatives(),
    ):
        loss = passes.loss(run_model(passes.model, passes.inputs), labels.clone())
        gradients = torch.autograd.grad(loss, chosen, create_graph=True)
        check_differentiable_twice(gradients)
        yield _GradientGraph(layers, chosen, gradients)


def _trace_draws(
    graph: _GradientGraph, effort: HessianEffort, generator: torch.Generator
) -> FloatArray:
    """Returns (k, L) draws v_l' (H v)_l, as few as the tolerance allows."""
    draws = np.full((effort.most_vectors, len(graph.layers)), np.nan)
    open_places = list(range(len(graph.layers)))
    for row in range(effort.most_vectors):
        signs = [_random_signs(graph.weights[place], generator) for place in open_places]
        products = graph.products(open_places, signs)
        draws[row, open_places] = [_dot(*pair) for pair in zip(signs, products, strict=True)]
        so_far = draws[: row + 1]
        if len(so_far) >= effort.fewest_vectors:
            open_places = [
                place
                for place in open_places
                if not _is_settled(so_far[:, place], effort.relative_tolerance)
            ]
        if not open_places:
            return so_far
    return draws


def _is_settled(draws: FloatArray, relative_tolerance: float) -> bool:
    return _standard_error(draws) <= relative_tolerance * abs(float(draws.mean()))


def _standard_error(draws: FloatArray) -> float:
    return float(draws.std(ddof=1)) / math.sqrt(len(draws))


def _top_eigenvalue(
    graph: _GradientGraph, place: int, effort: HessianEffort, generator: torch.Generator
) -> tuple[float, float]:
    """Returns the eigenvalue of a block that is largest in magnitude, and the residual."""
    weight = graph.weights[place]
    vector = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
    vector = vector / torch.linalg.vector_norm(vector)
    eigenvalue = residual = 0.0
    for _ in range(effort.most_iterations):
        (product,) = graph.products([place], [vector])
        eigenvalue = _dot(vector, product)
        residual = _norm(product - eigenvalue * vector)
        if residual <= effort.eigenvalue_tolerance * abs(eigenvalue):
            break
        vector = product / _norm(product)
    return eigenvalue, residual


def _random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(2, like.shape, generator=generator).mul_(2).sub_(1).to(like)


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.double() * other.double()).sum())


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))

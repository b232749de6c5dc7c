import math

import numpy as np
import pytest
import torch

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.orthogonality import (
    alignment,
    centred_gram,
    orthogonality_weights,
    suffix_means,
)


def features(*widths, mean=0.0) -> list[torch.Tensor]:
    rng = np.random.default_rng(2)
    return [torch.from_numpy(rng.normal(size=(7, width)) + mean) for width in widths]


def plain_cka(x, y) -> float:
    """With the centring matrix, in loops: <H K H, H L H> by the product of the norms."""
    samples = len(x)
    centring = np.eye(samples) - 1.0 / samples
    grams = []
    for rows in (x, y):
        kernel = [[float(one @ other) for other in rows] for one in rows]
        grams.append(centring @ np.array(kernel) @ centring)
    pairs = [(i, j) for i in range(samples) for j in range(samples)]
    products = [sum(a[p] * b[p] for p in pairs) for a in grams for b in grams]
    return products[1] / math.sqrt(products[0] * products[3])


def test_equals_the_definition_with_the_centring_matrix() -> None:
    layers = features(3, 5, 2, 9)
    found = alignment(torch.stack([centred_gram(each) for each in layers]))
    expected = [[plain_cka(one, other) for other in layers] for one in layers]
    assert found == pytest.approx(np.array(expected), rel=1e-10)


def test_is_1_for_features_that_are_rotated_scaled_and_shifted() -> None:
    (x,) = features(3)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    found = alignment(torch.stack([centred_gram(x), centred_gram(7.0 * x @ rotation + 3.0)]))
    assert found == pytest.approx(np.ones((2, 2)))


def test_is_0_for_features_that_vary_apart() -> None:
    one, other = (
        torch.tensor(each).double()[:, None] for each in ([1, 1, -1, -1], [1, -1, 1, -1])
    )
    found = alignment(torch.stack([centred_gram(one), centred_gram(other)]))
    assert found == pytest.approx(np.eye(2), abs=1e-12)


def test_a_large_mean_costs_no_digits() -> None:
    for one, other in zip(features(4), features(4, mean=1e6), strict=True):
        assert centred_gram(other.float()).numpy() == pytest.approx(
            centred_gram(one).numpy(), abs=0.5
        )


def test_features_that_do_not_vary_align_with_nothing() -> None:
    (x,) = features(3)
    grams = torch.stack([centred_gram(x), centred_gram(torch.ones(7, 2, dtype=torch.float64))])
    assert alignment(grams) == pytest.approx(np.diag([1.0, 0.0]), abs=1e-12)


def test_unseen_features_have_no_alignment() -> None:
    (x,) = features(3)
    found = alignment(torch.stack([centred_gram(x), torch.full((7, 7), math.nan).double()]))
    assert found == pytest.approx(np.array([[1.0, math.nan], [math.nan] * 2]), nan_ok=True)


def test_weights_fall_with_the_alignment_to_others() -> None:
    cka = np.array([[1.0, 0.5, 0.25], [0.5, 1.0, 0.0], [0.25, 0.0, 1.0]])
    assert orthogonality_weights(cka) == pytest.approx(np.exp([-0.75, -0.5, -0.25]))
    assert orthogonality_weights(cka, beta=10.0) == pytest.approx(np.exp([-7.5, -5.0, -2.5]))


def test_suffix_means_equal_loops() -> None:
    values = np.random.default_rng(0).normal(size=6)
    assert suffix_means(values) == pytest.approx([values[start:].mean() for start in range(6)])


def test_says_that_beta_is_not_above_0() -> None:
    with pytest.raises(ProxyError) as caught:
        orthogonality_weights(np.eye(2), beta=0.0)
    assert str(caught.value) == "beta must be above 0, got 0.0"

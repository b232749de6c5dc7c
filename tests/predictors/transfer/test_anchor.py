import numpy as np
import pytest

from predictors.transfer.anchor import Anchor


def test_it_is_the_least_squares_line():
    rng = np.random.default_rng(0)
    prior = rng.normal(size=20)
    z = 3.0 * prior - 1.0 + rng.normal(size=20)
    anchor = Anchor.of(prior, z)
    slope, offset = np.polyfit(prior, z, 1)
    assert (anchor.slope, anchor.offset) == pytest.approx((slope, offset))
    assert anchor.spread == pytest.approx(np.std(z - np.polyval([slope, offset], prior)))
    np.testing.assert_allclose(anchor.moved(prior), np.polyval([slope, offset], prior))


def test_a_falling_line_becomes_a_flat_one_that_keeps_the_order():
    anchor = Anchor.of(np.arange(5.0), -np.arange(5.0))
    moved = anchor.moved(np.arange(5.0))
    assert (np.diff(moved) > 0.0).all()
    assert moved == pytest.approx(np.full(5, -2.0), abs=1e-4)


@pytest.mark.parametrize("prior", [np.full(4, 0.3), np.array([0.3])])
def test_without_a_spread_of_the_prior_the_mean_is_left(prior):
    z = np.arange(float(len(prior)))
    assert Anchor.of(prior, z).moved(prior) == pytest.approx(np.full(len(prior), z.mean()))

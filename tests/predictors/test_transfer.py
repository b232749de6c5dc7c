import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_predict

from predictors import (
    BlendPredictor,
    RidgePredictor,
    TransferPredictor,
    kendall_tau,
    out_of_fold,
    rmse,
)
from predictors.validation import group_labels, split_by_group

COLUMNS, EXTRA = 20, 5
WEIGHTS = np.linspace(0.05, 0.5, COLUMNS)
DAMAGE = np.linspace(-1.0, -0.2, EXTRA)


class World:
    """Accuracy in fp32 adds up over columns; in mixed formats other columns take some away."""

    def __init__(self, seed: int, structure: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.structure = structure
        X = self.architectures(150)
        y = expit(X @ WEIGHTS - 5.0 + self.rng.normal(0.0, 0.1, 150))
        self.base = RidgePredictor().fit(X, y)

    def architectures(self, count):
        return self.rng.integers(0, 3, (count, COLUMNS)).astype(np.float64)

    def mixed(self, count, noise=0.3):
        """Returns rows whose first columns the base reads, and accuracies."""
        X = np.hstack([self.architectures(count), self.rng.normal(size=(count, EXTRA))])
        z = X[:, :COLUMNS] @ WEIGHTS - 5.5 + self.structure * (X[:, COLUMNS:] @ DAMAGE)
        return X, expit(z + self.rng.normal(0.0, noise, count))


@pytest.fixture
def world():
    return World(0)


def link_of_base(base, X):
    return logit(np.clip(base.predict(X[:, :COLUMNS]), 0.005, 0.995))


@pytest.mark.parametrize("residual", [RidgePredictor(), BlendPredictor(n_estimators=20)])
def test_where_there_is_nothing_but_noise_to_learn_it_ranks_about_like_its_base(residual):
    for count, mean, worst in (
        (6, 0.0, 0.0),
        (10, -0.03, -0.2),
        (20, -0.02, -0.12),
        (40, -0.01, -0.06),
    ):
        differences = []
        for seed in range(8):
            world = World(seed)
            fitted = TransferPredictor(world.base, residual).fit(*world.mixed(count))
            X, y = world.mixed(300, noise=0.0)
            alone = kendall_tau(y, world.base.predict(X[:, :COLUMNS]))
            differences.append(kendall_tau(y, fitted.predict(X)) - alone)
        assert np.mean(differences) >= mean, count
        assert min(differences) >= worst, count


@pytest.mark.parametrize("count", [20, 40])
def test_where_the_truth_is_the_base_and_structure_it_beats_both_base_and_scratch(count):
    taus = []
    residual = BlendPredictor(n_estimators=40)
    for seed in range(8):
        world = World(seed, structure=0.6)
        X, y = world.mixed(count)
        unseen, truth = world.mixed(300, noise=0.0)
        fits = [TransferPredictor(base, residual).fit(X, y) for base in (world.base, None)]
        predictions = [each.predict(unseen) for each in fits]
        predictions.append(world.base.predict(unseen[:, :COLUMNS]))
        taus.append([kendall_tau(truth, each) for each in predictions])
    transferred, scratch, alone = np.mean(taus, axis=0)
    assert transferred > scratch + 0.01
    assert transferred > alone + 0.1


def test_few_rows_fall_back_to_the_base_moved_to_their_level(world):
    X, y = world.mixed(9)
    fitted = TransferPredictor(world.base).fit(X, y)
    assert not fitted.uses_residual_
    assert np.isnan([fitted.gain_, fitted.gain_error_]).all()
    assert np.isfinite(fitted.out_of_fold_).all()
    prior = link_of_base(world.base, X)
    for train, test in split_by_group(np.arange(9)):
        line = np.polyfit(prior[train], logit(y[train]), 1)
        np.testing.assert_allclose(fitted.out_of_fold_[test], expit(np.polyval(line, prior[test])))
    slope, offset = np.polyfit(link_of_base(world.base, X), logit(y), 1)
    unseen, truth = world.mixed(200, noise=0.0)
    found, deviation = fitted.predict(unseen, return_std=True)
    np.testing.assert_allclose(found, expit(offset + slope * link_of_base(world.base, unseen)))
    spread = np.std(logit(y) - offset - slope * link_of_base(world.base, X))
    np.testing.assert_allclose(deviation, spread * found * (1 - found))
    alone = world.base.predict(unseen[:, :COLUMNS])
    assert kendall_tau(alone, found) == pytest.approx(1.0)
    assert rmse(truth, found) < 0.7 * rmse(truth, alone)


def test_few_groups_are_few_rows(world):
    X, y = world.mixed(40)
    groups = np.arange(40) % 9
    assert not TransferPredictor(world.base).fit(X, y, groups=groups).uses_residual_
    assert np.isfinite(TransferPredictor(world.base).fit(X, y).gain_)


def test_a_base_is_not_turned_round(world):
    X, y = world.mixed(9)
    fitted = TransferPredictor(world.base).fit(X, 1.0 - y)
    unseen, _ = world.mixed(100)
    found = fitted.predict(unseen)
    assert kendall_tau(world.base.predict(unseen[:, :COLUMNS]), found) == pytest.approx(1.0)
    assert np.ptp(found) < 1e-3


def test_a_base_that_predicts_a_constant_leaves_the_mean(world):
    X, y = world.mixed(8)
    flat = RidgePredictor().fit(X[:, :COLUMNS], np.full(8, 0.5))
    fitted = TransferPredictor(flat).fit(X, y)
    assert fitted.predict(X) == pytest.approx(np.full(8, expit(logit(y).mean())))


@pytest.mark.parametrize("structure", [0.0, 0.6])
def test_the_difference_is_used_if_it_gains_more_than_a_standard_error(structure):
    used = []
    for seed in range(8):
        world = World(seed, structure)
        X, y = world.mixed(24, noise=0.6)
        groups = np.arange(24) // 2
        fitted = TransferPredictor(world.base, RidgePredictor()).fit(X, y, groups=groups)
        prior, z = link_of_base(world.base, X), logit(np.clip(y, 0.005, 0.995))
        anchored = np.empty(24)
        for train, test in split_by_group(group_labels(24, groups)):
            slope = max(np.polyfit(prior[train], z[train], 1)[0], 1e-6)
            anchored[test] = z[train].mean() + slope * (prior[test] - prior[train].mean())
        columns = np.hstack([X, prior[:, None]])
        learned = prior - 50.0 + out_of_fold(RidgePredictor(), columns, z - prior + 50.0, groups)
        gains = (z - anchored) ** 2 - (z - learned) ** 2
        assert fitted.gain_ == pytest.approx(gains.mean(), rel=1e-6)
        assert fitted.gain_error_ == pytest.approx(gains.std(ddof=1) / np.sqrt(24), rel=1e-6)
        assert fitted.uses_residual_ == (fitted.gain_ > fitted.gain_error_)
        chosen = learned if fitted.uses_residual_ else anchored
        np.testing.assert_allclose(fitted.out_of_fold_, expit(chosen), rtol=1e-6)
        used.append(fitted.uses_residual_)
    assert any(used) if structure else not all(used)


def test_predictions_out_of_fold_never_saw_their_group():
    """Targets are noise that rows of a group share: only a leak can predict them."""
    world = World(0)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    X, y = world.mixed(30)
    X, y = X[groups], expit(rng.normal(size=30))[groups]
    for base in (world.base, None):
        fitted = TransferPredictor(base, BlendPredictor(20)).fit(X, y, groups=groups)
        assert abs(np.corrcoef(y, fitted.out_of_fold_)[0, 1]) < 0.4


def test_differences_of_0_to_1_are_not_taken_for_fractions(world):
    """A difference beyond those seen must not be squeezed below 1."""
    X, _ = world.mixed(60)
    X[:, COLUMNS:] = 0.0
    X[:, -1] = np.linspace(0.05, 0.95, 60)
    prior = link_of_base(world.base, X)
    fitted = TransferPredictor(world.base, RidgePredictor()).fit(X, expit(prior + X[:, -1]))
    assert fitted.uses_residual_
    beyond = X.copy()
    beyond[:, -1] = 1.2
    difference = logit(fitted.predict(beyond)) - prior
    assert difference == pytest.approx(np.full(60, 1.2), abs=0.05)


def test_targets_that_are_no_fractions_transfer_too():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6))
    base = RidgePredictor().fit(X[:100, :4], X[:100, :4].sum(axis=1) * 10.0)
    y = X.sum(axis=1) * 10.0 + 300.0
    fitted = TransferPredictor(base, RidgePredictor()).fit(X[100:150], y[100:150])
    assert rmse(y[150:], fitted.predict(X[150:])) < 1.0


def test_without_a_base_it_learns_from_scratch(world):
    X, y = world.mixed(40)
    fitted = TransferPredictor(None, RidgePredictor()).fit(X, y)
    assert fitted.uses_residual_
    np.testing.assert_allclose(fitted.predict(X), RidgePredictor().fit(X, y).predict(X), rtol=1e-6)
    few = TransferPredictor(None, RidgePredictor()).fit(X[:3], y[:3])
    assert few.uses_residual_
    assert np.isfinite(few.out_of_fold_).all()
    alone = TransferPredictor(None, RidgePredictor()).fit(X[:3], y[:3], groups=np.zeros(3, int))
    assert np.isnan(alone.out_of_fold_).all()


def test_only_the_first_columns_reach_the_base(world):
    X, y = world.mixed(9)
    fitted = TransferPredictor(world.base).fit(X, y)
    moved = X.copy()
    moved[:, COLUMNS:] += 100.0
    assert np.array_equal(fitted.predict(X), fitted.predict(moved))


def test_a_clone_is_unfitted_and_its_base_stays_fitted(world):
    X, y = world.mixed(40)
    fitted = TransferPredictor(world.base, RidgePredictor(), folds=4, random_state=3).fit(X, y)
    copy = clone(fitted)
    assert copy.base is world.base
    assert copy.residual is not fitted.residual
    assert (copy.folds, copy.random_state) == (4, 3)
    with pytest.raises(NotFittedError) as caught:
        copy.predict(X)
    assert str(caught.value).startswith("This TransferPredictor instance is not fitted yet.")
    assert np.array_equal(copy.fit(X, y).predict(X), fitted.predict(X))


def test_fitting_leaves_base_and_residual_as_they_were(world):
    X, y = world.mixed(40)
    before = world.base.predict(X[:, :COLUMNS])
    residual = RidgePredictor()
    TransferPredictor(world.base, residual).fit(X, y)
    assert not hasattr(residual, "ridge_")
    assert np.array_equal(world.base.predict(X[:, :COLUMNS]), before)


def test_it_works_inside_cross_validation_of_scikit_learn(world):
    X, y = world.mixed(30)
    predicted = cross_val_predict(TransferPredictor(world.base, RidgePredictor()), X, y, cv=3)
    assert kendall_tau(y, predicted) > 0.6


def test_the_seed_is_that_of_the_default_residual(world):
    world.structure = 1.0
    X, y = world.mixed(60)
    first, again, other = (
        TransferPredictor(world.base, random_state=seed).fit(X, y).predict(X) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_standard_deviations_come_from_the_residual(world):
    world.structure = 1.0
    X, y = world.mixed(60)
    fitted = TransferPredictor(world.base, RidgePredictor()).fit(X, y)
    mean, deviation = fitted.predict(X, return_std=True)
    assert fitted.uses_residual_
    np.testing.assert_allclose(deviation, fitted.residual_.deviation_ * mean * (1 - mean))


def test_a_base_that_is_not_fitted_says_so(world):
    with pytest.raises(NotFittedError) as caught:
        TransferPredictor(RidgePredictor()).fit(*world.mixed(20))
    assert str(caught.value).startswith("This RidgePredictor instance is not fitted yet.")


def test_rows_with_too_few_columns_for_the_base_are_refused(world):
    X, y = world.mixed(20)
    with pytest.raises(ValueError, match="features") as caught:
        TransferPredictor(world.base).fit(X[:, :3], y)
    assert str(caught.value) == (
        "X has 3 features, but RidgePredictor is expecting 20 features as input."
    )


def test_groups_must_fit_the_rows(world):
    X, y = world.mixed(20)
    with pytest.raises(ValueError, match="groups") as caught:
        TransferPredictor(world.base).fit(X, y, groups=np.arange(7))
    assert str(caught.value) == "groups must have shape (20,), got (7,)"

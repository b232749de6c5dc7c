import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks

from predictors import (
    RidgePredictor,
    TransferPredictor,
    kendall_tau,
    out_of_fold,
    rmse,
)
from predictors.transfer import ColumnReader, FewRowsPredictor
from predictors.transfer.rows import TransferRows
from predictors.transfer.selection import choose_mode, gain_and_error, weight_of_gain
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
        self.base_rows = X, y
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


@pytest.mark.parametrize("learner", [RidgePredictor(), FewRowsPredictor(n_estimators=10)])
def test_where_there_is_nothing_but_noise_to_learn_it_ranks_about_like_its_base(learner):
    for count, mean, worst in (
        (4, 0.0, 0.0),
        (10, -0.03, -0.2),
        (20, -0.02, -0.12),
        (40, -0.01, -0.06),
    ):
        differences = []
        for seed in range(6):
            world = World(seed)
            fitted = TransferPredictor(world.base, learner).fit(*world.mixed(count))
            X, y = world.mixed(300, noise=0.0)
            alone = kendall_tau(y, world.base.predict(X[:, :COLUMNS]))
            differences.append(kendall_tau(y, fitted.predict(X)) - alone)
        assert np.mean(differences) >= mean, count
        assert min(differences) >= worst, count


@pytest.mark.parametrize("count", [16, 20])
def test_where_the_truth_is_the_base_and_structure_it_beats_both_base_and_scratch(count):
    taus = []
    learner = FewRowsPredictor(n_estimators=10)
    for seed in range(5):
        world = World(seed, structure=0.6)
        X, y = world.mixed(count)
        unseen, truth = world.mixed(300, noise=0.0)
        fits = [TransferPredictor(base, learner).fit(X, y) for base in (world.base, None)]
        predictions = [each.predict(unseen) for each in fits]
        predictions.append(world.base.predict(unseen[:, :COLUMNS]))
        taus.append([kendall_tau(truth, each) for each in predictions])
    transferred, scratch, alone = np.mean(taus, axis=0)
    assert transferred > scratch + 0.01
    assert transferred > alone + 0.05


@pytest.mark.parametrize("mode", ["auto", "residual", "feature", "multitask"])
def test_fewer_rows_than_folds_leave_the_base_moved_to_their_level(world, mode):
    X, y = world.mixed(4)
    fitted = TransferPredictor(world.base, mode=mode, base_rows=world.base_rows).fit(X, y)
    assert (fitted.chosen_, fitted.weight_, fitted.uses_residual_) == ("base", 0.0, False)
    assert np.isnan([fitted.gain_, fitted.gain_error_]).all()
    prior = link_of_base(world.base, X)
    for train, test in split_by_group(np.arange(4)):
        line = np.polyfit(prior[train], logit(y[train]), 1)
        np.testing.assert_allclose(fitted.out_of_fold_[test], expit(np.polyval(line, prior[test])))
    slope, offset = np.polyfit(prior, logit(y), 1)
    unseen, truth = world.mixed(200, noise=0.0)
    found, deviation = fitted.predict(unseen, return_std=True)
    np.testing.assert_allclose(found, expit(offset + slope * link_of_base(world.base, unseen)))
    spread = np.std(logit(y) - offset - slope * prior)
    np.testing.assert_allclose(deviation, spread * found * (1 - found))
    alone = world.base.predict(unseen[:, :COLUMNS])
    assert kendall_tau(alone, found) == pytest.approx(1.0)
    assert rmse(truth, found) < 0.7 * rmse(truth, alone)


def test_few_groups_are_few_rows(world):
    X, y = world.mixed(40)
    assert np.isnan(TransferPredictor(world.base).fit(X, y, groups=np.arange(40) % 4).gain_)
    assert np.isfinite(TransferPredictor(world.base).fit(X, y, groups=np.arange(40) % 5).gain_)


def test_a_single_row_or_group_leaves_the_base(world):
    X, y = world.mixed(6)
    unseen, _ = world.mixed(50)
    alone = world.base.predict(unseen[:, :COLUMNS])
    one_group = TransferPredictor(world.base).fit(X, y, groups=np.zeros(6, int))
    for fitted in (TransferPredictor(world.base).fit(X[:1], y[:1]), one_group):
        assert np.isnan(fitted.out_of_fold_).all()
        assert kendall_tau(alone, fitted.predict(unseen)) == pytest.approx(1.0)


def test_a_base_is_not_turned_round(world):
    X, y = world.mixed(4)
    prior = link_of_base(world.base, X)
    y = y[np.argsort(np.argsort(prior))] if kendall_tau(prior, y) < 0 else y
    fitted = TransferPredictor(world.base).fit(X, 1.0 - np.sort(y)[np.argsort(np.argsort(prior))])
    unseen, _ = world.mixed(100)
    found = fitted.predict(unseen)
    assert kendall_tau(world.base.predict(unseen[:, :COLUMNS]), found) == pytest.approx(1.0)
    assert np.ptp(found) < 1e-3


def test_a_base_that_predicts_a_constant_leaves_the_mean(world):
    X, y = world.mixed(4)
    flat = RidgePredictor().fit(X[:, :COLUMNS], np.full(4, 0.5))
    fitted = TransferPredictor(flat).fit(X, y)
    assert fitted.predict(X) == pytest.approx(np.full(4, expit(logit(y).mean())))


@pytest.mark.parametrize("structure", [0.0, 0.6, 1.0])
def test_what_was_learned_earns_its_weight_by_its_gain_out_of_fold(structure):
    """Everything is worked out anew from plain folds."""
    weights = []
    for seed in range(8):
        world = World(seed, structure)
        X, y = world.mixed(24, noise=0.4)
        groups = np.arange(24) // 2
        fitted = TransferPredictor(world.base, RidgePredictor()).fit(X, y, groups=groups)
        prior, z = link_of_base(world.base, X), logit(np.clip(y, 0.005, 0.995))
        anchored = np.empty(24)
        for train, test in split_by_group(group_labels(24, groups)):
            slope = max(np.polyfit(prior[train], z[train], 1)[0], 1e-6)
            anchored[test] = z[train].mean() + slope * (prior[test] - prior[train].mean())
        columns = np.hstack([X, prior[:, None]])
        learned = {
            "residual": prior - 50.0
            + out_of_fold(RidgePredictor(), columns, z - prior + 50.0, groups),
            "feature": out_of_fold(RidgePredictor(), columns, z + 50.0, groups) - 50.0,
        }  # fmt: skip
        better = (z - learned["residual"]) ** 2 - (z - learned["feature"]) ** 2
        of_groups = better.reshape(12, 2).sum(axis=1) / 24
        mode = "feature" if better.mean() > error_of_sum(of_groups) else "residual"
        gains = (z - anchored) ** 2 - (z - learned[mode]) ** 2
        error = error_of_sum(gains.reshape(12, 2).sum(axis=1) / 24)
        assert fitted.gain_ == pytest.approx(gains.mean(), rel=1e-6)
        assert fitted.gain_error_ == pytest.approx(error, rel=1e-6)
        weight = np.clip(gains.mean() / error - 1.0, 0.0, 1.0)
        if kendall_tau(z, learned[mode]) < kendall_tau(z, anchored):
            weight = 0.0
        assert fitted.weight_ == pytest.approx(weight, abs=1e-6)
        assert fitted.chosen_ == (mode if weight > 0.0 else "base")
        assert fitted.uses_residual_ == (weight > 0.0)
        mixed = weight * learned[mode] + (1.0 - weight) * anchored
        np.testing.assert_allclose(fitted.out_of_fold_, expit(mixed), rtol=1e-6)
        weights.append(weight)
    assert min(weights) < 1.0
    assert max(weights) > 0.0 or structure < 1.0


def error_of_sum(parts):
    """Standard error of a sum of independent parts."""
    return np.sqrt(len(parts)) * np.std(parts, ddof=1)


def test_the_weight_rises_smoothly_from_one_to_two_standard_errors():
    gains = np.array([-1.0, 0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 9.0])
    weights = [weight_of_gain(0.3 * each, 0.3) for each in gains]
    assert weights == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 1, 1])
    assert weight_of_gain(0.0, 0.0) == 0.0
    assert weight_of_gain(0.1, 0.0) == 1.0


def test_a_mode_that_ranks_worse_out_of_fold_is_not_used():
    """It errs less in squares, by a single row, and orders the others the wrong way."""
    z = np.concatenate([np.arange(19.0), [300.0]])
    rows = TransferRows(np.zeros((20, 1)), z, z, np.arange(20))
    moved, learned = np.append(z[:19], 0.0), np.append(-z[:19], 300.0)
    gain, error = gain_and_error(rows, moved, learned)
    assert gain > 0.9 * error
    better = choose_mode({"any": lambda _: Fixed(-1.0)}, rows, 5, guarded=True)
    assert (better.mode, better.weight) == ("base", 0.0)


def test_between_none_and_all_the_prediction_is_a_mixture(world):
    world.structure = 0.6
    X, y = world.mixed(40)
    unseen, _ = world.mixed(50)
    fitted = TransferPredictor(world.base, RidgePredictor()).fit(X, y)
    whole, whole_deviation = fitted.predict(unseen, return_std=True)
    assert fitted.weight_ == 1.0
    fitted.weight_ = 0.0
    base, base_deviation = fitted.predict(unseen, return_std=True)
    fitted.weight_ = 0.25
    mixed, deviation = fitted.predict(unseen, return_std=True)
    np.testing.assert_allclose(logit(mixed), 0.25 * logit(whole) + 0.75 * logit(base))
    a, b = whole_deviation / (whole * (1 - whole)), base_deviation / (base * (1 - base))
    spread = 0.25 * a**2 + 0.75 * b**2 + 0.25 * 0.75 * (logit(whole) - logit(base)) ** 2
    np.testing.assert_allclose(deviation, np.sqrt(spread) * mixed * (1 - mixed))


class Fixed:
    """A fitted mode that predicts a multiple of the prior."""

    def __init__(self, factor):
        self.factor = factor

    def predict(self, X, prior):
        return self.factor * prior, np.ones(len(X))


def test_predictions_out_of_fold_never_saw_their_group():
    """Targets are noise that rows of a group share: only a leak can predict them."""
    world = World(0)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    X, y = world.mixed(30)
    X, y = X[groups], expit(rng.normal(size=30))[groups]
    for base in (world.base, None):
        learner = FewRowsPredictor(n_estimators=20)
        fitted = TransferPredictor(base, learner).fit(X, y, groups=groups)
        assert abs(np.corrcoef(y, fitted.out_of_fold_)[0, 1]) < 0.4


def test_differences_of_0_to_1_are_not_taken_for_fractions(world):
    """A difference beyond those seen must not be squeezed below 1."""
    X, _ = world.mixed(60)
    X[:, COLUMNS:] = 0.0
    X[:, -1] = np.linspace(0.05, 0.95, 60)
    prior = link_of_base(world.base, X)
    y = expit(prior + X[:, -1])
    fitted = TransferPredictor(world.base, RidgePredictor(), mode="residual").fit(X, y)
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
    assert (few.chosen_, few.weight_) == ("plain", 1.0)
    assert np.isfinite(few.out_of_fold_).all()
    alone = TransferPredictor(None, RidgePredictor()).fit(X[:3], y[:3], groups=np.zeros(3, int))
    assert np.isnan(alone.out_of_fold_).all()


def test_only_the_first_columns_reach_the_base(world):
    X, y = world.mixed(4)
    fitted = TransferPredictor(world.base).fit(X, y)
    moved = X.copy()
    moved[:, COLUMNS:] += 100.0
    assert np.array_equal(fitted.predict(X), fitted.predict(moved))


def test_a_clone_is_unfitted_and_its_base_stays_fitted(world):
    X, y = world.mixed(40)
    fitted = TransferPredictor(world.base, RidgePredictor(), folds=4, random_state=3).fit(X, y)
    copy = clone(fitted)
    assert copy.base is world.base
    assert copy.learner is not fitted.learner
    assert (copy.folds, copy.random_state) == (4, 3)
    with pytest.raises(NotFittedError) as caught:
        copy.predict(X)
    assert str(caught.value).startswith("This TransferPredictor instance is not fitted yet.")
    assert np.array_equal(copy.fit(X, y).predict(X), fitted.predict(X))


def test_fitting_leaves_base_and_learner_as_they_were(world):
    X, y = world.mixed(40)
    before = world.base.predict(X[:, :COLUMNS])
    learner = RidgePredictor()
    TransferPredictor(world.base, learner).fit(X, y)
    assert not hasattr(learner, "ridge_")
    assert np.array_equal(world.base.predict(X[:, :COLUMNS]), before)


def test_it_works_inside_cross_validation_of_scikit_learn(world):
    X, y = world.mixed(30)
    predicted = cross_val_predict(TransferPredictor(world.base, RidgePredictor()), X, y, cv=3)
    assert kendall_tau(y, predicted) > 0.6


def test_the_seed_is_that_of_the_default_learner(world):
    world.structure = 1.0
    X, y = world.mixed(60)
    first, again, other = (
        TransferPredictor(world.base, mode="residual", folds=2, random_state=seed)
        .fit(X, y)
        .predict(X)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_standard_deviations_come_from_the_learner(world):
    world.structure = 1.0
    X, y = world.mixed(60)
    fitted = TransferPredictor(world.base, RidgePredictor(), mode="residual").fit(X, y)
    mean, deviation = fitted.predict(X, return_std=True)
    learner = fitted.fitted_.learned.learner
    np.testing.assert_allclose(deviation, learner.deviation_ * mean * (1 - mean))


def test_a_base_that_is_not_fitted_says_so(world):
    with pytest.raises(NotFittedError) as caught:
        TransferPredictor(RidgePredictor()).fit(*world.mixed(20))
    assert str(caught.value).startswith("This RidgePredictor instance is not fitted yet.")


def test_rows_with_too_few_columns_for_the_base_are_refused(world):
    X, y = world.mixed(20)
    with pytest.raises(ValueError, match="columns") as caught:
        TransferPredictor(world.base).fit(X[:, :3], y)
    assert str(caught.value) == ("base reads 20 columns, but X has 3")


def test_groups_must_fit_the_rows(world):
    X, y = world.mixed(20)
    with pytest.raises(ValueError, match="groups") as caught:
        TransferPredictor(world.base).fit(X, y, groups=np.arange(7))
    assert str(caught.value) == "groups must have shape (20,), got (7,)"


MODES = ["auto", "residual", "feature", "multitask"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_structure_beyond_the_base(mode):
    world = World(1, structure=0.6)
    X, y = world.mixed(40)
    unseen, truth = world.mixed(200, noise=0.0)
    fitted = TransferPredictor(world.base, mode=mode, base_rows=world.base_rows).fit(X, y)
    assert fitted.chosen_ in ([mode] if mode != "auto" else MODES)
    alone = kendall_tau(truth, world.base.predict(unseen[:, :COLUMNS]))
    assert kendall_tau(truth, fitted.predict(unseen)) > alone + 0.1
    assert kendall_tau(y, fitted.out_of_fold_) > 0.4


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_repeats_itself(mode):
    world = World(2, structure=0.6)
    X, y = world.mixed(25)
    fits = [
        clone(TransferPredictor(world.base, mode=mode, base_rows=world.base_rows)).fit(X, y)
        for _ in range(2)
    ]
    assert np.array_equal(fits[0].predict(X), fits[1].predict(X))


def test_a_perceptron_goes_on_from_the_weights_of_the_base():
    pytest.importorskip("torch")
    from predictors.regressors.mlp import MLPPredictor

    world = World(3, structure=0.3)
    base = MLPPredictor(hidden=(16,), members=2, epochs=30).fit(*world.base_rows)
    X, y = world.mixed(25)
    unseen, truth = world.mixed(200, noise=0.0)
    warm = TransferPredictor(base, mode="warm").fit(X, y)
    cold = clone(base).fit(X, y)
    assert kendall_tau(truth, warm.predict(unseen)) > kendall_tau(truth, cold.predict(unseen))
    again = TransferPredictor(base, mode="warm").fit(X, y)
    assert np.array_equal(warm.predict(unseen), again.predict(unseen))


def test_a_perceptron_is_fitted_on_the_rows_of_a_base_that_is_none():
    pytest.importorskip("torch")
    world = World(3)
    X, y = world.mixed(12)
    fitted = TransferPredictor(world.base, mode="warm", base_rows=world.base_rows).fit(X, y)
    assert fitted.chosen_ == "warm"
    assert np.isfinite(fitted.predict(X)).all()


def test_a_column_can_be_the_base(world):
    world.structure = 0.6
    X, y = world.mixed(30)
    columns = np.hstack([X, 100.0 * world.base.predict(X[:, :COLUMNS])[:, None]])
    for count in (4, 30):
        fitted = TransferPredictor(ColumnReader(-1), RidgePredictor()).fit(
            columns[:count], y[:count]
        )
        assert np.isfinite(fitted.predict(columns)).all()
        if count == 4:
            tau = kendall_tau(columns[:, -1], fitted.predict(columns))
            assert tau == pytest.approx(1.0)
        else:
            assert kendall_tau(y, fitted.predict(columns)) > kendall_tau(y, columns[:, -1])


class Heavier:
    """A base of no library: it says nothing of its columns, and its scale is its own."""

    def predict(self, X):
        assert X.shape[1] == COLUMNS + EXTRA
        return 1000.0 + 500.0 * (X[:, :COLUMNS] @ WEIGHTS)


@pytest.mark.parametrize("count", [4, 40])
def test_a_base_may_have_another_scale_and_see_all_columns(world, count):
    world.structure = 0.6
    X, y = world.mixed(count)
    unseen, truth = world.mixed(200, noise=0.0)
    fitted = TransferPredictor(Heavier(), FewRowsPredictor(n_estimators=20)).fit(X, y)
    tau = kendall_tau(truth, Heavier().predict(unseen))
    found = kendall_tau(truth, fitted.predict(unseen))
    assert found == pytest.approx(tau, abs=1e-3) if count == 4 else found > tau + 0.1
    assert rmse(truth, fitted.predict(unseen)) < 0.3


def test_a_base_that_keeps_its_rows_gives_them_to_multitask(world):
    X, y = world.mixed(20)
    given = TransferPredictor(world.base, mode="multitask", base_rows=world.base_rows).fit(X, y)
    world.base.training_rows_ = world.base_rows
    kept = TransferPredictor(world.base, mode="multitask").fit(X, y)
    assert np.array_equal(given.predict(X), kept.predict(X))


def refusal(X, y, *arguments, **parameters):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared
        TransferPredictor(*arguments, **parameters).fit(X, y)
    return str(caught.value)


def test_wrong_parameters_are_named(world):
    X, y = world.mixed(12)
    base_X, base_y = world.base_rows
    assert refusal(X, y, mode="magic") == (
        "mode must be one of auto, feature, residual, warm, multitask, got 'magic'"
    )
    assert refusal(X, y, folds=1) == "folds must be 2 or more, got 1"
    assert refusal(X, y, world.base, mode="multitask") == (
        "mode 'multitask' needs base_rows, the X and y that the base was fitted on"
    )
    assert refusal(X, y, world.base, base_rows=(base_X, base_y[:3])) == (
        "base_rows must be X (b, p) with p of 1..25 columns and y (b,), "
        "got shapes (150, 20) and (3,)"
    )
    assert refusal(X, y, world.base, base_rows=(base_X, np.full(150, np.nan))) == (
        "base_rows must be finite"
    )
    assert refusal(X, y, ColumnReader(40)) == "base reads column 40, but X has 25 columns"


def test_warm_without_a_perceptron_is_refused(world):
    pytest.importorskip("torch")
    assert refusal(*world.mixed(12), world.base, mode="warm") == (
        "mode 'warm' needs a fitted MLPPredictor as base, or base_rows to fit one on; "
        "got a RidgePredictor and no base_rows"
    )


class Silent:
    def predict(self, X):
        return np.full(len(X), np.nan)


def test_a_base_that_predicts_no_numbers_is_refused(world):
    X, y = world.mixed(12)
    assert refusal(X, y, Silent()) == (
        "base must predict 12 finite numbers, got shape (12,) with 0 finite"
    )


def test_targets_or_columns_that_are_no_numbers_are_refused(world):
    X, y = world.mixed(12)
    y[3] = np.nan
    assert refusal(X, y, world.base) == "Input y contains NaN."
    X[0, 0] = np.inf
    assert "Input X contains infinity" in refusal(X, np.ones(12), world.base)


@pytest.mark.parametrize("value", [0.5, 70.0])
def test_a_constant_target_is_predicted(world, value):
    X, _ = world.mixed(12)
    fitted = TransferPredictor(world.base).fit(X, np.full(12, value))
    assert fitted.predict(X) == pytest.approx(np.full(12, value), abs=0.01)


@parametrize_with_checks(
    [
        TransferPredictor(learner=FewRowsPredictor(n_estimators=2), folds=2),
        TransferPredictor(ColumnReader(), RidgePredictor(), folds=2),
    ]
)
def test_it_does_what_scikit_learn_asks_of_an_estimator(estimator, check):
    check(estimator)

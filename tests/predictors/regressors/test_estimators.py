import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import check_estimator

from predictors import (
    PREDICTORS,
    AutoPredictor,
    BayesianRidgePredictor,
    BlendPredictor,
    BoostedTreesPredictor,
    ExtraTreesPredictor,
    GaussianProcessPredictor,
    MLPPredictor,
    ParZCPredictor,
    RandomForestPredictor,
    RankAveragePredictor,
    RidgePredictor,
    TransferPredictor,
    kendall_tau,
    rmse,
)
from predictors.regressors import from_link, shift_off_fractions, to_link, uses_logit

SMALL = {
    "auto": AutoPredictor(folds=2, n_estimators=4),
    "ridge": RidgePredictor(),
    "extra_trees": ExtraTreesPredictor(n_estimators=10),
    "blend": BlendPredictor(n_estimators=10),
    "bayesian_ridge": BayesianRidgePredictor(),
    "gaussian_process": GaussianProcessPredictor(iterations=10),
    "random_forest": RandomForestPredictor(n_estimators=10),
    "rank_average": RankAveragePredictor(folds=2, n_estimators=4),
    "boosted_trees": BoostedTreesPredictor(n_estimators=10, learning_rate=0.3),
    "mlp": MLPPredictor(hidden=(8,), members=2, epochs=20, learning_rate=0.05),
    "parzc": ParZCPredictor(channels=4, units=8, members=2, epochs=20, learning_rate=0.05),
}


@pytest.fixture(params=SMALL)
def predictor(request):
    return clone(SMALL[request.param])


def test_every_predictor_of_the_table_is_tried_here():
    assert {name: type(each) for name, each in SMALL.items()} == PREDICTORS


def rows_of(count, *, seed=0, noise=0.1, columns=8):
    """Accuracies whose logit adds up over columns, with one interaction."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 3, (count, columns)).astype(np.float64)
    z = X @ np.linspace(0.1, 0.8, columns) - 3.0 + 0.5 * (X[:, -1] == X[:, -2])
    z += rng.normal(0.0, noise, count)
    return X, 1.0 / (1.0 + np.exp(-z))


@pytest.mark.parametrize(
    "estimator",
    [*SMALL.values(), TransferPredictor(learner=RidgePredictor())],
    ids=[*SMALL, "transfer"],
)
def test_scikit_learn_accepts_the_estimator(estimator):
    """All checks apply but one: array libraries other than NumPy need an environment variable."""
    results = check_estimator(estimator, on_skip=None)
    outcome = {each["check_name"]: each["status"] for each in results}
    assert len(outcome) > 30
    assert {name for name, status in outcome.items() if status != "passed"} <= {
        "check_array_api_input"
    }


@settings(max_examples=100, deadline=None)
@given(st.floats(0.005, 0.995))
def test_the_logit_link_goes_there_and_back(accuracy):
    y = np.array([accuracy])
    assert to_link(y, logit=True)[0] == pytest.approx(np.log(accuracy / (1 - accuracy)), abs=1e-9)
    assert from_link(to_link(y, logit=True), logit=True)[0] == pytest.approx(accuracy, rel=1e-12)
    assert from_link(to_link(y, logit=False), logit=False)[0] == accuracy


def test_the_link_keeps_off_0_and_1_and_bears_far_values():
    assert np.isfinite(to_link(np.array([0.0, 1.0]), logit=True)).all()
    ends = from_link(np.array([-1e4, -800.0, 0.0, 800.0]), logit=True)
    assert ends.tolist() == [0.0, pytest.approx(0.0), 0.5, 1.0]


@pytest.mark.parametrize(
    ("targets", "fractions"),
    [([0.1, 0.9], True), ([0.0, 1.0], True), ([0.5, 0.5], False), ([0.5, 1.01], False),
     ([-0.01, 0.5], False), ([12.0, 99.0], False)],
)  # fmt: skip
def test_targets_in_0_to_1_that_differ_are_fractions(targets, fractions):
    assert uses_logit(np.array(targets)) is fractions


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9))
def test_shifted_values_are_fractions_in_no_subset(values):
    z = np.array(values)
    shifted = z - shift_off_fractions(z)
    assert not any(uses_logit(shifted[: index + 1]) for index in range(len(z)))
    assert (shifted < 0).all()


def test_predictions_of_fractions_stay_fractions_however_far_the_row(predictor):
    X, y = rows_of(60)
    far = np.vstack([X[:1] + 1e6, X[:1] - 1e6])
    predicted = predictor.fit(X, y).predict(far)
    assert ((predicted >= 0) & (predicted <= 1)).all()


def test_targets_on_any_scale_are_predicted_on_that_scale(predictor):
    X, y = rows_of(80)
    predicted = predictor.fit(X, 3000.0 + 100.0 * y).predict(X)
    assert 2950.0 < predicted.min() < predicted.max() < 3150.0
    assert kendall_tau(y, predicted) > 0.6


def test_a_single_row_is_what_is_predicted(predictor):
    fitted = predictor.fit(np.ones((1, 3)), np.array([0.4]))
    predicted, deviation = fitted.predict(np.arange(6.0).reshape(2, 3), return_std=True)
    assert predicted == pytest.approx([0.4, 0.4])
    assert deviation == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("value", [0.7, 42.0])
def test_constant_targets_are_predicted(predictor, value):
    X, _ = rows_of(20)
    predicted, deviation = predictor.fit(X, np.full(20, value)).predict(X, return_std=True)
    assert predicted == pytest.approx(np.full(20, value), rel=1e-6)
    assert np.isfinite(deviation).all()


def test_the_same_rows_and_seed_give_the_same_bits(predictor):
    X, y = rows_of(60)
    unseen = rows_of(30, seed=1)[0]
    first, again = (clone(predictor).fit(X, y).predict(unseen, return_std=True) for _ in range(2))
    assert np.array_equal(first, again)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    clone(predictor).fit(X, y)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize(
    "name",
    [
        "auto", "extra_trees", "blend", "boosted_trees", "mlp", "parzc", "random_forest",
        "rank_average",
    ],
)  # fmt: skip
def test_another_seed_gives_another_fit(name):
    X, y = rows_of(60)
    first, other = (
        clone(SMALL[name]).set_params(random_state=seed).fit(X, y).predict(X) for seed in (0, 1)
    )
    assert not np.array_equal(first, other)


def test_a_column_that_never_changes_has_no_say(predictor):
    X, y = rows_of(60)
    with_constant = np.hstack([X, np.full((60, 1), 7.0)])
    fitted = predictor.fit(with_constant, y)
    moved = with_constant.copy()
    moved[:, -1] = -1e3
    assert np.array_equal(fitted.predict(moved), fitted.predict(with_constant))


def test_standard_deviations_tell_how_far_unseen_rows_are_off():
    X, y = rows_of(150, noise=0.3)
    unseen, truth = rows_of(600, seed=1, noise=0.3)
    for name, kind in PREDICTORS.items():
        mean, deviation = kind().fit(X, y).predict(unseen, return_std=True)
        assert mean.shape == deviation.shape == (600,)
        inside = np.mean(np.abs(truth - mean) <= 2.0 * deviation)
        assert 0.85 < inside <= 1.0, name
        assert 0.5 < np.mean(deviation) / rmse(truth, mean) < 2.0, name


def test_the_deviation_is_on_the_scale_of_the_targets():
    X, y = rows_of(80)
    fitted = RidgePredictor().fit(X, y)
    mean, deviation = fitted.predict(X, return_std=True)
    step = 1e-6
    slope = (from_link(to_link(mean, logit=True) + step, logit=True) - mean) / step
    np.testing.assert_allclose(deviation, fitted.deviation_ * slope, rtol=1e-4)
    scaled = RidgePredictor().fit(X, 500.0 * y)
    assert scaled.predict(X, return_std=True)[1] == pytest.approx(np.full(80, scaled.deviation_))


def test_ridge_takes_the_penalty_with_the_least_error_of_rows_left_out():
    X, y = rows_of(25, noise=0.8)
    fitted = RidgePredictor().fit(X, y)
    z = to_link(y, logit=True)
    columns = (X - X.mean(axis=0)) / X.std(axis=0)
    errors = {}
    for alpha in fitted.alphas:
        left_out = []
        for row in range(25):
            rest = np.arange(25) != row
            model = Ridge(alpha=alpha).fit(columns[rest], z[rest])
            left_out.append(z[row] - model.predict(columns[row : row + 1])[0])
        errors[alpha] = np.mean(np.square(left_out))
    best = min(errors, key=errors.get)
    assert fitted.ridge_.alpha_ == best
    assert fitted.deviation_ == pytest.approx(np.sqrt(errors[best]), rel=1e-6)
    expected = Ridge(alpha=best).fit(columns, z).predict(columns)
    np.testing.assert_allclose(fitted.predict(X), from_link(expected, logit=True), rtol=1e-9)


def test_ridge_takes_a_single_penalty():
    X, y = rows_of(20)
    assert RidgePredictor(alphas=(2.0,)).fit(X, y).ridge_.alpha_ == 2.0


def test_far_columns_do_not_rule_a_ridge():
    X, y = rows_of(60)
    fitted = RidgePredictor().fit(X, y)
    far = X[:1].copy()
    far[0, -1] += 1e9
    near = X[:1].copy()
    near[0, -1] = fitted.mean_[-1] + 5.0 * fitted.scale_[-1]
    assert fitted.predict(far) == pytest.approx(fitted.predict(near))


def test_trees_predict_the_mean_vote():
    X, y = rows_of(50)
    fitted = ExtraTreesPredictor(n_estimators=7).fit(X, y)
    z = fitted.trees_.predict(X)
    np.testing.assert_allclose(fitted.predict(X), from_link(z, logit=True), rtol=1e-6)
    votes = np.stack([tree.predict(X) for tree in fitted.trees_.estimators_])
    mean, deviation = fitted.predict(X, return_std=True)
    np.testing.assert_allclose(deviation, votes.std(axis=0) * mean * (1 - mean), rtol=1e-5)


def test_the_blend_is_the_mean_of_a_line_and_trees():
    X, y = rows_of(50)
    members = RidgePredictor().fit(X, y), ExtraTreesPredictor(n_estimators=7).fit(X, y)
    mean, deviation = BlendPredictor(n_estimators=7).fit(X, y).predict(X, return_std=True)
    links = [to_link(each.predict(X), logit=True) for each in members]
    np.testing.assert_allclose(to_link(mean, logit=True), np.mean(links, axis=0), rtol=1e-6)
    spreads = [each._predict_link(X)[1] for each in members]
    expected = np.sqrt(np.mean(np.square(spreads), axis=0) + np.var(links, axis=0))
    np.testing.assert_allclose(deviation, expected * mean * (1 - mean), rtol=1e-6)


def test_boosted_trees_estimate_their_error_on_whole_groups():
    """Every network four times: rows of a known network are no news."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 4)
    X, y = rng.normal(size=(25, 5))[groups], 50.0 + rng.normal(size=25)[groups]
    alone, together = (
        BoostedTreesPredictor(n_estimators=60).fit(X, y, groups=each).deviation_
        for each in (None, groups)
    )
    assert together > 2.0 * alone


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_feature_that_is_no_number_is_named(predictor, value, name):
    X, y = rows_of(20)
    broken = X.copy()
    broken[7, 2] = value
    text = f"X must be finite, got {name} in row 7, column 2"
    for call in (lambda: predictor.fit(broken, y), lambda: predictor.fit(X, y).predict(broken)):
        with pytest.raises(ValueError, match="finite") as caught:
            call()
        assert str(caught.value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(np.nan, "Input y contains NaN."),
     (np.inf, "Input y contains infinity or a value too large for dtype('float64').")],
)  # fmt: skip
def test_a_target_that_is_no_number_is_refused(predictor, value, text):
    X, y = rows_of(20)
    y[3] = value
    with pytest.raises(ValueError, match="Input y") as caught:
        predictor.fit(X, y)
    assert str(caught.value) == text


def test_other_columns_than_in_the_fit_are_counted(predictor):
    X, y = rows_of(20)
    with pytest.raises(ValueError, match="features") as caught:
        predictor.fit(X, y).predict(X[:, :5])
    name = type(predictor).__name__
    assert str(caught.value) == f"X has 5 features, but {name} is expecting 8 features as input."


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_rows_than_folds_give_a_number_between_the_targets_or_near(predictor, count):
    X, y = rows_of(count)
    predicted, deviation = predictor.fit(X, y).predict(rows_of(30, seed=1)[0], return_std=True)
    assert ((predicted >= 0) & (predicted <= 1)).all()
    assert np.isfinite(deviation).all()


def test_a_single_group_is_learned_without_inner_folds(predictor):
    X, y = rows_of(60)
    predicted = predictor.fit(X, y, groups=np.full(60, 3)).predict(X)
    assert kendall_tau(y, predicted) > 0.4


def test_repeated_rows_with_other_targets_are_averaged(predictor):
    """Eight networks, each measured nine times."""
    rng = np.random.default_rng(0)
    X = np.repeat(np.eye(8), 9, axis=0)
    y = 40.0 + np.repeat(np.arange(8.0), 9) + rng.normal(0.0, 0.2, 72)
    predicted = predictor.fit(X, y, groups=np.arange(72)).predict(np.eye(8))
    assert kendall_tau(np.arange(8.0), predicted) > 0.7
    assert np.abs(predicted - 40.0 - np.arange(8.0)).mean() < 1.5


def test_groups_must_fit_the_rows(predictor):
    X, y = rows_of(20)
    with pytest.raises(ValueError, match="groups") as caught:
        predictor.fit(X, y, groups=np.arange(19))
    assert str(caught.value) == "groups must have shape (20,), got (19,)"


def test_a_predictor_says_that_it_is_not_fitted(predictor):
    with pytest.raises(NotFittedError) as caught:
        predictor.predict(np.zeros((1, 8)))
    name = type(predictor).__name__
    assert str(caught.value) == (
        f"This {name} instance is not fitted yet. Call 'fit' with appropriate arguments before "
        "using this estimator."
    )

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from predictors import RidgePredictor, conformal_half_width, out_of_fold
from predictors.conformal import ConformalPredictor


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 120), st.integers(1, 99))
def test_it_is_the_residual_at_the_exact_place(count, percent):
    residuals = np.random.default_rng(count).permutation(np.arange(1.0, count + 1.0))
    residuals *= np.where(np.arange(count) % 2, -1.0, 1.0)
    place = math.ceil(Fraction(percent, 100) * (count + 1))
    expected = float(place) if place <= count else math.inf
    assert conformal_half_width(residuals, percent / 100) == expected


def test_rounding_does_not_move_the_place():
    assert 25 * 0.56 > 14.0
    assert conformal_half_width(np.arange(1.0, 25.0), 0.56) == 14.0


def test_the_ends_of_the_range():
    residuals = np.array([3.0, -1.0, 2.0])
    assert conformal_half_width(residuals, 0.0) == 1.0
    assert conformal_half_width(residuals, 1.0) == math.inf
    assert conformal_half_width(residuals[:0], 0.0) == math.inf


def test_missing_residuals_are_left_out():
    residuals = np.array([np.nan, 0.1, np.nan, -0.3, 0.2, 0.4])
    assert conformal_half_width(residuals, 0.8) == 0.4
    assert conformal_half_width(np.full(5, np.nan), 0.5) == math.inf


@pytest.mark.parametrize(("coverage", "shown"), [(90, "90"), (-0.1, "-0.1"), (np.nan, "nan")])
def test_a_coverage_out_of_range_is_refused(coverage, shown):
    with pytest.raises(ValueError, match="coverage") as caught:
        conformal_half_width(np.ones(3), coverage)
    assert str(caught.value) == f"coverage must lie in 0..1, got {shown}"


@pytest.mark.parametrize("count", [9, 19, 60])
@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "exponential"])
def test_intervals_cover_as_often_as_asked_whatever_the_distribution(count, draw):
    """The chance is ceil((m + 1) * coverage) / (m + 1) exactly."""
    rng = np.random.default_rng(count)
    rows = getattr(rng, draw)(size=(4000, count + 1))
    covered = [abs(row[0]) <= conformal_half_width(row[1:], 0.8) for row in rows]
    exact = math.ceil((count + 1) * 0.8) / (count + 1)
    assert np.mean(covered) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


def linear(rng, count):
    X = rng.normal(size=(count, 6))
    return X, X @ np.arange(1.0, 7.0) + rng.normal(size=count)


def test_intervals_of_a_predictor_cover_new_rows_over_many_data_sets():
    covered, widths = [], {60: [], 240: []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        unseen = linear(rng, 500)
        for count, found in widths.items():
            X, y = linear(rng, count)
            width = conformal_half_width(y - out_of_fold(RidgePredictor(), X, y), 0.9)
            errors = unseen[1] - RidgePredictor().fit(X, y).predict(unseen[0])
            covered.append(np.mean(np.abs(errors) <= width))
            found.append(width)
    assert 0.88 <= np.mean(covered) <= 0.93
    assert np.mean(widths[240]) < np.mean(widths[60])


def coverage_of(data, estimator, **parameters):
    """Share of unseen rows inside the intervals, mean over 20 seeds."""
    covered = []
    for seed in range(20):
        (X, y, groups), (unseen, truth) = data(np.random.default_rng(seed))
        fitted = ConformalPredictor(estimator, random_state=seed, **parameters).fit(X, y, groups)
        low, high = fitted.predict_interval(unseen)
        covered.append(np.mean((low <= truth) & (truth <= high)))
    return float(np.mean(covered))


def known_truth(rng):
    X, y = linear(rng, 400)
    return (X, y, None), linear(rng, 1000)


@pytest.mark.parametrize("method", ["split", "cv+"])
def test_nominal_90_percent_cover_88_to_92_of_known_truth(method):
    assert 0.88 <= coverage_of(known_truth, RidgePredictor(), method=method) <= 0.92


def uneven_noise(rng):
    X = rng.uniform(0.1, 3.0, (1600, 1))
    y = X[:, 0] * rng.standard_t(4, 1600)
    return (X[:600], y[:600], None), (X[600:], y[600:])


@pytest.mark.parametrize("method", ["split", "cv+"])
def test_normalised_intervals_cover_as_often(method):
    found = coverage_of(uneven_noise, KnownSpread(), method=method, normalise=True)
    assert 0.88 <= found <= 0.92


def grouped_truth(rng):
    """Rows of a group share most of their noise, and the last column tells the group."""
    groups = np.repeat(np.arange(80), 4)
    X, y = linear(rng, 320)
    unseen, truth = linear(rng, 500)
    X, unseen = np.column_stack([X, groups]), np.column_stack([unseen, np.arange(500) + 1000])
    noise, other = rng.normal(0.0, 3.0, 80)[groups], rng.normal(0.0, 3.0, 500)
    return (X, y + noise, groups), (unseen, truth + other)


@pytest.mark.parametrize("method", ["split", "cv+"])
def test_groups_calibrate_as_a_whole(method):
    """An estimator that has seen a row of a group knows the others: torn groups flatter it."""

    def torn(rng):
        (X, y, _), unseen = grouped_truth(rng)
        return (X, y, None), unseen

    assert 0.87 <= coverage_of(grouped_truth, Memory(), method=method) <= 0.94
    assert coverage_of(torn, Memory(), method=method) < 0.8


class Memory(LinearRegression):
    """A line, and what it leaves of a row with the same last column."""

    def fit(self, X, y):
        super().fit(X[:, :6], y)
        self.places_, self.left_ = X[:, -1], y - super().predict(X[:, :6])
        return self

    def predict(self, X):
        distance = np.abs(X[:, -1:] - self.places_)
        left = np.where(distance.min(axis=1) == 0, self.left_[distance.argmin(axis=1)], 0.0)
        return super().predict(X[:, :6]) + left


@pytest.mark.parametrize("method", ["split", "cv+"])
def test_nominal_90_percent_cover_88_to_92_of_measured_networks(method, public_data):
    table = np.genfromtxt(
        public_data / "ofa_mbv3_dynas" / "ofa_mbv3_w10_measured.csv.gz",
        delimiter=",", names=True, dtype=None, encoding="utf-8",
    )  # fmt: skip
    names = [name for name in table.dtype.names if table[name].dtype.kind in "if"]
    target = next(name for name in names if name.startswith("top1"))
    columns = [name for name in names if name[0] in "ked" and name[1:].isdigit()]
    X, y = np.column_stack([table[name] for name in columns]).astype(float), table[target]

    def measured(rng):
        order = rng.permutation(len(y))
        few, rest = order[:200], order[200:]
        return (X[few], y[few], None), (X[rest], y[rest])

    assert 0.88 <= coverage_of(measured, RidgePredictor(), method=method) <= 0.92


def test_split_intervals_are_the_half_width_of_the_rows_held_out():
    X, y = linear(np.random.default_rng(0), 50)
    fitted = ConformalPredictor(LinearRegression(), "split", coverage=0.8).fit(X, y)
    assert len(fitted.scores_) == 15
    low, high = fitted.predict_interval(X)
    half = conformal_half_width(fitted.scores_, 0.8)
    np.testing.assert_allclose(low, fitted.predict(X) - half)
    np.testing.assert_allclose(high, fitted.predict(X) + half)
    held = np.isin(np.abs(y - fitted.predict(X)).round(9), fitted.scores_.round(9))
    assert held.sum() == 15
    line = LinearRegression().fit(X[~held], y[~held])
    np.testing.assert_allclose(fitted.predict(X), line.predict(X))


def test_cv_plus_intervals_are_places_among_all_ends():
    """Barber et al. 2021, equation 3, in plain loops."""
    X, y = linear(np.random.default_rng(1), 30)
    fitted = ConformalPredictor(LinearRegression(), coverage=0.8, folds=5).fit(X, y)
    unseen, _ = linear(np.random.default_rng(2), 4)
    low, high = fitted.predict_interval(unseen)
    for row in range(4):
        lower, upper = [], []
        for index in range(30):
            model = fitted.fold_estimators_[fitted.folds_of_scores_[index]]
            mean = model.predict(unseen[row : row + 1])[0]
            error = abs(y[index] - model.predict(X[index : index + 1])[0])
            lower.append(mean - error)
            upper.append(mean + error)
        assert low[row] == pytest.approx(sorted(lower)[math.floor(0.2 * 31) - 1])
        assert high[row] == pytest.approx(sorted(upper)[math.ceil(0.8 * 31) - 1])


def test_normalised_intervals_follow_the_spread_of_the_estimator():
    rng = np.random.default_rng(0)
    X = rng.uniform(0.1, 3.0, (300, 1))
    y = X[:, 0] * rng.normal(size=300)
    fitted = ConformalPredictor(KnownSpread(), normalise=True).fit(X, y)
    low, high = fitted.predict_interval(np.array([[0.5], [2.0]]))
    widths = high - low
    assert widths[1] / widths[0] == pytest.approx(4.0)
    assert widths[0] == pytest.approx(2 * 1.645 * 0.5, rel=0.2)


class KnownSpread(LinearRegression):
    def fit(self, X, y):
        return self

    def predict(self, X, return_std=False):
        return (np.zeros(len(X)), X[:, 0]) if return_std else np.zeros(len(X))


@pytest.mark.parametrize("method", ["split", "cv+"])
def test_too_few_rows_give_infinite_intervals(method):
    X, y = linear(np.random.default_rng(0), 8)
    low, high = ConformalPredictor(LinearRegression(), method).fit(X, y).predict_interval(X)
    assert (low == -np.inf).all()
    assert (high == np.inf).all()


@pytest.mark.parametrize(
    ("parameters", "groups", "message"),
    [
        ({"method": "bayes"}, None, "method must be one of split, cv+, got 'bayes'"),
        (
            {"calibration_share": 1.0},
            None,
            "calibration_share must lie between 0 and 1, got 1.0",
        ),
        ({"coverage": 90}, None, "coverage must lie in 0..1, got 90"),
        (
            {"normalise": True},
            None,
            "normalise needs an estimator whose predict takes return_std, got LinearRegression",
        ),
        ({}, np.zeros(20, int), "conformal intervals need at least 2 groups, got 1"),
    ],
)
def test_wrong_parameters_are_named(parameters, groups, message):
    X, y = linear(np.random.default_rng(0), 20)
    with pytest.raises(ValueError, match=r".") as caught:
        ConformalPredictor(LinearRegression(), **parameters).fit(X, y, groups)
    assert str(caught.value) == message

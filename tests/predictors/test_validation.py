import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator

from predictors import RidgePredictor, out_of_fold
from predictors.validation import group_labels, split_by_group


class Spy(BaseEstimator):
    """Remembers what each clone was fitted on and predicts how many rows that were."""

    fits: list[tuple] = []  # noqa: RUF012 - shared by clones on purpose

    def fit(self, X, y, groups=None):
        self.fits.append((X[:, 0].astype(int).tolist(), np.asarray(groups).tolist()))
        self.count_ = len(X)
        return self

    def predict(self, X):
        self.fits[-1] += (X[:, 0].astype(int).tolist(),)
        return np.full(len(X), float(self.count_))


@pytest.fixture
def spy():
    Spy.fits.clear()
    return Spy()


def test_groups_are_numbered_from_0():
    assert group_labels(4, np.array([7, 3, 7, 9])).tolist() == [1, 0, 1, 2]
    assert group_labels(3, np.array(["b", "a", "b"])).tolist() == [1, 0, 1]
    assert group_labels(3, None).tolist() == [0, 1, 2]


def test_as_many_groups_as_rows_are_needed():
    with pytest.raises(ValueError, match="groups") as caught:
        group_labels(4, np.arange(3))
    assert str(caught.value) == "groups must have shape (4,), got (3,)"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=2, max_size=40).filter(lambda each: len(set(each)) > 1),
    st.integers(2, 7),
    st.integers(0, 3),
)
def test_no_group_is_in_train_and_test_and_every_row_is_tested_once(groups, folds, seed):
    labels = group_labels(len(groups), np.array(groups))
    tested = []
    splits = list(split_by_group(labels, folds=folds, seed=seed))
    assert len(splits) == min(folds, len(set(groups)))
    for train, test in splits:
        assert not set(labels[train]) & set(labels[test])
        assert sorted([*train, *test]) == list(range(len(groups)))
        tested += test.tolist()
    assert sorted(tested) == list(range(len(groups)))


def test_each_row_is_predicted_by_a_clone_that_never_saw_its_group(spy):
    rows = np.arange(20)
    groups = rows // 3 + 10
    predicted = out_of_fold(spy, rows[:, None].astype(float), rows * 1.0, groups, folds=4)
    assert not hasattr(spy, "count_")
    assert len(spy.fits) == 4
    for trained, labels, tested in spy.fits:
        assert not {groups[row] for row in trained} & {groups[row] for row in tested}
        assert labels == (groups[trained] - 10).tolist()
        assert (predicted[tested] == len(trained)).all()
    assert sorted(row for *_, tested in spy.fits for row in tested) == rows.tolist()


def test_without_groups_each_row_is_its_own(spy):
    X = np.arange(6.0)[:, None]
    predicted = out_of_fold(spy, X, X[:, 0], folds=100)
    assert predicted.tolist() == [5.0] * 6


def test_the_split_repeats_for_its_seed():
    rng = np.random.default_rng(0)
    X, y = rng.random((40, 3)), rng.random(40)
    first, again, other = (out_of_fold(RidgePredictor(), X, y, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_repeated_networks_leak_unless_they_share_a_group():
    """Targets are noise, each network was measured four times: only a leak can predict them."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 4)
    X, y = rng.normal(size=(40, 60))[groups], rng.normal(size=40)[groups]
    leaking, honest = (
        np.corrcoef(y, out_of_fold(RidgePredictor(alphas=(1e-3,)), X, y, each))[0, 1]
        for each in (None, groups)
    )
    assert leaking > 0.95
    assert abs(honest) < 0.5


@pytest.mark.parametrize(
    ("rows", "groups", "folds", "found"),
    [
        (5, np.zeros(5), 5, "1 groups and 5 folds"),
        (1, None, 5, "1 groups and 5 folds"),
        (0, None, 5, "0 groups and 5 folds"),
        (6, None, 1, "6 groups and 1 folds"),
    ],
)
def test_too_few_groups_or_folds_are_refused(rows, groups, folds, found):
    with pytest.raises(ValueError, match="out-of-fold") as caught:
        out_of_fold(RidgePredictor(), np.ones((rows, 2)), np.ones(rows), groups, folds=folds)
    assert str(caught.value) == (
        f"out-of-fold prediction needs at least 2 groups and 2 folds, got {found}"
    )

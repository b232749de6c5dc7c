import numpy as np
import pytest

from predictors.regressors.members import MEMBERS, by_rank, cross_fit, new_members

ROWS = np.random.default_rng(0).normal(size=(30, 4))
SCORES = ROWS @ np.array([1.0, 0.5, 0.0, 0.0])
SPLITS = [
    (np.flatnonzero(np.arange(30) % 3 != fold), np.flatnonzero(np.arange(30) % 3 == fold))
    for fold in range(3)
]


@pytest.fixture(params=MEMBERS)
def new(request):
    return new_members([request.param], trees=30, folds=3)[request.param]


def test_a_member_learns_and_repeats_with_its_seed(new):
    first, again = (new(4).fit(ROWS, SCORES).predict(ROWS) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.corrcoef(first, SCORES)[0, 1] > 0.9


def test_equal_scores_are_predicted(new):
    assert new(0).fit(ROWS, np.full(30, 0.7)).predict(ROWS) == pytest.approx(np.full(30, 0.7))


def test_rows_left_out_are_predicted_by_the_fit_without_them(new):
    found = cross_fit(new, ROWS, SCORES, SPLITS, seed=5)
    for index, (train, test) in enumerate(SPLITS):
        alone = new(5 + index).fit(ROWS[train], SCORES[train])
        np.testing.assert_array_equal(found.unseen[test], alone.predict(ROWS[test]))


def test_what_predicts_is_one_fit_to_all_rows_or_the_mean_of_the_folds(new):
    found = cross_fit(new, ROWS, SCORES, SPLITS, seed=5)
    if new(0).refitted:
        expected = new(8).fit(ROWS, SCORES).predict(ROWS)
    else:
        folds = [new(5 + i).fit(ROWS[t], SCORES[t]) for i, (t, _) in enumerate(SPLITS)]
        expected = np.mean([each.predict(ROWS) for each in folds], axis=0)
    np.testing.assert_allclose(found.predict(ROWS), expected, rtol=1e-5, atol=1e-6)


def test_without_folds_all_rows_are_fitted_once(new):
    found = cross_fit(new, ROWS, SCORES, [], seed=5)
    assert len(found.fitted) == 1
    assert np.isnan(found.unseen).all()


def test_trees_are_shared_out_over_the_folds():
    kinds = new_members(["trees", "boosted"], trees=31, folds=3)
    assert (kinds["trees"](0).trees, kinds["boosted"](0).rounds) == (11, 62)


def test_by_rank_predictions_are_normal_scores_of_places_out_of_fold():
    found = cross_fit(new_members(["linear"], trees=1, folds=3)["linear"], ROWS, SCORES, SPLITS,
                      seed=0)  # fmt: skip
    ranked = by_rank(found)
    assert np.array_equal(np.argsort(ranked.unseen), np.argsort(found.unseen))
    assert ranked.unseen.mean() == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(
        ranked.predict(ROWS), ranked.ranks.to_scores(found.predict(ROWS)), rtol=1e-12
    )

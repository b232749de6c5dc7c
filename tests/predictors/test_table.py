from sklearn.base import BaseEstimator, RegressorMixin

from predictors import PREDICTORS


def test_the_table_holds_regressors_that_need_no_parameters():
    assert set(PREDICTORS) >= {
        "auto",
        "ridge",
        "extra_trees",
        "blend",
        "boosted_trees",
        "bayesian_ridge",
        "gaussian_process",
        "random_forest",
        "rank_average",
        "mlp",
        "parzc",
    }
    for kind in PREDICTORS.values():
        assert isinstance(kind(), RegressorMixin)
        assert isinstance(kind(), BaseEstimator)


def test_all_but_lines_take_a_seed():
    seedless = [
        name for name, kind in PREDICTORS.items() if "random_state" not in kind().get_params()
    ]
    assert seedless == ["ridge", "bayesian_ridge"]

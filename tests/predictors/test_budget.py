import numpy as np
import pytest

from predictors import RidgePredictor, TransferPredictor
from predictors.budget import PilotRows, PilotScores, score_pilot, split_budget

AT_HAND = 100


def truth(fp32, mixed, worth):
    """Tau of a world in which fp32 samples are worth so many mixed ones for architecture."""
    shared = (4.0 / (mixed + worth * fp32 + 4.0)) ** 0.5
    return 0.95 - 0.6 * shared - 0.3 * (4.0 / (mixed + 4.0)) ** 0.5


def pilot_of(worth, noise=0.0, at_hand=AT_HAND):
    fp32, mixed = (each.ravel() for each in np.meshgrid([0.0, 30, 60, 100], [8.0, 15, 25, 35]))
    rng = np.random.default_rng(0)
    tau = truth(fp32, mixed, worth) + rng.normal(0.0, noise, len(fp32))
    return PilotScores(fp32, mixed, tau, at_hand, 50)


@pytest.mark.parametrize("cost_fp32", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("worth", [0.0, 0.35, 1.0])
def test_the_split_is_as_good_as_the_best_by_enumeration(cost_fp32, worth):
    found = split_budget(cost_fp32, 1.0, 100.0, pilot_of(worth))
    options = np.arange(0, int(100 / cost_fp32) + 1)
    taus = truth(AT_HAND + options, 50 + np.floor(100 - options * cost_fp32), worth)
    chosen = truth(AT_HAND + found.fp32, 50 + found.mixed, worth)
    assert chosen >= taus.max() - 0.005
    assert found.tau == pytest.approx(chosen, abs=0.01)
    assert found.fp32 * cost_fp32 + found.mixed <= 100.0
    assert found.fp32_worth == pytest.approx(worth)
    assert found.error < 1e-6


def test_fp32_samples_that_teach_nothing_are_not_bought():
    found = split_budget(0.01, 1.0, 100.0, pilot_of(0.0))
    assert (found.fp32, found.mixed) == (0, 100)
    assert found.tau == found.tau_mixed_only == pytest.approx(found.tau_scratch)


def test_transfer_pays_with_fp32_at_hand_and_loses_at_equal_cost():
    found = split_budget(1.0, 1.0, 50.0, pilot_of(0.35))
    assert found.fp32 == 0
    assert found.tau_mixed_only > found.tau_scratch + 0.01
    assert found.tau_scratch_at_equal_cost > found.tau
    assert found.tau_scratch == pytest.approx(truth(0, 100, 0.35), abs=0.01)
    assert found.tau_scratch_at_equal_cost == pytest.approx(truth(0, 200, 0.35), abs=0.01)


def test_cheap_fp32_samples_are_bought_and_dear_ones_are_not():
    bought = [split_budget(cost, 1.0, 100.0, pilot_of(0.5, 0.01)).fp32 for cost in (0.02, 0.1, 1)]
    assert bought[0] > bought[1] > bought[2] == 0


def test_free_fp32_samples_cost_no_mixed_ones():
    found = split_budget(0.0, 2.0, 100.0, pilot_of(0.5))
    assert found.mixed == 50
    assert found.fp32 > 0


def test_without_a_budget_nothing_is_measured():
    found = split_budget(0.5, 1.0, 0.0, pilot_of(0.5))
    assert (found.fp32, found.mixed) == (0, 0)
    assert found.tau == pytest.approx(truth(100, 50, 0.5), abs=0.01)


def test_the_sentence_says_what_is_measured_and_expected():
    found = split_budget(1.0, 1.0, 50.0, pilot_of(0.35))
    assert found.text == (
        f"measure 0 fp32 and 50 mixed samples: tau {found.tau:.3f} is expected, against "
        f"{found.tau_scratch:.3f} from as much spent on mixed samples alone without transfer, "
        f"and {found.tau_scratch_at_equal_cost:.3f} if the fp32 samples at hand had been mixed "
        f"ones of the same cost"
    )


def rows(fp32=80, mixed=60):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(fp32, 10)), rng.normal(size=(mixed, 14))
    weights = np.linspace(0.1, 1.0, 10)
    y = second[:, :10] @ weights - second[:, 10:].sum(axis=1) * 0.3 + rng.normal(0, 0.3, mixed)
    return PilotRows(first, first @ weights + rng.normal(0, 0.3, fp32), second, y)


def test_a_pilot_is_scored_with_and_without_its_fp32_rows():
    transfer = TransferPredictor(None, RidgePredictor())
    scores = score_pilot(rows(), RidgePredictor(), transfer, repeats=3)
    assert sorted(set(scores.fp32)) == [0, 24, 48, 80]
    assert sorted(set(scores.mixed)) == [9, 18, 30, 42]
    assert (scores.fp32_at_hand, scores.mixed_at_hand) == (80, 60)
    few = scores.mixed == 9
    with_base = scores.tau[few & (scores.fp32 == 80)].mean()
    assert with_base > scores.tau[few & (scores.fp32 == 0)].mean() + 0.1
    again = score_pilot(rows(), RidgePredictor(), transfer, repeats=3)
    assert np.array_equal(scores.tau, again.tau)
    assert split_budget(0.2, 1.0, 40.0, scores).tau > 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: split_budget(-1.0, 1.0, 5.0, pilot_of(0.5)),
            "cost_fp32 must be 0 or more and finite, got -1.0",
        ),
        (
            lambda: split_budget(1.0, 1.0, np.inf, pilot_of(0.5)),
            "budget must be 0 or more and finite, got inf",
        ),
        (
            lambda: split_budget(1.0, 0.0, 5.0, pilot_of(0.5)),
            "cost_mixed must be more than 0: free samples need no budget",
        ),
        (
            lambda: score_pilot(rows(80, 20), RidgePredictor()),
            "a pilot needs 10 fp32 rows and about 33 architectures of mixed rows, got 80 and 20",
        ),
        (
            lambda: score_pilot(
                PilotRows(np.zeros((20, 9)), np.zeros(20), np.zeros((40, 8)), np.zeros(40)),
                RidgePredictor(),
            ),
            "mixed rows must have the columns of fp32 rows first, got 8 columns against 9",
        ),
        (
            lambda: PilotScores(np.zeros(4), np.zeros(4), np.zeros(3), 1, 1),
            "pilot scores need fp32, mixed and tau of one shape (s,) with 4 scores or more, "
            "got shapes (4,), (4,) and (3,)",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert str(caught.value) == message

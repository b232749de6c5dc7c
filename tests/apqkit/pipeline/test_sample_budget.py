import copy
import json
from dataclasses import asdict, fields

import numpy as np
import pytest

from apqkit.pipeline.sample_budget import (
    BUDGET_FILE,
    advise_budget,
    seconds_a_sample,
    write_budget,
)
from apqkit.prediction import Rows
from predictors import BudgetSplit

SECONDS = {"fp32": 0.05, "mixed": 1.0}


def samples(fp32, mixed, *, noise=0.0):
    """Accuracies in which architecture, of 40 columns, says much and formats, of 4, say little."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(fp32, 40)), rng.normal(size=(mixed, 44))
    weights = rng.normal(size=40)
    of_formats = 0.5 * second[:, 40:].sum(axis=1)

    def rows(features, logit):
        shaken = logit / 8 + noise * rng.normal(size=len(logit))
        return Rows(features, 1 / (1 + np.exp(-shaken)), np.arange(len(logit)))

    return rows(first, first @ weights), rows(second, second[:, :40] @ weights + of_formats)


@pytest.fixture(scope="module")
def clear():
    """Advice on cheap fp32 samples that say nearly all."""
    return advise_budget(*samples(300, 40), SECONDS, seed=0)


def quiet(context, **asked):
    """A context that asks for other numbers of samples, with the lines that it says."""
    other, lines = copy.copy(context), []
    asked = context.config.samples.model_copy(update=asked)
    other.config = context.config.model_copy(update={"samples": asked})
    other.say = lines.append
    return other, lines


def test_the_budget_is_what_the_samples_at_hand_have_cost(clear):
    assert clear["samples"] == {"fp32": 300, "mixed": 40}
    assert clear["seconds_a_sample"] == SECONDS
    assert clear["budget_s"] == pytest.approx(300 * 0.05 + 40 * 1.0)
    split = clear["split"]
    assert split["fp32"] * 0.05 + split["mixed"] * 1.0 <= clear["budget_s"] + 1e-9


def test_both_accountings_of_transfer_are_there(clear):
    split = clear["split"]
    assert set(split) == {each.name for each in fields(BudgetSplit)}
    assert split["tau_mixed_only"] > split["tau_scratch"] + 0.05
    assert split["tau_scratch_at_equal_cost"] > split["tau_scratch"]
    assert split["tau"] >= split["tau_mixed_only"]


def test_differences_beyond_the_error_of_the_fit_are_told(clear):
    split = clear["split"]
    assert clear["can_tell"]
    assert split["tau"] - split["tau_scratch"] > split["error"]
    assert clear["text"] == (
        f"measure {split['fp32']} fp32 and {split['mixed']} mixed samples: tau "
        f"{split['tau']:.3f} is expected, against {split['tau_scratch']:.3f} from as much spent "
        f"on mixed samples alone without transfer, and {split['tau_scratch_at_equal_cost']:.3f} "
        f"if the fp32 samples at hand had been mixed ones of the same cost; differences under "
        f"{split['error']:.3f}, the error of the fitted curve, tell nothing"
    )


def test_differences_within_the_error_of_the_fit_are_not():
    found = advise_budget(*samples(60, 40, noise=5.0), SECONDS, seed=0)
    split = found["split"]
    taus = [value for name, value in split.items() if name.startswith("tau")]
    assert not found["can_tell"]
    assert max(taus) - min(taus) <= split["error"]
    assert found["text"] == (
        f"60 fp32 and 40 mixed samples are too few to tell what to measure: the options differ "
        f"by {max(taus) - min(taus):.3f} at most in expected tau, and the fitted curve errs by "
        f"{split['error']:.3f}"
    )


def test_a_pilot_that_is_too_small_to_fit_says_so():
    found = advise_budget(*samples(24, 24), SECONDS, seed=0)
    assert found["split"] is None
    assert not found["can_tell"]
    assert found["budget_s"] == pytest.approx(24 * 0.05 + 24)
    assert found["text"] == (
        "too few samples to tell what to measure: a pilot needs 10 fp32 rows and about 33 "
        "architectures of mixed rows, got 24 and 24"
    )


def test_accuracies_that_never_differ_are_no_obstacle():
    flat = [Rows(each.features, np.full(40, 0.5), each.groups) for each in samples(40, 40)]
    found = advise_budget(*flat, SECONDS, seed=0)
    assert not found["can_tell"]
    assert found["split"]["tau"] == pytest.approx(0.0, abs=1e-9)


def test_the_same_samples_and_times_give_the_same_advice(clear):
    assert advise_budget(*samples(300, 40), SECONDS, seed=0) == clear


def test_times_that_round_to_nothing_are_taken_as_the_shortest():
    found = advise_budget(*samples(60, 40), {"fp32": 0.0, "mixed": 0.0}, seed=0)
    assert found["seconds_a_sample"] == {"fp32": 1e-4, "mixed": 1e-4}
    assert found["split"]["mixed"] <= 100


def test_seconds_a_sample_are_the_median_of_the_file(context):
    for kind, found in seconds_a_sample(context).items():
        lines = (context.run.path / "samples" / f"{kind}.jsonl").read_text().splitlines()
        assert found == pytest.approx(np.median([json.loads(line)["seconds"] for line in lines]))


def test_a_run_writes_and_says_its_advice(context, tmp_path):
    other, lines = quiet(context)
    write_budget(other, tmp_path)
    written = json.loads((tmp_path / BUDGET_FILE).read_text())
    assert written == json.loads((context.run.path / "predictor" / BUDGET_FILE).read_text())
    assert written["samples"] == {"fp32": 24, "mixed": 24}
    assert written["text"].startswith("too few samples to tell what to measure: ")
    assert lines == [f"a further {written['budget_s']:.3g} s of samples: {written['text']}"]
    assert lines[0] in (context.run.path / "log.txt").read_text()


def test_a_run_without_samples_has_no_advice(context, tmp_path):
    other, lines = quiet(context, fp32=0, mixed=0)
    write_budget(other, tmp_path)
    assert json.loads((tmp_path / BUDGET_FILE).read_text()) is None
    assert lines == []


def test_advice_is_plain_json(clear):
    assert json.loads(json.dumps(clear)) == clear
    assert asdict(BudgetSplit(**clear["split"])) == clear["split"]

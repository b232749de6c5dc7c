import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from predictors.zerocost.assembly import assemble, undefined_choices
from predictors.zerocost.errors import ProxyError

SCORES = np.arange(6.0).reshape(2, 3)


def plain(scores, format_index, active) -> list[float]:
    totals = []
    for candidate in range(len(format_index)):
        total = 0.0
        for layer in range(len(scores)):
            if active[candidate][layer]:
                total += scores[layer][format_index[candidate][layer]]
        totals.append(total)
    return totals


@st.composite
def problems(draw):
    layers, formats, candidates = (draw(st.integers(*each)) for each in ((1, 6), (1, 4), (0, 9)))
    numbers = st.floats(-1e3, 1e3) | st.just(math.nan)
    scores = draw(hnp.arrays(np.float64, (layers, formats), elements=numbers))
    shape = (candidates, layers)
    kind = draw(st.sampled_from([np.int64, np.int8, np.uint64]))
    index = draw(hnp.arrays(kind, shape, elements=st.integers(0, formats - 1)))
    return scores, index, draw(hnp.arrays(np.bool_, shape))


@given(problems())
@settings(deadline=None, max_examples=200)
def test_equals_two_loops(problem) -> None:
    scores, index, active = problem
    assert assemble(scores, index, active) == pytest.approx(
        plain(scores, index, active), nan_ok=True
    )
    everything = np.ones_like(active)
    assert assemble(scores, index) == pytest.approx(plain(scores, index, everything), nan_ok=True)


def test_equals_two_loops_over_many_chunks() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 3))
    index = rng.integers(0, 3, (10_001, 5))
    active = rng.random((10_001, 5)) < 0.7
    assert assemble(scores, index, active) == pytest.approx(plain(scores, index, active))


def test_a_choice_without_a_score_spoils_only_who_uses_it() -> None:
    scores = np.array([[1.0, math.nan], [10.0, 20.0]])
    index = np.array([[0, 0], [1, 0], [1, 1]])
    active = np.array([[True, True], [True, True], [False, True]])
    assert assemble(scores, index, active) == pytest.approx([11.0, math.nan, 20.0], nan_ok=True)


def test_opposite_infinities_have_no_sum() -> None:
    scores = np.array([[math.inf], [-math.inf]])
    assert math.isnan(assemble(scores, np.zeros((1, 2), dtype=int))[0])


def test_changes_nothing_that_it_is_given() -> None:
    scores, index, active = SCORES.copy(), np.array([[2, 1]]), np.array([[True, False]])
    assert assemble(scores, index, active).tolist() == [2.0]
    assert (scores == SCORES).all()
    assert index.tolist() == [[2, 1]]
    assert active.tolist() == [[True, False]]


def test_names_choices_without_a_score() -> None:
    scores = np.array([[1.0, math.nan], [math.inf, 2.0]])
    assert undefined_choices(scores, ["stem", "head"], ["int8", "int4"]) == [
        "stem in int4",
        "head in int8",
    ]


@pytest.mark.parametrize(
    ("limit", "share", "bits"),
    [
        ("size", 0.25, "8888888888888844444"),
        ("size", 0.5, "8888888888888884844"),
        ("size", 0.75, "8888888888888488884"),
        ("bops", 0.25, "8884848444444444444"),
        ("bops", 0.5, "8884888848884444444"),
        ("bops", 0.75, "8888888848888484884"),
        ("latency", 0.25, "8884848444444444444"),
        ("latency", 0.5, "8888848848884484844"),
        ("latency", 0.75, "8888888848888484884"),
    ],
)
def test_the_best_of_all_settings_of_resnet18_is_the_published_one(
    public_data, limit, share, bits
) -> None:
    """HAWQ-V3's mean traces and squared errors, its limits and its nine solutions."""
    path = public_data / "hawq_v3" / "resnet18_layers.csv.gz"
    if not path.exists():
        pytest.skip(f"needs {path.name}, from ILP.ipynb of github.com/Zhen-Dong/HAWQ")
    frame = pd.read_csv(path)
    errors = frame[["delta_weights_4bit_square", "delta_weights_8bit_square"]].to_numpy()
    costs = {
        "size": np.outer(frame["params"], [1, 2]),
        "bops": np.outer(frame["macs_M"], [16, 64]),
        "latency": frame[["latency_int4_ms_T4", "latency_int8_ms_T4"]].to_numpy(),
    }
    settings = tied_settings([(4, 6), (9, 11), (14, 16)], 19)
    losses = assemble(frame["Hutchinson_trace"].to_numpy()[:, None] * errors, settings)
    used = assemble(costs[limit], settings)
    affordable = used <= (1 - share) * used[0] + share * used[-1]
    best = settings[np.where(affordable, losses, np.inf).argmin()]
    assert "".join("48"[each] for each in best) == bits


def tied_settings(ties, layers) -> np.ndarray:
    free = [each for each in range(layers) if each not in {second for _, second in ties}]
    index = np.zeros((2 ** len(free), layers), dtype=np.int64)
    index[:, free] = list(itertools.product((0, 1), repeat=len(free)))
    for first, second in ties:
        index[:, second] = index[:, first]
    return index


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.zeros(3), np.zeros((1, 3), dtype=int)),
            "layer_scores must have shape (layers, formats), got (3,)",
        ),
        (
            (SCORES, np.zeros((4, 3), dtype=int)),
            "format_index must have shape (candidates, 2), got (4, 3)",
        ),
        (
            (SCORES, np.zeros(2, dtype=int)),
            "format_index must have shape (candidates, 2), got (2,)",
        ),
        ((SCORES, np.zeros((4, 2))), "format_index must hold integers, got float64"),
        ((SCORES, np.array([[0, 0], [0, 3]])), "format_index[1, 1] must be in 0..2, got 3"),
        ((SCORES, np.array([[0, -1]])), "format_index[0, 1] must be in 0..2, got -1"),
        (
            (SCORES, np.zeros((4, 2), dtype=int), np.ones((4, 1), dtype=bool)),
            "active must be bool of shape (4, 2), got bool of shape (4, 1)",
        ),
        (
            (SCORES, np.zeros((4, 2), dtype=int), np.ones((4, 2))),
            "active must be bool of shape (4, 2), got float64 of shape (4, 2)",
        ),
    ],
)
def test_says_what_does_not_fit(arguments, message) -> None:
    assert error_of(lambda: assemble(*arguments)) == message


def test_says_that_names_do_not_fit() -> None:
    assert error_of(lambda: undefined_choices(SCORES, ["a"], ["int8"])) == (
        "layer_scores must have shape (1, 1) (layers, formats), got (2, 3)"
    )

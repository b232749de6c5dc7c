from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors import CandidateEncoder, kendall_tau, log_columns, signed_log
from predictors.regressors import RidgePredictor

NOISE = {"int2": 0.1, "int4": 0.01, "int8": 0.0001, "fp4_e2m1": 0.02}
FORMATS = ("int2", "int4", "int8")


@dataclass(frozen=True)
class Dim:
    name: str
    choices: tuple[int | str, ...]
    role: str


def dims_with(formats=FORMATS, blocks=3):
    return (
        Dim("depth.s0", tuple(range(1, blocks + 1)), "arch"),
        Dim("op.s0", ("relu", "none"), "arch"),
        *(Dim(f"width.s0.b{block}", (2, 4, 8), "prune") for block in range(blocks)),
        *(
            Dim(f"w_format.s{block % 2}.b{block}.{place}", formats, "quant")
            for block in range(blocks)
            for place in ("expand", "project")
        ),
    )


def encoder_of(dims):
    noise = {
        dim.name: np.array([NOISE[each] for each in dim.choices])
        for dim in dims
        if dim.role == "quant"
    }
    return CandidateEncoder(dims, noise)


def active_of(dims, picks):
    """Blocks behind the depth are not used; nor is anything that belongs to them."""
    blocks = [int(d.name.split(".b")[1][0]) if ".b" in d.name else 0 for d in dims]
    return np.array(blocks)[None] <= picks[:, :1]


def drawn(dims, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, len(dim.choices), count) for dim in dims], axis=1)


def encoded(picks, dims=None, active=None):
    dims = dims_with() if dims is None else dims
    active = active_of(dims, picks) if active is None else active
    encoder = encoder_of(dims)
    return np.hstack([encoder.architecture(picks, active), encoder.precision(picks, active)])


def test_architecture_columns_by_hand():
    picks = np.array([[1, 1, 2, 0, 1, *[0] * 6], [0, 0, 1, 2, 2, *[2] * 6]])
    columns = encoder_of(dims_with()).architecture(picks, active_of(dims_with(), picks))
    assert columns.tolist() == [
        [0, 1, 0, 2 / 3, 0, 1, 0, 0, 1, 1.0, 1, 0, 0, 0.25, 0, 0, 0, 0.0],
        [1, 0, 0, 1 / 3, 1, 0, 0, 1, 0, 0.5, 0, 0, 0, 0.0, 0, 0, 0, 0.0],
    ]


def test_precision_columns_by_hand():
    dims = (
        Dim("w_format.s0.b0", ("int2", "int4"), "quant"),
        Dim("w_format.s0.b1", ("int2", "int4"), "quant"),
        Dim("w_format.head", ("int8",), "quant"),
    )
    columns = encoder_of(dims).precision(np.array([[0, 1, 0]]), np.array([[True, True, True]]))
    a, b, c = 0.1, 0.01, 0.0001
    logs = [np.log(each / 1e-4) for each in (a, b, c)]
    expected = [
        *(a, b, c),
        *(a + b + c, a * a + b * b + c * c, a, sum(logs)),  # all weights
        *(a + b, a * a + b * b, a, logs[0] + logs[1]),  # stage 0
    ]
    np.testing.assert_allclose(columns, [expected], rtol=1e-12)


def test_slots_are_summed_by_kind_by_stage_and_by_place():
    dims = dims_with(blocks=4)
    picks = np.full((1, len(dims)), 0)
    everything = np.ones((1, len(dims)), dtype=bool)
    width = encoder_of(dims).precision(picks, everything).shape[1]
    slots, groups = 8, 1 + 2 + 2  # of kind w_format: all; s0, s1; expand, project
    assert width == slots + 4 * groups


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_inactive_dims_leave_no_trace(seed):
    dims = dims_with()
    picks, other = drawn(dims, 8, seed), drawn(dims, 8, seed + 1)
    active = active_of(dims, picks)
    same_networks = np.where(active, picks, other)
    assert np.array_equal(encoded(picks), encoded(same_networks))
    canonical = np.where(active, picks, 0)
    assert np.array_equal(encoded(picks), encoded(canonical))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_every_active_dim_changes_the_row(seed):
    dims = dims_with()
    picks = drawn(dims, 1, seed)
    active = active_of(dims, picks)
    for column, dim in enumerate(dims):
        moved = np.repeat(picks, len(dim.choices), axis=0)
        moved[:, column] = np.arange(len(dim.choices))
        rows = encoded(moved, active=np.repeat(active, len(moved), axis=0))
        distinct = len(np.unique(rows, axis=0))
        assert distinct == (len(dim.choices) if active[0, column] else 1)


def test_candidates_are_encoded_one_by_one():
    picks = drawn(dims_with(), 20)
    together = encoded(picks)
    for index in (0, 7, 19):
        assert np.array_equal(encoded(picks[index : index + 1])[0], together[index])
    assert encoded(picks[:0]).shape == (0, together.shape[1])


def test_the_architecture_knows_nothing_of_formats_and_precision_nothing_else():
    dims = dims_with()
    encoder = encoder_of(dims)
    picks, other = drawn(dims, 10), drawn(dims, 10, seed=1)
    quant = np.array([dim.role == "quant" for dim in dims])
    active = active_of(dims, picks)
    mixed = np.where(quant, other, picks)
    assert np.array_equal(encoder.architecture(picks, active), encoder.architecture(mixed, active))
    assert np.array_equal(encoder.precision(other, active), encoder.precision(mixed, active))


def test_a_format_that_no_row_shows_has_columns_from_its_noise_alone():
    """Another format in the choices moves no column and no value of candidates without it."""
    dims, wider = dims_with(), dims_with((*FORMATS, "fp4_e2m1"))
    picks = drawn(dims, 10)
    assert np.array_equal(encoded(picks), encoded(picks, wider))
    unseen = picks.copy()
    unseen[:, -1] = 3
    slots = encoder_of(wider).precision(unseen, np.ones(unseen.shape, dtype=bool))
    assert (slots[:, 5] == NOISE["fp4_e2m1"]).all()


def test_a_predictor_ranks_a_format_that_it_never_saw():
    dims = dims_with((*FORMATS, "fp4_e2m1"), blocks=3)
    encoder = encoder_of(dims)
    quant = np.array([dim.role == "quant" for dim in dims])
    train = np.where(quant, drawn(dims, 80) % 3, 2)
    test = np.where(quant, drawn(dims, 60, seed=1), 2)
    test[:, -1] = 3

    def accuracy(picks):
        values = np.array(list(NOISE.values()))[picks[:, quant]]
        return np.exp(-3.0 * values @ np.arange(1.0, quant.sum() + 1.0))

    def columns(picks):
        return encoder.precision(picks, np.ones(picks.shape, dtype=bool))

    fitted = RidgePredictor().fit(columns(train), accuracy(train))
    assert kendall_tau(accuracy(test), fitted.predict(columns(test))) > 0.8


def test_dims_of_one_kind_alone_make_no_columns_of_the_other():
    dims = dims_with()
    arch = tuple(dim for dim in dims if dim.role != "quant")
    quant = tuple(dim for dim in dims if dim.role == "quant")
    picks = np.zeros((4, 20), dtype=np.int64)
    active = np.ones((4, 20), dtype=bool)
    assert encoder_of(arch).precision(picks, active).shape == (4, 0)
    assert encoder_of(quant).architecture(picks, active).shape == (4, 0)


def test_names_without_a_place_and_choices_of_zero_are_borne():
    dims = (
        Dim("bits", FORMATS, "quant"),
        Dim("bits2", FORMATS, "quant"),
        Dim("skip", (0,), "arch"),
    )
    picks, active = np.zeros((2, 3), dtype=np.int64), np.ones((2, 3), dtype=bool)
    assert np.isfinite(encoded(picks, dims, active)).all()


def test_costs_become_logarithms_in_their_order():
    columns = log_columns({"macs": np.array([1.0, np.e]), "params": np.array([np.e**2, 0.0])})
    np.testing.assert_allclose(columns, [[0.0, 2.0], [1.0, np.log(1e-12)]])


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_the_signed_logarithm_keeps_sign_and_order(a, b):
    low, high = signed_log(np.sort(np.array([a, b])))
    assert low <= high
    assert signed_log(np.array([-a]))[0] == -signed_log(np.array([a]))[0]


def test_the_signed_logarithm_by_hand():
    found = signed_log(np.array([0.0, np.e - 1.0, 1.0 - np.e**3, np.nan]))
    assert found[:3] == pytest.approx([0.0, 1.0, -3.0])
    assert np.isnan(found[3])

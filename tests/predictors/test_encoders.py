from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors import CandidateEncoder, kendall_tau, log_columns, signed_log
from predictors.encoders import (
    LayerSequence,
    check_picks,
    layer_costs,
    layer_sequence,
    noise_columns,
    one_hot,
    ordinal,
    proxy_columns,
    rank_scaled,
    slot_aggregates,
)
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
    train = np.where(quant, drawn(dims, 80) % 3, 1)
    test = np.where(quant, drawn(dims, 60, seed=1), 1)
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
    for kept, columns in ((arch, "precision"), (quant, "architecture")):
        picks = np.zeros((4, len(kept)), dtype=np.int64)
        found = getattr(encoder_of(kept), columns)(picks, np.ones(picks.shape, dtype=bool))
        assert found.shape == (4, 0)


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


SMALL = (
    Dim("op.s0", ("conv", "skip", "pool"), "arch"),
    Dim("width.s0", (4, 8, 16), "arch"),
    Dim("w_format.s0", FORMATS, "quant"),
    Dim("w_format.s1", FORMATS, "quant"),
)
PICKS = np.array([[1, 2, 0, 2], [0, 0, 1, 1]])
ACTIVE = np.array([[True, True, True, False], [True, False, True, True]])
SLOT_NOISE = {name: np.array([0.1, 0.01, 0.0001]) for name in ("w_format.s0", "w_format.s1")}


def test_one_hot_by_hand():
    expected = [
        [0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0],
    ]
    assert np.array_equal(one_hot(SMALL, PICKS, ACTIVE), expected)


def test_ordinal_columns_are_shares_of_the_largest_choice():
    expected = [[2 / 3, 1.0, 1 / 3, 0.0], [1 / 3, 0.0, 2 / 3, 2 / 3]]
    np.testing.assert_allclose(ordinal(SMALL, PICKS, ACTIVE), expected)


def test_noise_columns_are_looked_up():
    expected = [[0.1, 0.0], [0.01, 0.01]]
    np.testing.assert_allclose(noise_columns(SMALL, SLOT_NOISE, PICKS, ACTIVE), expected)


def test_encodings_of_no_dims_have_no_columns():
    nothing = np.zeros((3, 0), dtype=np.int64)
    for encode in (one_hot, ordinal):
        assert encode((), nothing, nothing.astype(bool)).shape == (3, 0)
    assert slot_aggregates((), np.zeros((3, 0)), np.zeros((3, 0), dtype=bool)).shape == (3, 0)


def test_costs_of_layers_by_hand():
    found = layer_costs(
        params=np.array([[10.0, 20.0, 99.0]]),
        macs=np.array([[100.0, 50.0, 99.0]]),
        weight_bits=np.array([[4.0, 8.0, 2.0]]),
        activation_bits=np.array([[3.0, 8.0, 2.0]]),
        active=np.array([[True, True, False]]),
    )
    assert {name: each.tolist() for name, each in found.items()} == {
        "params": [30.0],
        "macs": [150.0],
        "bops": [100.0 * 12 + 50.0 * 64],
        "size_bits": [40.0 + 160.0],
        "low_bit_layers": [1.0],
    }


def test_ranks_among_reference_rows_by_counting():
    rng = np.random.default_rng(0)
    values, reference = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 25).astype(float)
    expected = [
        np.mean([(each < value) + 0.5 * (each == value) for each in reference]) for value in values
    ]
    np.testing.assert_allclose(rank_scaled(values, reference), expected)


def test_proxies_become_logs_and_ranks():
    scores, reference = np.array([[0.0, 1e9], [-3.0, 5.0]]), np.array([[-5.0, 5.0], [1.0, 9.0]])
    found = proxy_columns(scores, reference)
    np.testing.assert_allclose(found[:, :2], signed_log(scores))
    np.testing.assert_allclose(found[:, 2:], [[0.5, 1.0], [0.5, 0.25]])


def test_sequences_show_each_layer_and_a_mask():
    sequence = layer_sequence(SMALL, SLOT_NOISE, PICKS, ACTIVE)
    assert sequence.layers == ("s0", "s1")
    assert sequence.kinds == ("op", "width", "w_format")
    expected = [
        [[2 / 3, 1.0, 0.1], [0.0, 0.0, 0.0]],
        [[1 / 3, 0.0, 0.01], [0.0, 0.0, 0.01]],
    ]
    np.testing.assert_allclose(sequence.features, expected)
    assert sequence.mask.tolist() == [[True, False], [True, True]]
    rows = sequence.rows()
    assert rows.shape == (2, 2 * 3 + 2)
    np.testing.assert_allclose(rows[0], [2 / 3, 1.0, 0.1, 0.0, 0.0, 0.0, 1.0, 0.0])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_all_encodings_forget_what_is_inactive_and_show_what_is_not(seed):
    dims = dims_with()
    encoder = encoder_of(dims)
    picks, other = drawn(dims, 6, seed), drawn(dims, 6, seed + 1)
    active = active_of(dims, picks)
    for encode in (
        lambda each: one_hot(dims, each, active),
        lambda each: ordinal(dims, each, active),
        lambda each: layer_sequence(dims, encoder.noise, each, active).rows(),
    ):
        assert np.array_equal(encode(picks), encode(np.where(active, picks, other)))
        changed = ((picks != other) & active).any(axis=1)
        assert np.array_equal((encode(picks) != encode(other)).any(axis=1), changed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: check_picks(SMALL, PICKS[:, :3], ACTIVE),
            "picks and active must both have shape (n, 4), got (2, 3) and (2, 4)",
        ),
        (
            lambda: one_hot(SMALL, PICKS + (PICKS == 2) * ACTIVE[::-1], ACTIVE),
            "picks[0] has 3 for dim 'w_format.s1', which has choices 0..2",
        ),
        (
            lambda: noise_columns(SMALL, {"w_format.s0": np.ones(3)}, PICKS, ACTIVE),
            "noise of dim 'w_format.s1' must be 3 finite numbers, one a choice, got none",
        ),
        (
            lambda: noise_columns(SMALL, SLOT_NOISE | {"w_format.s0": [1, 2]}, PICKS, ACTIVE),
            "noise of dim 'w_format.s0' must be 3 finite numbers, one a choice, got [1.0, 2.0]",
        ),
        (
            lambda: layer_costs(*[np.zeros((2, 3))] * 4, np.zeros((2, 2))),
            "costs of layers need arrays of one shape (n, L), "
            "got (2, 3), (2, 3), (2, 3), (2, 3), (2, 2)",
        ),
        (
            lambda: rank_scaled(np.ones(2), np.ones(0)),
            "rank_scaled needs at least 1 reference value, got 0",
        ),
        (
            lambda: proxy_columns(np.ones((2, 3)), np.ones((2, 2))),
            "scores and reference must have shapes (n, q) and (r, q), got (2, 3) and (2, 2)",
        ),
        (
            lambda: proxy_columns(np.full((2, 1), np.nan), np.ones((2, 1))),
            "proxy scores must be finite",
        ),
        (
            lambda: LayerSequence(np.zeros((1, 2, 3)), np.ones((1, 2), bool), ("a",), ("b",)),
            "a sequence of 1 layers and 1 kinds needs features (1, 1, 1) and mask (1, 1), "
            "got (1, 2, 3) and (1, 2)",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert str(caught.value) == message

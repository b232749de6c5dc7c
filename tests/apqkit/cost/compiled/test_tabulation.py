import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost.compiled import tabulation
from apqkit.cost.compiled.factors import dims_of, entries, entry_of
from apqkit.cost.compiled.tabulation import tabulate
from apqkit.errors import CostError
from apqkit.types import Dim, SilentProgress


def dims_with(*choices):
    return [Dim(f"d{index}", tuple(range(count)), "arch") for index, count in enumerate(choices)]


def tabulated(price, dims, seed=0):
    """Tables of rows whose only term is price(picks), (n, L)."""
    rows = price(np.zeros((1, len(dims)), dtype=int)).shape[1]
    return tabulate(
        lambda picks: price(picks)[:, :, None] * 1.0,
        dims,
        [f"row{index}" for index in range(rows)],
        rng=np.random.default_rng(seed),
        progress=SilentProgress(),
    )


def looked_up(tables, picks):
    rows = [row.values[entry_of(row.factors, picks.T), 0] for row in tables.rows]
    return np.stack(rows, axis=1)


def random_picks(dims, count, seed=1):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, len(dim.choices), count) for dim in dims], axis=1)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_function_of_few_dims_is_found_exactly(data):
    """Random tables over random dims; choices that do the same, and NaN, occur by chance."""
    dims = dims_with(*data.draw(st.lists(st.integers(2, 5), min_size=3, max_size=12)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows = []
    for _ in range(3):
        some = rng.permutation(len(dims))[: rng.integers(0, 4)]
        shape = [len(dims[dim].choices) for dim in some]
        rows.append((some, rng.choice([0.0, 0.0, 1.0, 2.5, np.nan], shape)))

    def price(picks):
        return np.stack([values[tuple(picks[:, some].T)] * np.ones(len(picks))
                         for some, values in rows], axis=1)  # fmt: skip

    tables = tabulated(price, dims)
    picks = random_picks(dims, 3000)
    np.testing.assert_array_equal(looked_up(tables, picks), price(picks))
    for row, (some, _) in zip(tables.rows, rows, strict=True):
        assert {dim for each in row.factors for dim in dims_of(each)} <= set(some.tolist())


def test_choices_that_do_the_same_share_an_entry():
    dims = dims_with(6, 4, 3)
    tables = tabulated(lambda picks: (picks[:, :1] // 3) * 10 + picks[:, 1:2] % 2, dims)
    assert entries(tables.rows[0].factors) == len(tables.rows[0].values) == 4


def test_a_constant_row_has_one_entry():
    tables = tabulated(lambda picks: np.full((len(picks), 2), [3.0, np.nan]), dims_with(2, 2))
    for row, value in zip(tables.rows, (3.0, np.nan), strict=True):
        assert row.factors == ()
        np.testing.assert_array_equal(row.values, [[value]])


@pytest.mark.parametrize("seed", range(4))
def test_dims_that_act_only_together_are_found(seed):
    """Five dims that act in one of a thousand candidates."""
    dims = dims_with(*[4] * 12)
    wanted = np.array([1, 3, 0, 2, 1])

    def price(picks):
        return (picks[:, [0, 3, 5, 8, 11]] == wanted).all(axis=1, keepdims=True)

    tables = tabulated(price, dims, seed)
    picks = random_picks(dims, 4000)
    picks[:2000, [0, 3, 5, 8]] = wanted[:4]
    assert 100 < price(picks).sum() < 3900
    assert np.array_equal(looked_up(tables, picks), price(picks))


@pytest.mark.parametrize("seed", range(4))
def test_a_state_passed_along_many_dims_stays_small(seed):
    """Each bit resets, keeps or flips a state; sixty thousand combinations times ten."""
    dims = dims_with(*[3] * 12, 10)

    def state(picks):
        found = np.zeros(len(picks), dtype=int)
        for column in picks[:, :12].T:
            found = np.where(column == 0, 0, np.where(column == 1, found, 1 - found))
        return found

    def price(picks):
        return (state(picks) * (picks[:, 12] + 1.0))[:, None]

    tables = tabulated(price, dims, seed)
    picks = random_picks(dims, 5000)
    assert np.array_equal(looked_up(tables, picks), price(picks))
    assert len(tables.rows[0].values) <= 4096 < 3**12 * 10


def test_tables_follow_from_the_seed():
    dims = dims_with(*[3] * 8)
    one, same = (tabulated(lambda picks: np.sin(picks[:, ::3]), dims) for _ in range(2))
    assert one.networks == same.networks
    for left, right in zip(one.rows, same.rows, strict=True):
        assert left.values.tobytes() == right.values.tobytes()
        assert [dims_of(each) for each in left.factors] == [dims_of(e) for e in right.factors]


def test_a_row_without_structure_is_refused():
    """Seventeen bits in a table of chance: nothing can be joined."""
    dims = dims_with(*[2] * 17)
    values = np.random.default_rng(0).random((2**17, 1))
    with pytest.raises(CostError) as caught:
        tabulated(lambda picks: values[picks @ 2 ** np.arange(17)], dims)
    named = ", ".join(dim.name for dim in dims)
    assert str(caught.value) == (
        f"row 'row0' cannot be tabulated: it depends on 17 dims in 131072 combinations, "
        f"at most 65536 are held: {named}"
    )


def test_what_takes_too_many_rounds_is_refused(monkeypatch):
    monkeypatch.setattr(tabulation, "_ROUNDS", 1)
    with pytest.raises(CostError) as caught:
        tabulated(lambda picks: picks * 1.0, dims_with(3, 3))
    assert str(caught.value) == "what rows of networks add shows no pattern in 1 rounds"

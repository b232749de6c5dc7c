import numpy as np
import pytest
import torch

from apqkit.quant.rounding import just_above, pass_within, round_in_place


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_ties_go_to_the_even_neighbour_without_a_generator():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4999, 2.5001])
    assert round_in_place(x, None).tolist() == [-2, -2, 0, 0, 2, 2, 2, 3]


def test_rounding_to_nearest_equals_numpy():
    x = np.random.default_rng(0).normal(0, 1e4, 100_000).astype(np.float32)
    x = np.concatenate([x, np.arange(-500, 500, dtype=np.float32) + 0.5])
    assert np.array_equal(round_in_place(torch.from_numpy(x.copy()), None).numpy(), np.rint(x))


@pytest.mark.parametrize("generator", [None, seeded()])
def test_the_tensor_itself_is_changed_and_returned(generator):
    x = torch.tensor([0.4, 1.6, -0.3])
    assert round_in_place(x, generator) is x
    assert torch.equal(x, x.round())


def test_a_generator_chooses_one_of_the_two_neighbours():
    x = torch.randn(50_000, generator=seeded(1)) * 100
    found = round_in_place(x.clone(), seeded())
    assert bool(((found == x.floor()) | (found == x.ceil())).all())
    assert bool((found == x.floor()).any())
    assert bool((found == x.ceil()).any())


@pytest.mark.parametrize("value", [0.1, 0.5, 0.9, -0.25, -3.875, 1000.125])
def test_rounding_at_random_is_right_on_average(value):
    count = 200_000
    found = round_in_place(torch.full((count,), value), seeded(2)).double()
    left = value - np.floor(value)
    deviation = np.sqrt(left * (1 - left) / count)
    assert abs(float(found.mean()) - value) < 4.5 * deviation


def test_whole_numbers_stay_whole_up_to_the_end_of_fp32():
    # floor(x + u) would move half of these up: x + u is not representable and rounds to even
    x = torch.tensor([8388607.0, -8388607.0, 4194303.0, 2.0**24, -(2.0**30), 0.0, -1.0])
    many = x.repeat(10_000)
    assert torch.equal(round_in_place(many.clone(), seeded(3)), many)


@pytest.mark.parametrize(("noise", "wanted"), [(0.0, [2, 3, -1, -2]), (0.5, [2, 2, -1, -2])])
def test_a_draw_of_zero_moves_no_whole_number(monkeypatch, noise, wanted):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, noise))
    x = torch.tensor([2.0, 2.25, -1.25, -2.0])
    assert round_in_place(x, seeded()).tolist() == wanted


def test_a_value_just_below_a_whole_number_never_passes_it():
    x = torch.full((100_000,), 1.0 - 2.0**-24)
    assert set(round_in_place(x, seeded(4)).tolist()) <= {0.0, 1.0}


def test_what_is_not_finite_stays_as_it_is():
    for generator in (None, seeded()):
        x = torch.tensor([float("nan"), float("inf"), -float("inf")])
        found = round_in_place(x, generator)
        assert found[0].isnan()
        assert found[1:].tolist() == [float("inf"), -float("inf")]


def test_the_same_seed_rounds_alike_and_the_global_stream_is_untouched():
    x = torch.full((1000,), 0.5)
    state = torch.random.get_rng_state()
    first, second = (round_in_place(x.clone(), seeded(5)) for _ in range(2))
    other = round_in_place(x.clone(), seeded(6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3, 4, 5)])
@pytest.mark.parametrize("generator", [None, seeded()])
def test_any_shape_is_taken(shape, generator):
    x = torch.full(shape, 2.0)
    assert torch.equal(round_in_place(x.clone(), generator), x)


def test_a_view_changes_the_tensor_below_it():
    x = torch.full((2, 4), 1.75)
    round_in_place(x[:, ::2], None)
    assert x.tolist() == [[2.0, 1.75, 2.0, 1.75]] * 2


def test_gradients_pass_strictly_between_the_bounds():
    values = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.999, 1.0, 2.0, float("inf")])
    gradient = torch.arange(1.0, 9.0)
    assert pass_within(gradient, values, -1.0, 1.0).tolist() == [0, 0, 3, 4, 5, 0, 0, 0]


def test_gradients_pass_in_any_layout_and_blocked_ones_are_zero_even_if_infinite():
    generator = seeded(7)
    values = torch.randn(2, 3, 4, 5, generator=generator) * 2
    gradient = torch.randn(2, 3, 4, 5, generator=generator)
    last = values.contiguous(memory_format=torch.channels_last)
    wanted = gradient * ((values > -1) & (values < 1))
    assert torch.equal(pass_within(gradient, last, -1.0, 1.0), wanted)
    same = gradient[:1].expand(2, -1, -1, -1)
    assert torch.equal(pass_within(same, last, -9.0, 9.0), same)
    infinite = torch.full_like(values, float("inf"))
    assert bool((pass_within(infinite, values, 50.0, 60.0) == 0).all())


@pytest.mark.parametrize("value", [6.0, 7.5, 28.0, 448.0, 57344.0, 127 / 64, 3.4e38])
def test_the_number_just_above_is_the_next_one(value):
    value = float(np.float32(value))
    found = just_above(value)
    bits = np.float32(found).view(np.int32)
    assert bits - 1 == np.float32(value).view(np.int32)
    assert found == float(np.float32(found))

import inspect
import time

import numpy as np
import pytest
import torch

from apqkit.formats import FORMATS, format_named
from apqkit.quant.observers import OBSERVERS, Observer
from apqkit.quant.quantize import fake_quantize
from apqkit.quant.ranges import params_of_range

INT4, INT8, UINT4 = format_named("int4"), format_named("int8"), format_named("uint4")
HISTOGRAMS = ("percentile", "mse", "kl")
BIN = 2 / 4096  # width of a bin, in reaches


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(rule, *batches):
    observer = OBSERVERS[rule]()
    for batch in batches:
        observer.update(batch)
    return observer


def limits(rule, *batches, number_format=INT4, symmetric=True):
    low, high = seen(rule, *batches).limits(number_format, symmetric=symmetric)
    return low, high


def test_these_are_the_rules():
    assert sorted(OBSERVERS) == ["kl", "minmax", "moving-average", "mse", "percentile", "rms"]
    for rule in OBSERVERS.values():
        assert issubclass(rule, Observer)
        assert not inspect.isabstract(rule)


# all rules


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", OBSERVERS)
def test_limits_lie_within_what_was_seen_a_row(rule, symmetric):
    rows = drawn(3, 3000) * torch.tensor([[1.0], [10.0], [0.1]]) + torch.tensor(
        [[0.0], [5.0], [0]]
    )
    low, high = limits(rule, rows, symmetric=symmetric)
    assert low.shape == high.shape == (3,)
    assert low.dtype == high.dtype == torch.float32
    assert bool((low >= rows.amin(dim=1)).all())
    assert bool((high <= rows.amax(dim=1)).all())
    assert bool((low < high).all())


@pytest.mark.parametrize("rule", OBSERVERS)
def test_rows_do_not_sway_each_other(rule):
    rows = drawn(2, 2000) * torch.tensor([[1.0], [30.0]])
    together = limits(rule, rows)
    for index, row in enumerate(rows):
        alone = limits(rule, row[None])
        for found, wanted in zip(together, alone, strict=True):
            assert float(found[index]) == pytest.approx(float(wanted[0]), rel=1e-6)


@pytest.mark.parametrize("rule", OBSERVERS)
def test_the_order_of_values_does_not_matter(rule):
    rows = drawn(1, 2000)
    mixed = rows[:, torch.randperm(2000, generator=torch.Generator().manual_seed(1))]
    for found, wanted in zip(limits(rule, mixed), limits(rule, rows), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("rule", [rule for rule in OBSERVERS if rule != "moving-average"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_several_batches_equal_one_where_the_first_holds_the_largest(rule, symmetric):
    rows = drawn(1, 6000)
    rows, _ = torch.sort(rows.abs(), descending=True)
    rows = rows * torch.tensor([1.0, -1.0]).repeat(3000)
    one = limits(rule, rows, symmetric=symmetric)
    several = limits(rule, *rows.split(1500, dim=1), symmetric=symmetric)
    for found, wanted in zip(several, one, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("rule", OBSERVERS)
@pytest.mark.parametrize("power", [-10, 10])
def test_limits_follow_the_values_by_powers_of_two(rule, power):
    rows = drawn(1, 2000, seed=2) * 3
    for found, wanted in zip(limits(rule, rows * 2.0**power), limits(rule, rows), strict=True):
        assert torch.equal(found, wanted * 2.0**power)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", OBSERVERS)
def test_zeros_constants_single_and_tiny_values_have_finite_limits(rule, symmetric):
    for value in (0.0, 3.0, -3.0, 1e-42, 3e38):
        for shape in [(1, 1), (1, 50)]:
            rows = torch.full(shape, value)
            low, high = limits(rule, rows, symmetric=symmetric)
            assert bool(torch.isfinite(low).all() and torch.isfinite(high).all())
            if rule in ("minmax", "moving-average"):
                assert low.tolist() == high.tolist() == rows[:, 0].tolist()


# lowest and highest


def test_minmax_is_the_range_of_all_batches():
    batches = [drawn(3, 10, seed=seed) for seed in range(4)]
    low, high = limits("minmax", *batches)
    whole = torch.cat(batches, dim=1)
    assert torch.equal(low, whole.amin(dim=1))
    assert torch.equal(high, whole.amax(dim=1))


def test_the_moving_average_moves_a_tenth_towards_each_batch():
    first = torch.tensor([[-1.0, 2.0], [0.0, 8.0]])
    second = torch.tensor([[-3.0, 12.0], [-10.0, 0.0]])
    third = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    low, high = limits("moving-average", first)
    assert (low.tolist(), high.tolist()) == ([-1, 0], [2, 8])
    low, high = limits("moving-average", first, second)
    assert low.tolist() == pytest.approx([-1.2, -1.0])
    assert high.tolist() == pytest.approx([3.0, 7.2])
    low, high = limits("moving-average", first, second, third)
    assert low.tolist() == pytest.approx([-1.08, -0.8])
    assert high.tolist() == pytest.approx([2.7, 6.58])


# root mean square


@pytest.mark.parametrize(
    ("name", "symmetric", "multiple"),
    [
        ("int2", True, 1.22),
        ("int4", True, 2.6),
        ("uint4", True, 4.0),
        ("uint4", False, 2.6),  # affine levels span both signs
        ("fp4_e2m1", True, 3.0),
        ("int8", True, None),
        ("fp8_e4m3", True, None),
    ],
)
def test_rms_keeps_a_multiple_of_the_root_mean_square(name, symmetric, multiple):
    batches = [drawn(2, 3000, seed=3), drawn(2, 5000, seed=4) * 2]
    whole = torch.cat(batches, dim=1)
    low, high = limits("rms", *batches, number_format=FORMATS[name], symmetric=symmetric)
    if multiple is None:
        assert torch.equal(low, whole.amin(dim=1))
        assert torch.equal(high, whole.amax(dim=1))
    else:
        reach = multiple * np.sqrt(np.square(whole.double().numpy()).mean(axis=1))
        values = whole.numpy()
        assert high.numpy() == pytest.approx(np.minimum(reach, values.max(axis=1)), rel=1e-5)
        assert low.numpy() == pytest.approx(np.maximum(-reach, values.min(axis=1)), rel=1e-5)


def test_rms_does_not_stretch_the_range():
    low, high = limits("rms", torch.tensor([[-1.0, 1.0, 1.0, -1.0]]))
    assert (low.tolist(), high.tolist()) == ([-1], [1])


# histograms


def counted(values, reach):
    edges = np.linspace(-reach, reach, 4097)
    return np.histogram(values, edges)[0]


def test_a_histogram_counts_values_in_equal_bins():
    rows = drawn(2, 5000)
    middles, counts = seen("percentile", rows)._seen
    reach = rows.abs().amax(dim=1)
    for index in range(2):
        assert middles[index].numpy() == pytest.approx(
            float(reach[index]) * ((np.arange(4096) + 0.5) * BIN - 1), rel=1e-5, abs=1e-6
        )
        wanted = counted(rows[index].double().numpy(), float(reach[index]))
        assert np.array_equal(counts[index].numpy(), wanted)


@pytest.mark.parametrize("factor", [1.5, 2.0, 7.0, 1000.0])
def test_a_range_that_doubles_keeps_every_count_in_its_place(factor):
    first, second = drawn(2, 4000, seed=5), drawn(2, 4000, seed=6) * factor
    second[0] = second[0] * 3  # rows double on their own
    observer = seen("percentile", first, second)
    middles, counts = observer._seen
    whole = torch.cat([first, second], dim=1)
    for index in range(2):
        reach = float(middles[index, -1] * 4096 / 4095)
        start = float(first[index].abs().max())
        doublings = np.log2(reach / start)
        assert doublings == pytest.approx(round(doublings), abs=1e-5)
        assert float(whole[index].abs().max()) <= reach * (1 + 1e-6)
        assert reach < 2 * float(whole[index].abs().max())
        assert int(counts[index].sum()) == 8000
        wanted = counted(whole[index].double().numpy(), start * 2 ** round(doublings))
        moved = np.abs(np.cumsum(counts[index].numpy()) - np.cumsum(wanted))
        assert moved.max() <= 1  # a value on an edge


def test_counts_survive_many_doublings():
    batches = [drawn(1, 500, seed=seed) * 1.7**seed for seed in range(30)]
    middles, counts = seen("percentile", *batches)._seen
    whole = torch.cat(batches, dim=1)
    assert int(counts.sum()) == 15_000
    reach = float(middles[0, -1] * 4096 / 4095)
    wanted = np.cumsum(counted(whole[0].double().numpy(), reach))
    assert np.abs(np.cumsum(counts[0].numpy()) - wanted).max() <= 5


@pytest.mark.parametrize("rule", HISTOGRAMS)
@pytest.mark.parametrize("largest", [5.0, 1e-20, 1e30])
def test_a_row_of_zeros_may_come_first(rule, largest):
    rows = drawn(2, 3000, seed=7)
    rows = rows / rows.abs().amax() * largest
    zeros = torch.zeros(2, 10)
    low, high = limits(rule, zeros, rows)
    plain_low, plain_high = limits(rule, rows)
    slack = 0.3 if rule == "kl" else 0.01  # bins are up to twice as wide, which sways entropies
    assert low.numpy() == pytest.approx(plain_low.numpy(), rel=slack)
    assert high.numpy() == pytest.approx(plain_high.numpy(), rel=slack)
    middles, counts = seen(rule, zeros, rows)._seen
    assert bool(torch.isfinite(middles).all())
    assert counts.sum(dim=1).tolist() == [3010, 3010]
    assert float((middles[0] * counts[0]).sum()) == pytest.approx(
        float(rows[0].double().sum()), abs=3010 * BIN * largest
    )


@pytest.mark.parametrize("rule", HISTOGRAMS)
def test_a_range_may_double_up_to_the_end_of_fp32(rule):
    rows = drawn(1, 3000, seed=8)
    rows = rows / rows.abs().amax()
    first = limits(rule, rows * 1e38, rows * 3.4e38)
    middles, counts = seen(rule, rows * 1e38, rows * 3.4e38)._seen
    assert bool(torch.isfinite(middles).all())
    assert int(counts.sum()) == 6000
    assert int((counts[0] > 0).sum()) > 500
    for each in first:
        assert 0.1e38 < float(each.abs()) <= 3.4e38


# percentile


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_percentile_holds_all_but_one_magnitude_in_ten_thousand(shift):
    rows = drawn(2, 200_000, seed=9) + shift
    low, high = limits("percentile", rows[:, :50_000], rows[:, 50_000:])
    for index in range(2):
        magnitudes = np.sort(rows[index].abs().numpy())
        wanted = magnitudes[int(np.ceil(0.9999 * len(magnitudes))) - 1]
        width = 2 * BIN * float(magnitudes[-1])  # ranges may have doubled
        top, bottom = float(rows[index].max()), float(rows[index].min())
        assert float(high[index]) == pytest.approx(min(float(wanted), top), abs=width)
        assert float(low[index]) == pytest.approx(max(-float(wanted), bottom), abs=width)


def test_the_percentile_of_few_values_is_their_range():
    rows = drawn(3, 500)
    low, high = limits("percentile", rows)
    assert torch.equal(low, rows.amin(dim=1))
    assert torch.equal(high, rows.amax(dim=1))


def test_the_percentile_leaves_out_a_lone_outlier():
    rows = torch.cat([drawn(1, 100_000), torch.tensor([[500.0]])], dim=1)
    low, high = limits("percentile", rows)
    assert 3.5 < float(high) < 5.0
    assert -5.5 < float(low) < -3.5


# least squared error


def heavy(seed, count=4000):
    """Values with long tails."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_t(3, (1, count))).float()


def raw_error(rows, reach, number_format, symmetric):
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    low, high = torch.maximum(low, -reach), torch.minimum(high, reach)
    scale, zero = params_of_range(low, high, number_format, symmetric=symmetric)
    found = fake_quantize(rows, number_format, scale=scale[0], zero_point=zero[0])
    return float((found - rows).double().square().mean())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["int2", "int3", "int4", "int8", "uint4"])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_mse_finds_the_best_of_the_same_clips_of_the_raw_values(name, symmetric, shift):
    rows = heavy(int(shift)) + shift
    if symmetric and name[0] == "u":
        rows = rows.abs()
    low, high = limits("mse", rows, number_format=FORMATS[name], symmetric=symmetric)
    largest = rows.abs().amax(dim=1)
    errors = [
        raw_error(rows, largest * (step / 100), FORMATS[name], symmetric) for step in range(1, 101)
    ]
    reach = torch.maximum(low.abs(), high.abs())
    own = raw_error(rows, reach, FORMATS[name], symmetric)
    # a bin moves each value by at most half its width
    assert own**0.5 <= min(errors) ** 0.5 + float(largest) * BIN / 2
    assert own <= 1.02 * min(errors)
    assert own < errors[-1] or min(errors) == errors[-1]


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp6_e2m3", "fp8_e4m3", "fp8_e3m4"])
def test_mse_finds_the_best_of_the_same_clips_for_floats(name):
    rows = heavy(2)
    low, high = limits("mse", rows, number_format=FORMATS[name])
    largest = rows.abs().amax(dim=1)
    errors = [
        raw_error(rows, largest * (step / 100), FORMATS[name], True) for step in range(1, 101)
    ]
    own = raw_error(rows, torch.maximum(low.abs(), high.abs()), FORMATS[name], True)
    assert own**0.5 <= min(errors) ** 0.5 + float(largest) * BIN / 2


def test_mse_clips_less_with_more_bits():
    rows = heavy(3)
    reaches = [
        float(limits("mse", rows, number_format=FORMATS[f"int{bits}"])[1]) for bits in (2, 4, 6, 8)
    ]
    assert reaches == sorted(reaches)
    assert reaches[0] < 0.6 * reaches[-1]


@pytest.mark.parametrize("rule", ["mse", "kl"])
@pytest.mark.parametrize("name", ["int16", "uint16"])
def test_formats_of_more_than_eight_bits_keep_the_whole_range(rule, name):
    rows = heavy(4)
    low, high = limits(rule, rows, number_format=FORMATS[name])
    assert torch.equal(low, rows.amin(dim=1))
    assert torch.equal(high, rows.amax(dim=1))


def test_mse_is_found_for_values_whose_squares_overflow():
    rows = heavy(5)
    wanted = limits("mse", rows)
    assert float(wanted[1]) < 0.9 * float(rows.abs().max())
    for found, want in zip(limits("mse", rows * 2.0**100), wanted, strict=True):
        assert torch.equal(found, want * 2.0**100)


# least relative entropy


def test_kl_keeps_a_range_whose_values_all_are_levels():
    # nothing is lost by the whole range, so no clip can be better
    levels = torch.arange(-7.0, 8.0).repeat(1, 40)
    low, high = limits("kl", levels)
    assert (low.tolist(), high.tolist()) == ([-7], [7])


def test_kl_keeps_nearly_all_of_an_even_distribution():
    rows = torch.linspace(-1, 1, 60_000)[None]
    low, high = limits("kl", rows)
    assert float(high) > 0.9
    assert float(low) < -0.9


@pytest.mark.parametrize("symmetric", [True, False])
def test_kl_leaves_out_far_outliers(symmetric):
    rows = torch.cat([drawn(1, 20_000), torch.tensor([[60.0, -60.0]])], dim=1)
    low, high = limits("kl", rows, symmetric=symmetric)
    assert 1.0 < float(high) < 30.0
    assert -30.0 < float(low) < -1.0


def test_kl_loses_all_images_of_what_its_levels_cannot_show():
    def divergence(middles, counts, quantized):
        return OBSERVERS["kl"]()._loss(middles[None], counts[None], quantized[None])

    middles = torch.linspace(-1, 1, 8)
    counts = torch.tensor([0.0, 1.0, 3.0, 6.0, 6.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    same = divergence(middles, counts, middles)
    assert float(same) == pytest.approx(0.0, abs=1e-12)
    # two levels share each half: mass 10 spread over three bins with values
    halves = torch.where(middles < 0, -0.5, 0.5)
    held = torch.tensor([1.0, 3.0, 6.0]) / 20
    level = 10 / 3 / 20
    wide = divergence(middles, counts, torch.where(middles.abs() > 0.99, middles.sign(), halves))
    assert float(wide) == pytest.approx(2 * float((held * (held / level).log()).sum()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("rule", OBSERVERS)
def test_cuda_finds_the_same(rule):
    batches = [drawn(2, 2000, seed=10), drawn(2, 2000, seed=11) * 5]
    wanted = limits(rule, *batches)
    found = limits(rule, *(each.cuda() for each in batches))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one.cpu(), other, rtol=1e-5)


@pytest.mark.parametrize("rule", ["mse", "kl"])
def test_ranges_of_many_short_rows_are_found_quickly(rule):
    rows = drawn(256, 32)
    began = time.perf_counter()
    low, high = limits(rule, rows)
    assert time.perf_counter() - began < 20.0  # one row after the other took minutes
    assert low.shape == high.shape == (256,)


def test_mse_keeps_few_values_as_they_are_and_many_in_bins():
    few, many = drawn(3, 1000), drawn(3, 3000)
    observer = OBSERVERS["mse"]()
    observer.update(few)
    observer.update(many)
    whole = OBSERVERS["mse"]()
    whole.update(torch.cat([few, many], dim=1))
    for number_format in (FORMATS["int4"], FORMATS["int3"]):
        found = observer.limits(number_format, symmetric=True)
        assert torch.equal(
            torch.stack(found), torch.stack(whole.limits(number_format, symmetric=True))
        )
    observer.update(drawn(3, 2000))  # now they are too many
    assert observer._values is None
    assert float(observer._counts.sum()) == 3 * 6000

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost.array_energy import array_energy, cacti_bank
from apqkit.errors import CostError


@pytest.mark.parametrize(
    ("size_bytes", "ports", "read_nj", "write_nj", "leakage_mw"),
    [
        (128, 2, 0.000683701, 0.000925317, 0.249588),
        (2048, 2, 0.00190318, 0.00363853, 3.22997),
        (16384, 2, 0.0099817, 0.0084209, 27.127),
        (512, 3, 0.00106097, 0.00233869, 1.03183),
        (4096, 3, 0.00398324, 0.00505131, 8.23828),
    ],
)
def test_published_banks_are_met(size_bytes, ports, read_nj, write_nj, leakage_mw):
    """Source: bitfusion/sram/cacti_sweep.csv of hsharma35/bitfusion; 32 bits an access."""
    bank = cacti_bank(size_bytes, ports=ports)
    assert bank.read_pj_per_bit == pytest.approx(read_nj * 1000 / 32)
    assert bank.write_pj_per_bit == pytest.approx(write_nj * 1000 / 32)
    assert bank.leakage_mw == pytest.approx(leakage_mw)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.floats(1, 1e6), min_size=2, max_size=2).map(sorted),
    ports=st.sampled_from((2, 3)),
)
def test_larger_banks_take_no_less(sizes, ports):
    small, large = (cacti_bank(size, ports=ports) for size in sizes)
    for name, value in vars(small).items():
        assert 0 < value <= getattr(large, name) * (1 + 1e-12)


def test_between_two_banks_figures_are_their_geometric_mean():
    between = cacti_bank((128 * 1024) ** 0.5, ports=2)
    ends = [cacti_bank(size, ports=2) for size in (128, 1024)]
    for name, value in vars(between).items():
        low, high = (getattr(each, name) for each in ends)
        assert value == pytest.approx((low * high) ** 0.5)


def test_beyond_the_ends_the_nearest_bank_counts():
    assert cacti_bank(16, ports=2) == cacti_bank(128, ports=2)
    assert cacti_bank(1 << 20, ports=3) == cacti_bank(4096, ports=3)


def test_the_published_array():
    """16 x 32 units, buffers of 64, 32 and 16 KiB in 512, 16 and 32 banks, 500 MHz."""
    energy = array_energy(16, 32, buffers_kib=(64, 32, 16), clock_mhz=500.0)
    assert energy.core_pj_per_cycle == pytest.approx(512 * 279.96 / 500)
    leakage_mw = 512 * 0.064314 + 512 * 0.249588 + 16 * 3.22997 + 32 * 1.03183
    assert energy.leakage_pj_per_cycle == pytest.approx(leakage_mw * 1e-3 / 500e6 * 1e12)
    assert energy.banks == (
        cacti_bank(128, ports=2),
        cacti_bank(2048, ports=2),
        cacti_bank(512, ports=3),
    )


def test_a_faster_clock_leaks_less_a_cycle_and_computes_for_the_same():
    slow, fast = (
        array_energy(2, 4, buffers_kib=(64, 32, 16), clock_mhz=clock) for clock in (250.0, 500.0)
    )
    assert fast.core_pj_per_cycle == slow.core_pj_per_cycle
    assert fast.leakage_pj_per_cycle == pytest.approx(slow.leakage_pj_per_cycle / 2)


def test_an_empty_bank_is_refused():
    with pytest.raises(CostError) as caught:
        cacti_bank(0, ports=2)
    assert str(caught.value) == "a bank of SRAM must hold more than 0 bytes, got 0"

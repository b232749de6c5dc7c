"""Energy of the parts of a bit-flexible systolic array: fused units and banked buffers.

All figures are those that were published with the BitFusion simulator (ISCA 2018), for 45 nm:
the synthesis of its fused units and CACTI's account of SRAM banks.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from apqkit.errors import CostError

__all__ = ["ArrayEnergy", "SramBank", "array_energy", "cacti_bank"]

Ports = Literal[2, 3]

_SYNTHESIS_MHZ = 500.0
_UNIT_DYNAMIC_UW = 279.96  # one unit of 8-bit operands made of 2-bit bricks, 1,733 um^2
_UNIT_LEAKAGE_UW = 64.314

_ACCESS_BITS = 32
_BYTES_A_KIB = 1024
_PJ_A_NJ = 1e3
_TWO_PORTS = MappingProxyType(
    {
        128: (0.000683701, 0.000925317, 0.249588),
        1024: (0.00113324, 0.00329596, 1.78934),
        2048: (0.00190318, 0.00363853, 3.22997),
        4096: (0.00342953, 0.00431011, 7.30186),
        8192: (0.00639163, 0.00556268, 13.6943),
        16384: (0.0099817, 0.0084209, 27.127),
    }
)
"""Bytes of a bank -> nJ to read 32 bits, nJ to write them, mW of leakage."""
_THREE_PORTS = MappingProxyType(
    {512: (0.00106097, 0.00233869, 1.03183), 4096: (0.00398324, 0.00505131, 8.23828)}
)
"""The same with a third port, which reads and writes."""


@dataclass(frozen=True)
class SramBank:
    """What one bank of SRAM takes.

    Attributes:
        read_pj_per_bit: Energy to read.
        write_pj_per_bit: Energy to write.
        leakage_mw: Power at rest.
    """

    read_pj_per_bit: float
    write_pj_per_bit: float
    leakage_mw: float


@dataclass(frozen=True)
class ArrayEnergy:
    """What the parts of an array take.

    Attributes:
        core_pj_per_cycle: All units, in a cycle in which they compute.
        leakage_pj_per_cycle: All units and buffers, in any cycle.
        banks: One bank of the buffers of weights, activations and outputs.
    """

    core_pj_per_cycle: float
    leakage_pj_per_cycle: float
    banks: tuple[SramBank, ...]


def array_energy(
    rows: int, columns: int, *, buffers_kib: tuple[int, int, int], clock_mhz: float
) -> ArrayEnergy:
    """Returns what the parts of an array of 8-bit units made of 2-bit bricks take.

    A unit was synthesised at 500 MHz: 279.96 uW while it computes, so 0.56 pJ a cycle at any
    clock, and 64.3 uW of leakage, which counts for as long as a cycle takes. Both are those of a
    unit by itself; in a published array of 4 x 4 the dynamic power is 230 uW a unit. The weight
    buffer has a bank a unit, that of the activations one a row and that of the outputs one a
    column, with three ports.

    Args:
        rows: Fused units along the input channels.
        columns: Fused units along the output channels.
        buffers_kib: Of weights, activations and outputs.
        clock_mhz: Clock.
    """
    units = rows * columns
    counts = (units, rows, columns)
    ports: tuple[Ports, ...] = (2, 2, 3)
    banks = tuple(
        cacti_bank(kib * _BYTES_A_KIB / count, ports=each)
        for kib, count, each in zip(buffers_kib, counts, ports, strict=True)
    )
    at_rest = [count * bank.leakage_mw for count, bank in zip(counts, banks, strict=True)]
    leakage_mw = units * _UNIT_LEAKAGE_UW * 1e-3 + sum(at_rest)
    return ArrayEnergy(
        core_pj_per_cycle=units * _UNIT_DYNAMIC_UW / _SYNTHESIS_MHZ,
        leakage_pj_per_cycle=leakage_mw / clock_mhz * _PJ_A_NJ,  # mW / MHz = nJ
        banks=banks,
    )


def cacti_bank(size_bytes: float, *, ports: Ports) -> SramBank:
    """Returns the figures of a 45 nm SRAM bank with words of 32 bits.

    Published are banks of 128 to 16,384 bytes with two ports, of 512 and 4,096 with three. Between
    them logarithms are interpolated, beyond them the nearest published bank counts: both are
    estimates.

    Args:
        size_bytes: What the bank holds.
        ports: 2 (one reads, one writes) or 3 (another does both).

    Raises:
        CostError: The bank holds nothing.
    """
    if size_bytes <= 0:
        raise CostError(f"a bank of SRAM must hold more than 0 bytes, got {size_bytes:g}")
    published = _TWO_PORTS if ports == 2 else _THREE_PORTS
    sizes = np.log(list(published))
    read_nj, write_nj, leakage_mw = (
        float(np.exp(np.interp(np.log(size_bytes), sizes, np.log(figures))))
        for figures in zip(*published.values(), strict=True)
    )
    return SramBank(
        read_nj * _PJ_A_NJ / _ACCESS_BITS, write_nj * _PJ_A_NJ / _ACCESS_BITS, leakage_mw
    )

import numpy as np
import pytest

from predictors.zerocost.arrays import fixed


def test_what_is_fixed_cannot_be_written_to_and_is_a_copy() -> None:
    source = np.array([1.0, 2.0])
    array = fixed(source)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 3.0
    source[0] = 4.0
    assert array.tolist() == [1.0, 2.0]


def test_takes_generators_and_makes_them_float64() -> None:
    array = fixed(each for each in (1, 2))
    assert array.dtype == np.float64
    assert array.tolist() == [1.0, 2.0]

import math

import numpy as np
import pytest
import torch

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.weight_errors import sqnr_db, weight_errors


def halves(x):
    return torch.round(2.0 * x) / 2.0


def in_place(x):
    return x.zero_()


FORMATS = {"halves": halves, "zero": in_place, "same": lambda x: x}


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    shapes = {"a": (3, 2), "b": (2, 2, 3, 3)}
    weights, gradients = (
        {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(2)
    )
    return weights, gradients


def test_equals_loops_over_all_weights(tensors) -> None:
    weights, gradients = tensors
    found = weight_errors(weights, gradients, FORMATS)
    for row, name in enumerate(weights):
        for column, rule in enumerate((lambda w: round(2 * w) / 2, lambda w: 0.0)):
            pairs = list(
                zip(
                    weights[name].flatten().tolist(),
                    gradients[name].flatten().tolist(),
                    strict=True,
                )
            )
            noise = sum((rule(w) - w) ** 2 for w, _ in pairs)
            power = sum(w**2 for w, _ in pairs)
            products = [g * (rule(w) - w) for w, g in pairs]
            assert found.sum_of_squares[row, column] == pytest.approx(noise, rel=1e-12)
            assert found.mean_square[row, column] == pytest.approx(noise / len(pairs), rel=1e-12)
            assert found.sqnr_db[row, column] == pytest.approx(
                10 * math.log10(power / noise), rel=1e-9, abs=1e-9
            )
            assert found.gradient_products[row, column] == pytest.approx(sum(products), rel=1e-9)
            assert found.squared_gradient_products[row, column] == pytest.approx(
                sum(each**2 for each in products), rel=1e-9
            )


def test_a_format_that_changes_nothing_has_no_error(tensors) -> None:
    found = weight_errors(*tensors, {"same": lambda x: x})
    assert (found.sum_of_squares == 0.0).all()
    assert (found.sqnr_db == 120.0).all()


def test_weights_survive_formats_that_write_into_them(tensors) -> None:
    weights, gradients = tensors
    before = {name: each.clone() for name, each in weights.items()}
    weight_errors(weights, gradients, FORMATS)
    assert all(torch.equal(before[name], each) for name, each in weights.items())


def test_fp32_weights_are_compared_in_float64() -> None:
    weight = torch.full((100, 100), 0.1)
    found = weight_errors({"a": weight}, {"a": weight}, {"three": lambda x: x.fill_(3.0)})
    error = 3.0 - float(weight[0, 0])
    assert found.sum_of_squares[0, 0] == pytest.approx(1e4 * error**2, rel=1e-12)


def test_a_format_that_cannot_hold_a_layer_is_nan(tensors) -> None:
    weights, gradients = tensors
    found = weight_errors(weights, gradients, {"odd": lambda x: x * math.nan, "zero": in_place})
    for each in vars(found).values():
        assert np.isnan(each[:, 0]).all()
        assert np.isfinite(each[:, 1]).all()


@pytest.mark.parametrize(
    ("power", "noise", "ratio_db"),
    [(1.0, 0.0, 120.0), (0.0, 0.0, 120.0), (1.0, 1e-30, 120.0), (2.0, 200.0, -20.0)],
)
def test_ratios_end_at_120_db(power, noise, ratio_db) -> None:
    assert sqnr_db(power, noise) == pytest.approx(ratio_db)


def test_noise_without_a_signal_has_no_ratio() -> None:
    assert math.isnan(sqnr_db(0.0, 1.0))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:1], "the format 'bad' must keep the shape (3, 2) of 'a', got (1, 2)"),
        (lambda x: 3.0, "the format 'bad' must return a tensor for 'a', got float"),
    ],
)
def test_says_what_a_format_returns(tensors, function, message) -> None:
    with pytest.raises(ProxyError) as caught:
        weight_errors(*tensors, {"bad": function})
    assert str(caught.value) == message

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.sqnr import MAX_SQNR_DB


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[factor]], dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) * self.weight


def sqnr(model, reference, batch):
    return ProxySession(model, batch, reference=reference).compute(["sqnr"])["sqnr"]


def test_equals_the_plain_formula(quant_net, quant_twin, batch32) -> None:
    score = sqnr(quant_net, quant_twin, batch32)
    with torch.no_grad():
        expected = quant_twin(batch32[0]).double().numpy()
        got = quant_net(batch32[0]).double().numpy()
    noise = ((expected - got) ** 2).sum()
    assert score.value == pytest.approx(10 * np.log10((expected**2).sum() / noise), rel=1e-5)
    assert score.layers == {}


@settings(deadline=None, max_examples=25)
@given(factor=st.floats(min_value=-50, max_value=50).filter(lambda each: abs(each - 1) > 1e-5))
def test_knows_the_ratio_of_a_gain(factor: float) -> None:
    images = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    score = sqnr(Times(factor), Times(1.0), (images, None))
    assert score.value == pytest.approx(-20 * math.log10(abs(factor - 1)), abs=1e-6)


def test_falls_with_fewer_levels(quant_net, quant_twin, batch32) -> None:
    scores = []
    for levels in (1, 3, 7, 127):
        for layer in quant_net[:2]:
            layer.levels = levels
        scores.append(sqnr(quant_net, quant_twin, batch32).value)
    assert scores == sorted(scores)


def test_equal_outputs_give_the_maximum(quant_net, batch32) -> None:
    assert sqnr(quant_net, quant_net, batch32).value == MAX_SQNR_DB == 120.0
    tiny = sqnr(Times(1.0 + 1e-9), Times(1.0), batch32)
    assert tiny.value == MAX_SQNR_DB
    assert sqnr(Times(0.0), Times(0.0), batch32).value == MAX_SQNR_DB


def test_says_that_a_silent_reference_has_no_ratio(batch) -> None:
    with pytest.raises(ProxyError) as caught:
        sqnr(Times(1.0), Times(0.0), batch)
    assert str(caught.value) == "sqnr is not defined: all outputs of the reference are 0"


def test_says_which_outputs_are_not_finite(batch) -> None:
    with pytest.raises(ProxyError) as caught:
        sqnr(Times(1.0), Times(math.nan), batch)
    assert str(caught.value) == "the outputs of the reference are not finite"
    with pytest.raises(ProxyError) as caught:
        sqnr(Times(math.inf), Times(1.0), batch)
    assert str(caught.value) == "the outputs of the model are not finite"


def test_says_both_shapes(batch) -> None:
    reference = nn.Sequential(nn.Flatten(), nn.Linear(98, 5)).double()
    with pytest.raises(ProxyError) as caught:
        sqnr(Times(1.0), reference, batch)
    assert str(caught.value) == (
        "sqnr needs equal outputs: the model returns (8, 98), the reference (8, 5)"
    )


def test_needs_a_reference(quant_net, batch32) -> None:
    with pytest.raises(ProxyError) as caught:
        ProxySession(quant_net, batch32).compute(["sqnr"])
    assert str(caught.value) == (
        "sqnr needs a reference: give ProxySession(..., reference=fp32_model)"
    )

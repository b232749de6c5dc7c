import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import predictors.zerocost.signs
from predictors.zerocost.signs import PatternRecorder, SignRecorder, log_determinant


class Block(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x):
        return F.relu(self.act(F.relu(x)) - 1.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.ReLU()
        self.one, self.two = Block(shared), Block(shared)

    def forward(self, x):
        return torch.relu(self.two(self.one(x).relu_()))


def watch(model, x):
    with SignRecorder(model, len(x)) as recorder:
        model(x)
    return recorder.agreements


def test_names_the_module_that_calls() -> None:
    assert list(watch(Net(), torch.randn(3, 4))) == [
        *("one", "one.act", "one#2", "relu", "two", "one.act#2", "two#2", "relu#2")
    ]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 1000))
def test_counts_agreeing_units_exactly(samples: int, units: int, seed: int) -> None:
    x = torch.randn(samples, units, generator=torch.Generator().manual_seed(seed)).round()
    (kernel,) = watch(nn.ReLU(), x).values()
    above = x > 0
    assert kernel.dtype == torch.float64
    assert torch.equal(kernel, (above[:, None] == above[None]).sum(-1).double())


def test_many_units_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3, 5)
    (whole,) = watch(nn.ReLU(), x).values()
    monkeypatch.setattr(predictors.zerocost.signs, "_EXACT_UNITS", 4)
    (parts,) = watch(nn.ReLU(), x).values()
    assert torch.equal(whole, parts)


def test_a_tensor_without_further_axes_is_one_unit() -> None:
    (kernel,) = watch(nn.ReLU(), torch.tensor([1.0, -1.0])).values()
    assert kernel.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 64, 65, 130])
def test_patterns_hold_a_bit_for_each_sample(samples) -> None:
    x = torch.randn(samples, 3, 2)
    with PatternRecorder(net := nn.ReLU(), samples) as recorder:
        net(x)
    words = recorder.patterns["relu"]
    assert words.shape == (-(-samples // 64), 6)
    for sample in range(samples):
        bits = words[sample // 64] >> (sample % 64) & 1
        assert torch.equal(bits.bool(), x[sample].flatten() > 0)


def test_log_determinant_is_finite_for_alike_samples() -> None:
    kernel = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    assert log_determinant(kernel) == pytest.approx(math.log(5.0), rel=1e-11)
    alike = torch.full((2, 2), 4.0, dtype=torch.float64)
    assert log_determinant(alike) == pytest.approx(math.log(16.0 * 2e-12), rel=1e-3)


def test_leaves_no_hook_and_no_mode_even_after_an_error() -> None:
    model = Net()
    with pytest.raises(RuntimeError, match="stop"), SignRecorder(model, 3) as recorder:
        raise RuntimeError("stop")
    model(torch.randn(3, 4))
    assert recorder.agreements == {}
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks

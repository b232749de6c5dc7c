import random

import numpy as np
import pytest
import torch
from torch import nn

from predictors.zerocost.untouched import untouched


class Careless(nn.Module):
    """Changes everything about itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2))
        self.bias = nn.Parameter(torch.randn(2))
        self.register_buffer("mean", torch.full((2,), float("nan")))
        self.register_buffer("nothing", None)
        self.child = nn.Dropout()

    def spoil(self) -> None:
        self.weight.data.clamp_(0.0, 0.1)
        self.weight.grad = torch.ones(2, 2)
        self.bias.requires_grad_(False)
        self.bias = nn.Parameter(torch.zeros(2))
        self.mean.fill_(1.0)
        self.nothing = torch.ones(1)
        self.register_buffer("late", torch.ones(1))
        self.child.eval()


def draws() -> list[float]:
    return [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_puts_everything_back(fails) -> None:
    module = Careless()
    weight, bias, mean = module.weight, module.bias, module.mean
    value = weight.detach().clone()
    bias.grad = gradient = torch.randn(2)

    try:
        with untouched(module, seed=0):
            module.spoil()
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails

    assert module.weight is weight
    assert module.bias is bias
    assert module.mean is mean
    assert torch.equal(weight, value)
    assert weight.grad is None
    assert bias.grad is gradient
    assert bias.requires_grad
    assert mean.isnan().all()
    assert module.nothing is None
    assert list(module._buffers) == ["mean", "nothing"]
    assert list(module._parameters) == ["weight", "bias"]
    assert module.child.training


def test_puts_types_back() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: (id(each), each.clone()) for name, each in module.state_dict().items()}
    tensors = [*module.parameters(), *module.buffers()]
    with untouched(module, seed=0):
        module.double()
        module[0].weight.data.mul_(2.0)
    assert [id(each) for each in [*module.parameters(), *module.buffers()]] == [
        id(each) for each in tensors
    ]
    for name, each in module.state_dict().items():
        assert each.dtype == before[name][1].dtype
        assert torch.equal(each, before[name][1])


def test_puts_hooks_back() -> None:
    module = nn.Linear(1, 1)
    calls: list[str] = []
    kept = module.register_forward_hook(lambda *_: calls.append("kept"))
    with untouched(module, seed=0):
        kept.remove()
        module.register_forward_hook(lambda *_: calls.append("late"), always_call=True)
        module.register_forward_pre_hook(lambda *_, **__: calls.append("late"), with_kwargs=True)
        module.register_full_backward_hook(lambda *_: calls.append("late"))
    module(torch.ones(1, 1)).sum().backward()
    assert calls == ["kept"]


def test_writes_nothing_where_nothing_changed() -> None:
    module = nn.BatchNorm1d(2)
    tensors = [*module.parameters(), *module.buffers()]
    versions = [each._version for each in tensors]
    with untouched(module, seed=0):
        pass
    assert [each._version for each in tensors] == versions


def test_random_draws_are_seeded_inside_and_unchanged_outside() -> None:
    module = nn.Linear(1, 1)
    outside = []
    inside = []
    for seed in (4, 4, 5):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        with untouched(module, seed=seed):
            inside.append(draws())
        outside.append(draws())
    assert outside[0] == outside[1] == outside[2]
    assert inside[0] == inside[1]
    assert all(one != other for one, other in zip(inside[0], inside[2], strict=True))
    assert all(one != other for one, other in zip(inside[0], outside[0], strict=True))


def test_random_state_is_back_after_an_error() -> None:
    module = nn.Linear(1, 1)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="stop"), untouched(module, seed=0):
        raise RuntimeError("stop")
    assert torch.equal(torch.rand(1), expected)

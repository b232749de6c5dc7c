import pytest
import torch
from torch.autograd.function import once_differentiable

from predictors.zerocost import ProxyError
from predictors.zerocost.second_derivatives import (
    check_differentiable_twice,
    refusing_single_derivatives,
)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 3.0 * x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 3.0 * gradient


def gradient_of(function):
    x = torch.ones(2, requires_grad=True)
    (found,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    return found


def test_what_can_be_differentiated_twice_passes():
    check_differentiable_twice([gradient_of(torch.sin)])


def test_a_function_that_can_be_differentiated_once_is_found():
    with pytest.raises(ProxyError) as caught:
        check_differentiable_twice([gradient_of(torch.sin), gradient_of(Once.apply)])
    assert str(caught.value) == (
        "the model cannot be differentiated twice: "
        "a function in it can be differentiated only once"
    )


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError])
def test_the_first_line_of_what_torch_says_is_the_reason(kind):
    with pytest.raises(ProxyError) as caught, refusing_single_derivatives():
        raise kind("no derivative of f\nmore")
    assert str(caught.value) == "the model cannot be differentiated twice: no derivative of f"


def test_a_lack_of_memory_and_other_errors_stay_as_they_are():
    for kind in (torch.OutOfMemoryError, ValueError):
        with pytest.raises(kind), refusing_single_derivatives():
            raise kind("of its own")

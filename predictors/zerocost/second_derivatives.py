"""What a pass that differentiates twice must look out for, and what it says then."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import Node

from predictors.zerocost.errors import ProxyError

__all__ = ["check_differentiable_twice", "refusing_single_derivatives"]

_REFUSAL = "the model cannot be differentiated twice"


def check_differentiable_twice(gradients: Iterable[Tensor]) -> None:
    """Looks for what autograd would leave out in silence: functions marked once_differentiable.

    Args:
        gradients: Of any shapes, made with ``create_graph``.

    Raises:
        ProxyError: There is such a function in their graph.
    """
    waiting = [each.grad_fn for each in gradients]
    visited: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        if node.name() == "torch::autograd::Error":
            raise ProxyError(f"{_REFUSAL}: a function in it can be differentiated only once")
        visited.add(node)
        waiting += [following for following, _ in node.next_functions]


@contextmanager
def refusing_single_derivatives() -> Iterator[None]:
    """Turns what torch raises where a derivative is missing into one line.

    Raises:
        ProxyError: With torch's reason. Errors of memory stay as they are.
    """
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise ProxyError(f"{_REFUSAL}: {reason}") from error

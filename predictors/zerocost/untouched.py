"""Runs passes over models that are left exactly as they were found."""

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["untouched"]

_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks"),
)


@contextmanager
def untouched(*models: nn.Module, seed: int) -> Iterator[None]:
    """Seeds what runs inside; afterwards puts models and random generators back, errors or not.

    Restored in every submodule: parameters and buffers (which tensors they are, their types, and
    their values, so also batch-norm statistics), ``requires_grad``, ``grad``, hooks, train or eval
    mode. Restored too: the global generators of torch (CPU and the models' CUDA devices), numpy
    and ``random``. State that a module keeps in other attributes is its own affair.

    Args:
        models: Modules that run inside.
        seed: Seed of all those generators while inside, so that dropout draws the same again.
    """
    saved = [_SavedModule.of(module) for model in models for module in model.modules()]
    devices = {tensor.device for each in saved for tensor in each.tensors()}
    with _seeded(seed, sorted(device.index for device in devices if device.type == "cuda")):
        try:
            yield
        finally:
            for each in saved:
                each.restore()


@dataclass(frozen=True)
class _SavedTensor:
    tensor: Tensor
    values: Tensor
    grad: Tensor | None
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "_SavedTensor":
        grad = tensor.grad if tensor.is_leaf else None
        return cls(tensor, tensor.detach().clone(), grad, tensor.requires_grad)

    def restore(self) -> Tensor:
        if self._was_converted():
            self.tensor.data = self.values
        elif not torch.equal(self.tensor, self.values):  # an unneeded write would upset autograd
            with torch.no_grad():
                self.tensor.copy_(self.values)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)
            self.tensor.grad = self.grad
        return self.tensor

    def _was_converted(self) -> bool:
        now, before = self.tensor, self.values
        return (now.dtype, now.device, now.shape) != (before.dtype, before.device, before.shape)


@dataclass(frozen=True)
class _SavedModule:
    module: nn.Module
    training: bool
    hooks: Mapping[str, Mapping[Any, Any]]
    parameters: Mapping[str, _SavedTensor | None]
    buffers: Mapping[str, _SavedTensor | None]

    @classmethod
    def of(cls, module: nn.Module) -> "_SavedModule":
        return cls(
            module,
            module.training,
            {name: dict(getattr(module, name)) for name in _HOOKS},
            _saved_tensors(module._parameters),
            _saved_tensors(module._buffers),
        )

    def tensors(self) -> Iterator[Tensor]:
        for saved in (*self.parameters.values(), *self.buffers.values()):
            if saved is not None:
                yield saved.tensor

    def restore(self) -> None:
        self.module.training = self.training
        for name, hooks in self.hooks.items():
            _restore_table(getattr(self.module, name), hooks)
        _restore_tensors(self.module._parameters, self.parameters)
        _restore_tensors(self.module._buffers, self.buffers)


def _saved_tensors(table: Mapping[str, Tensor | None]) -> dict[str, _SavedTensor | None]:
    return {
        name: None if tensor is None else _SavedTensor.of(tensor) for name, tensor in table.items()
    }


def _restore_tensors(table: dict[str, Any], saved: Mapping[str, _SavedTensor | None]) -> None:
    _restore_table(
        table, {name: None if each is None else each.restore() for name, each in saved.items()}
    )


def _restore_table(table: dict[Any, Any], saved: Mapping[Any, Any]) -> None:
    table.clear()
    table.update(saved)


@contextmanager
def _seeded(seed: int, cuda_devices: list[int]) -> Iterator[None]:
    """Seeds the global generators and puts their states back."""
    numpy_state = np.random.get_state()  # noqa: NPY002 (models draw from the global one)
    python_state = random.getstate()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(cuda_devices))
        stack.callback(random.setstate, python_state)
        stack.callback(np.random.set_state, numpy_state)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        for device in cuda_devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield

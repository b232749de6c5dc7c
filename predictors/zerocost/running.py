"""Knows which module is running, and gives names to what it does."""

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["CallNames", "RunningModule"]


class RunningModule:
    """Follows the calls of a model's modules by hooks, between :meth:`start` and :meth:`stop`."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[str] = []
        self._hooks: list[RemovableHandle] = []

    def start(self) -> None:
        """Puts hooks into all modules."""
        for module in self._names:
            self._hooks.append(module.register_forward_pre_hook(self._entering))
            self._hooks.append(module.register_forward_hook(self._leaving))

    def stop(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @property
    def name(self) -> str:
        """Name of the innermost module that is running; empty for the outermost one."""
        return self._running[-1] if self._running else ""

    def _entering(self, module: nn.Module, inputs: Any) -> None:
        self._running.append(self._names[module])

    def _leaving(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._running.pop()


class CallNames:
    """Makes names for calls that may come again: ``name``, ``name#2``, ``name#3``, ..."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    def fresh(self, name: str) -> str:
        """Returns the name of the next call."""
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"

"""What may watch a model while a pass runs."""

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from torch import nn

__all__ = ["BackwardRecorder", "Recorder"]


class Recorder(Protocol):
    """Watches the forward pass of a model: a context that is open while the model runs.

    It may hook into the model, must take its hooks away at the end, and keeps what it saw in
    attributes.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        """Prepares to watch a model on a batch of that many samples."""

    def __enter__(self) -> Self:
        """Starts watching."""

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops watching."""


@runtime_checkable
class BackwardRecorder(Recorder, Protocol):
    """A recorder that also watches the backward pass of the loss, if there is one.

    It can hook into tensors while the model runs. Other backward passes may follow through the
    same tensors; only what happens while :meth:`backward` is open is that of the loss.
    """

    def backward(self) -> AbstractContextManager[None]:
        """Returns a context that is open during the backward pass of the loss."""

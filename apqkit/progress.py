"""Progress bars on a terminal, in a notebook, or as plain lines in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["RichProgress"]


class RichProgress:
    """Bars with time left on stderr or in a notebook; in a log one line a finished task.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal or self._console.is_jupyter
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> Self:
        """Starts to draw."""
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops to draw."""
        if self._live:
            self._bars.stop()

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Opens a bar of ``total`` steps; the function that is yielded advances it."""
        started = time.perf_counter()
        bar = self._bars.add_task(label, total=total)
        try:
            yield lambda steps: self._bars.advance(bar, steps)
        finally:
            self._bars.remove_task(bar)
        self.note(f"{label}: {total} in {time.perf_counter() - started:.1f} s")

    def note(self, text: str) -> None:
        """Says one line that stays."""
        self._console.print(text, soft_wrap=True, markup=False)

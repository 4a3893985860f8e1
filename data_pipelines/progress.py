"""Tells how a preparation goes: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY = 5.0  # seconds


class Progress:
    """Counts one stage after the other.

    Args:
        enabled: Says nothing at all if False.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._unit = ""
        self._total: int | None = None
        self._done = 0
        self._begun = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if self._enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """Prints one line."""
        if self._enabled:
            if self._bar is not None:
                self._bar.console.print(message, highlight=False, markup=False)
            else:
                print(message, file=sys.stderr, flush=True)

    def stage(self, name: str, unit: str, total: int | None, done: int = 0) -> None:
        """Begins to count `unit`s (`MB` for bytes, `rows`) of a stage, `total` if it is known."""
        self._stage, self._unit, self._total, self._done = name, unit, total, done
        self._begun = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total, completed=done)

    def advance(self, count: int) -> None:
        """Counts on; the line or bar follows."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._told > LINE_EVERY:
            self._told = time.monotonic()
            self.say(self._line())

    def _line(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._begun)
        scale = 1e-6 if self._unit == "MB" else 1.0
        of = "" if self._total is None else f" of {self._total * scale:,.0f}"
        return (
            f"{self._stage}: {self._done * scale:,.0f}{of} {self._unit} after {seconds:.0f} seconds"
        )

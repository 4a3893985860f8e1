"""SIGTERM, SIGUSR1 and Ctrl-C: finish the step, save, leave."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            # A second Ctrl-C means it: leave at once, the last checkpoint stands.
            sys.exit(128 + number)
        self.signal = signal.Signals(number)
        print(
            f"lsp: {self.signal.name} received; finishing this step, then saving",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches the signals for the duration; the previous handlers come back after."""
    request = StopRequest()
    previous = {number: signal.signal(number, request) for number in CAUGHT}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""SIGTERM, SIGUSR1 and Ctrl-C: finish the step, save, leave."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lsp.core.exit_codes import INTERRUPTED
from lsp.core.ranks import is_main

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

ECHO_SECONDS = 3.0
"""Ctrl-C in a terminal reaches a process twice under torchrun, which passes it on."""


class StopRequest:
    """Whether a signal has asked this process to stop.

    Only the loop has a step to finish; before and after it, a signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._deferring = False
        self._since = 0.0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals that arrive here are only noted; the loop looks at `signal` after each step."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._deferring:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            _tell(f"{signal.Signals(number).name} received; the same command goes on from here")
            sys.exit(INTERRUPTED)
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
            _tell(f"{self.signal.name} received; finishing this step, then saving")
        elif number == signal.SIGINT and time.monotonic() - self._since > ECHO_SECONDS:
            # A second Ctrl-C means it: leave at once, the last checkpoint stands.
            sys.exit(128 + number)


def _tell(message: str) -> None:
    # Not print: the signal may have interrupted one, and a buffer cannot be entered twice.
    if is_main():
        os.write(2, f"lsp: {message}\n".encode())


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

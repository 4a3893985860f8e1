"""Real processes that begin in milliseconds.

One server imports torch, DeepSpeed and lsp once; each process is a fork of it, with its own
signals, exit code and process group.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

PRELOADED = ["lsp.cli.main", "lsp.cli.command", "lsp.run.build", "lsp.run.finish"]
PRELOADED += ["lsp.parallel.plain", "lsp.parallel.zero", "lsp.models.reformer"]
# What these import only when it is needed.
PRELOADED += ["torch._dynamo", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "pandas"]


def forkserver() -> multiprocessing.context.ForkServerContext:
    """The way to start processes; the server itself starts with the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Session:
    """`lsp` with some words, in a process of its own.

    Args:
        words: What is typed after `lsp`.
        log: Where its output goes.
        before: Called in the process before `lsp`, for example to make its disk slow.
        environment: Variables set before that, for example those of a launcher.
    """

    def __init__(
        self,
        words: list[str],
        log: Path,
        before: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        self.process: ForkServerProcess = forkserver().Process(
            target=_session, args=(words, str(log), before, environment or {}), daemon=True
        )
        self.process.start()

    def wait(self, seconds: float = 60.0) -> int:
        """Exit code; minus the number of the signal that killed it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {seconds} s:\n{self.output}")
        return self.process.exitcode

    def signal(self, number: int) -> None:
        pid = self.process.pid
        assert pid is not None
        os.kill(pid, number)

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        """Waits until something is true, while the process lives."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.exitcode is not None or time.monotonic() > end:
                raise TimeoutError(f"it never came to that:\n{self.output}")
            time.sleep(0.001)

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def _session(
    words: list[str], log: str, before: Callable[[], None] | None, environment: dict[str, str]
) -> None:
    os.environ |= environment
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    from lsp.cli.main import main

    torch.set_num_threads(1)
    if before is not None:
        before()
    sys.exit(main(words))

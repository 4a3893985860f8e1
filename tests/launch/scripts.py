"""Running the launchers: their folder, and the tools they need."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lsp
from lsp.tracking.tracker import read_rows

ROOT = Path(lsp.__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"

STEPS = ["trainer.max_steps=60", "checkpoint.every=5", "parallelism=zero2", "trainer.micro_batch=1"]
"""Of the run that all launchers are given, on two processes."""


class Launcher:
    """A launcher that runs in the background, in a session of its own.

    Args:
        command: What is typed.
        log: Where its output goes.
        environment: Variables beside those of this process.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"still running after {seconds} s:\n{self.output}") from None

    def until(self, condition: Callable[[], Any], seconds: float = 120.0) -> None:
        """Waits until something is true, while it runs."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"it never came to that:\n{self.output}")
            time.sleep(0.005)

    def kill(self) -> None:
        """Ends it and everything it started, as a machine that loses power would."""
        for pid in reversed([self.process.pid, *descendants(self.process.pid)]):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they did, parents first."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def workers(pid: int) -> list[int]:
    """Those of them that train."""
    import psutil

    found = []
    for child in descendants(pid):
        try:
            if psutil.Process(child).environ().get("RANK") is not None:
                found.append(child)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def missing(*tools: str) -> str | None:
    """The first of some tools that is not here."""
    return next((tool for tool in tools if shutil.which(tool) is None), None)


def last_step(run: Path) -> int:
    """The last step that a run has logged; a resumed run may be behind it for a while."""
    return max((row["step"] for row in read_rows(run / "metrics.jsonl")), default=0)

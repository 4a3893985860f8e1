"""A run that hangs is told apart and ended, instead of holding its machines for days.

A thread in every process looks at the time since the loop last said what it does. Where that is
too long, all processes leave a report in the folder of the run, which they share, print it, and
exit with a code that launchers restart on. The folder works even where processes can no longer
reach each other.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import torch

from lsp.core import exit_file
from lsp.core.errors import UserError
from lsp.core.exit_codes import BUG, STALLED, USER_ERROR
from lsp.core.ranks import leave_quietly
from lsp.parallel.collectives import main_process_only
from lsp.parallel.stall import Report, report, summary

GRACE = 15.0
"""Seconds that the reports of all processes may take to arrive."""

LAST_WORDS = 3.0
"""Seconds after a lost contact in which another process may say why it left."""

LEAVING = 60.0
"""Seconds that a process may take to leave after another has."""

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "gloo/",
    "Timed out waiting",
    "Watchdog caught collective operation timeout",
    "NCCL error",
    "ncclRemoteError",
    "NCCL communicator was aborted",
)
"""What torch's messages say where another process is gone, or did not come in time."""


class Watchdog:
    """Knows what the main thread does, and ends the process where it no longer does it.

    Args:
        seconds: Without a word from the loop after which the run is ended; 0 never.
        folder: For the reports, the same on every process and made when it is needed, in one that
            exists. None where nothing is watched.
        rank: Number of this process.
        world_size: How many there are.
    """

    def __init__(
        self, seconds: float = 0.0, folder: Path | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.seconds, self.folder = seconds, folder
        self.rank, self.world_size = rank, world_size
        self.doing, self.samples = "starting", ""
        self.interval = min(2.0, max(0.02, seconds / 20))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._cleared = False
        self._beat()

    def phase(self, doing: str, samples: range | None = None) -> None:
        """Says what the loop does from now on; called often, so it does nothing else.

        Args:
            doing: For a person.
            samples: Numbers of the global samples that it works on.
        """
        self.doing = doing
        self.samples = f"{samples[0]}..{samples[-1]}" if samples else ""
        self._beat()

    def _beat(self) -> None:
        self._since, self._work = time.monotonic(), time.process_time()

    def __enter__(self) -> Watchdog:
        """Begins to watch; all processes have met, and the folder holds nothing of before."""
        if self.seconds and self.folder is not None:
            self._beat()
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(self.interval):
            now = time.monotonic()
            if now - looked > max(self.seconds / 2, 2 * self.interval):
                # The whole process stood still, as under SIGSTOP: nobody had a chance to work.
                self._beat()
            looked = now
            if self._stalled(now):
                self._end(f"no progress for {self.seconds:g} s (watchdog.seconds)")
            if self.world_size > 1 and self._path("stalled").exists():
                self._end("another process makes no progress")
            if self.world_size > 1 and self._left_long_ago():
                # NCCL does not always notice that a process is gone.
                code = self._word_of_others() or BUG
                exit_file.record(code)
                os._exit(code)

    def _stalled(self, now: float) -> bool:
        waited = now - self._since
        if waited <= self.seconds:
            return False
        # Alone there is nobody to wait for, and a slow step is no stall: its process computes.
        working = time.process_time() - self._work > waited / 10
        return self.world_size > 1 or not working

    def _left_long_ago(self) -> bool:
        with suppress(OSError):
            return time.time() - self._path("left").stat().st_mtime > LEAVING
        return False

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name

    def _end(self, reason: str) -> None:
        """Tells, waits until the others have told, and ends the process from outside."""
        own = report(self.rank, self.doing, time.monotonic() - self._since, self.samples)
        say(own.text(reason))
        with suppress(OSError):
            self._path(".").mkdir(exist_ok=True)
            self._path("stalled").touch()
            write_whole(self._path(f"rank-{self.rank:05d}.json"), own.to_json())
        if self.world_size > 1:
            self._sum_up()
        exit_file.record(STALLED)
        os._exit(STALLED)

    def _sum_up(self) -> None:
        """The first of those that report says who is behind; the others leave after it."""
        end = time.monotonic() + GRACE
        reports = self._reports()
        while len(reports) < self.world_size and time.monotonic() < end:
            time.sleep(self.interval)
            reports = self._reports()
        told = self._path("told")
        if self.rank == min((r.rank for r in reports), default=self.rank):
            say(f"lsp: the run hangs:\n{summary(reports, self.world_size)}\n{ADVICE}")
            with suppress(OSError):
                told.touch()
        end = time.monotonic() + GRACE
        while not told.exists() and time.monotonic() < end:
            time.sleep(self.interval)

    def _reports(self) -> list[Report]:
        found = []
        with suppress(OSError):
            for path in sorted(self._path(".").glob("rank-*.json")):
                found.append(Report.from_json(path.read_text()))
        return found

    def clear(self) -> None:
        """Clears away what an earlier attempt left; every process calls it, before it watches."""
        folder = self.folder
        if folder is not None:
            main_process_only(lambda: shutil.rmtree(folder, ignore_errors=True))
            self._cleared = True

    @contextmanager
    def contact(self) -> Iterator[None]:
        """Ends the process without a traceback where the others can no longer be reached.

        If another process has said why it left, this one leaves with its code and without a word.
        """
        try:
            yield
        except Exception as error:
            if self.world_size == 1:
                raise
            if not lost_contact(error):
                self._leave_word(error)
                raise
            code = self._word_of_others()
            if code is not None:
                leave_quietly(code)
            say(
                f"lsp: rank {self.rank} lost contact with another process while it was at: "
                f"{self.doing} ({_first_line(error)})\n{ADVICE}"
            )
            raise SystemExit(STALLED) from None

    def first_to_tell(self, what: str) -> bool:
        """Whether no other process has told about `what`, which may befall all at once."""
        if self.world_size == 1 or not self._cleared:
            return True
        try:
            self._path(".").mkdir(exist_ok=True)
            os.close(os.open(self._path(what), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def _leave_word(self, error: Exception) -> None:
        if self._cleared:
            code = USER_ERROR if isinstance(error, UserError) else BUG
            with suppress(OSError):
                self._path(".").mkdir(exist_ok=True)
                write_whole(self._path("left"), str(code))

    def _word_of_others(self) -> int | None:
        end = time.monotonic() + LAST_WORDS
        while self._cleared and time.monotonic() < end:
            with suppress(OSError, ValueError):
                return int(self._path("left").read_text())
            time.sleep(0.05)
        return None


ADVICE = (
    f"  exit code {STALLED}: the same command resumes from the last checkpoint. Where a step only "
    "takes long, raise watchdog.seconds"
)


def lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because of another process."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def _first_line(error: BaseException) -> str:
    line = str(error).splitlines()[0]
    return line.rpartition("] ")[2] if line.startswith("[") and "] " in line else line


def say(text: str) -> None:
    """Writes whole lines to stderr at once, past buffers that a stuck thread may hold."""
    os.write(2, f"{text}\n".encode())


def write_whole(path: Path, text: str) -> None:
    """Readers find all of it, or nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.rename(path)

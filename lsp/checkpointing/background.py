"""One snapshot on its way to the disk: every process writes its files, the main one publishes.

No collective happens here, because the threads of this file run beside training, which has its
own collectives under way: processes tell each other what is done by small files in the folder.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path

from lsp.checkpointing.files import hand_over, handed_over, record

Part = tuple[str, Callable[[Path], object]]
"""Name of a file, and what writes it."""

POLL_SECONDS = 0.05


class AbandonedError(Exception):
    """Nobody waits for this snapshot any more."""


class Writing:
    """Writes a snapshot's files and publishes it, at once or beside what goes on meanwhile.

    Args:
        folder: Where the files go; all processes see it.
        rank: Number of this process; 0 publishes.
        world_size: How many there are.
        publish: Makes a checkpoint of the folder, once every process has written its files.
    """

    def __init__(
        self, folder: Path, rank: int, world_size: int, publish: Callable[[], None]
    ) -> None:
        self.folder = folder
        self._rank = rank
        self._world_size = world_size
        self._publish = publish
        self._abandoned = threading.Event()
        self._files: Future[None] = Future()
        self._published: Future[None] = Future()
        self._threads: list[threading.Thread] = []

    def start(self, parts: list[Part]) -> None:
        """Writes and publishes in threads, and lets go of each part as soon as it is written."""
        self._in_thread(lambda: self._write(_taken_from(parts)), self._files)
        if self._rank == 0:
            self._in_thread(self._publish_when_written, self._published)
        else:
            self._published.set_result(None)

    def write_now(self, parts: Iterable[Part]) -> None:
        """Writes this process's files; a failure is kept for `wait_files`."""
        _run(lambda: self._write(parts), self._files)

    def fail(self, failure: Exception) -> None:
        """Takes note that this process has nothing to write, and why."""
        self._files.set_exception(failure)

    @property
    def failed(self) -> bool:
        """Whether something is known to have gone wrong in this process."""
        return any(f.done() and f.exception() is not None for f in (self._files, self._published))

    @property
    def busy(self) -> bool:
        """Whether this process still has files to write."""
        return not self._files.done()

    def wait_files(self, seconds: float | None = None) -> None:
        """Waits until this process's files are on disk; raises what went wrong."""
        self._files.result(seconds)

    def wait_published(self, seconds: float | None = None) -> None:
        """Waits, on the main process, until the checkpoint has its name; raises what went wrong.

        To be called when every process has written its files: otherwise it may never return.
        """
        self._published.result(seconds)

    def publish_now(self) -> None:
        """Publishes on the main process what all have written with `write_now`."""
        _run(self._publish if self._rank == 0 else lambda: None, self._published)

    def abandon(self) -> None:
        """Lets the threads end at the next opportunity, without a checkpoint."""
        self._abandoned.set()

    def join(self) -> None:
        """Waits for the threads to end, however they do."""
        for thread in self._threads:
            thread.join()

    def _in_thread(self, work: Callable[[], None], outcome: Future[None]) -> None:
        # Daemons: a process that has to end at once does not wait for the disk.
        thread = threading.Thread(target=_run, args=(work, outcome), name="checkpoint", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _write(self, parts: Iterable[Part]) -> None:
        records = {}
        for name, write in parts:
            self._check()
            write(self.folder / name)
            records[name] = record(self.folder / name)
        hand_over(self.folder, self._rank, records)

    def _publish_when_written(self) -> None:
        while not handed_over(self.folder, self._world_size):
            self._check()
            time.sleep(POLL_SECONDS)
        self._publish()

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise AbandonedError


def _taken_from(parts: list[Part]) -> Iterator[Part]:
    while parts:
        yield parts.pop(0)


def _run(work: Callable[[], None], outcome: Future[None]) -> None:
    try:
        work()
    except Exception as error:
        outcome.set_exception(error)
    else:
        outcome.set_result(None)

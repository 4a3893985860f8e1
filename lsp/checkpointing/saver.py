"""Takes the snapshots of a run, by all processes together, while training goes on."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from lsp.checkpointing.background import Writing
from lsp.checkpointing.config import CheckpointConfig
from lsp.checkpointing.memory import LaneMemory
from lsp.checkpointing.snapshot import Contents, TrainState
from lsp.checkpointing.store import CheckpointStore
from lsp.core.errors import UserError
from lsp.parallel.collectives import broadcast_object, main_process_only, together
from lsp.parallel.engine import Engine

T = TypeVar("T")

OWN_SECONDS, OTHERS_SECONDS = 30.0, 5.0
"""How long a run that something else has ended waits for the snapshot that is being written."""


class Saver:
    """Saves weights, optimizer state, generators and position of a run.

    A snapshot is a copy in host memory; training waits for that, and threads write it. Every
    process copies and writes its own share of the tensors, and the main one gives the folder its
    final name when all have written theirs.

    Args:
        store: Of the run.
        engine: Whose weights and optimizer state are saved.
        config: Whether training goes on meanwhile, and which checkpoints are kept.
        say: Tells the person, on the main process.
    """

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        config: CheckpointConfig,
        say: Callable[[str], None],
    ) -> None:
        self.store = store
        self.engine = engine
        self.config = config
        self.say = say
        self._writing: Writing | None = None
        self._held = 0.0

    @property
    def failed(self) -> bool:
        """Whether this process is known to have failed; `finish` then tells why."""
        return self._writing is not None and self._writing.failed

    def save(self, state: TrainState, config_yaml: str, memory: LaneMemory | None = None) -> float:
        """Takes a snapshot, after waiting for the one before; every process must call it.

        Args:
            state: Where the run stands.
            config_yaml: The resolved configuration.
            memory: What the model remembers of lanes that no other process saves, if anything.

        Returns:
            Seconds for which the caller was held.

        Raises:
            UserError: If one of the two could not be written, for example because the disk is
                full. The checkpoints before it are untouched.
        """
        began = time.perf_counter()
        self.finish()
        place, step = self.engine.runtime, state.step
        folder = broadcast_object(main_process_only(lambda: _explained(self.store.begin, step)))
        assert folder is not None
        contents = Contents(self.engine, state, config_yaml, memory)
        self._writing = writing = Writing(
            folder,
            place.rank,
            place.world_size,
            publish=lambda: self._publish(folder, step, contents, began),
        )
        if not self.config.asynchronous:
            writing.write_now(contents.parts())
            contents.take_part()
            self.finish()
            return time.perf_counter() - began
        try:
            parts = list(contents.parts())
        except Exception as failure:
            # The others are amid collectives; they hear of it at the next step, as of any other.
            writing.fail(failure)
            contents.take_part()
            return time.perf_counter() - began
        self._held = time.perf_counter() - began
        writing.start(parts)
        return self._held

    def finish(self) -> None:
        """Waits for the snapshot that is being written, if any; every process must call it.

        Raises:
            UserError: If it could not be written.
        """
        writing = self._writing
        if writing is None:
            return
        try:
            together(lambda: _explained(writing.wait_files))
            if not self.config.asynchronous:
                writing.publish_now()
            together(lambda: _explained(writing.wait_published))
        except (UserError, SystemExit):
            self._give_up(writing)
            raise
        self._writing = None

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Ends the threads when the block ends, whatever ended it.

        A snapshot that is being written when something else goes wrong gets a short time to
        become a checkpoint; when a person wants to leave at once, it gets none.
        """
        try:
            yield
        except Exception as error:
            self._last_chance(error)
            raise
        finally:
            if self._writing is not None:
                self._writing.abandon()

    def _last_chance(self, error: Exception) -> None:
        writing = self._writing
        if writing is None:
            return
        try:
            writing.wait_files(OWN_SECONDS)
            writing.wait_published(OTHERS_SECONDS)
        except TimeoutError:
            return
        except Exception as failure:
            self._give_up(writing)
            message = _explanation(failure)
            if message is not None and isinstance(error, OSError):
                # Of the same disk: whoever wrote first met it, but this is what it cost.
                raise UserError(message) from error
            self.say(f"lsp: {message or failure}")

    def _give_up(self, writing: Writing) -> None:
        """Ends the threads and clears away what they have written."""
        self._writing = None
        writing.abandon()
        if writing.busy:  # somebody insists on leaving; the next start clears away
            return
        writing.join()
        if self.engine.runtime.is_main:
            with suppress(OSError):
                self.store.clean()

    def _publish(self, folder: Path, step: int, contents: Contents, began: float) -> None:
        contents.check(folder)
        path = self.store.commit(folder, step)
        seconds = time.perf_counter() - began
        held = self._held if self.config.asynchronous else seconds
        self.say(f"step {step}: saved {path} in {seconds:.2f} s, training held {held:.2f} s")
        try:
            self.store.retain(self.config)
        except OSError as error:
            self.say(f"lsp: an old checkpoint could not be deleted: {error}")


def _explained(work: Callable[..., T], *arguments: object) -> T:
    """Runs `work`; what the user can mend becomes a UserError."""
    try:
        return work(*arguments)
    except Exception as failure:
        message = _explanation(failure)
        if message is None:
            raise
        raise UserError(message) from failure


def _explanation(failure: Exception) -> str | None:
    """What to tell the user; None if the failure is a bug of ours."""
    text = " ".join(str(failure).split())
    if isinstance(failure, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return (
            f"no memory for the copy of the weights that is written while training goes on "
            f"({text}): checkpoint.asynchronous=false copies a few gigabytes at a time"
        )
    if isinstance(failure, FileNotFoundError):
        reason = f"{failure.filename} is gone; all processes have to see the same checkpoint.root"
    elif getattr(failure, "errno", None) == errno.ENOSPC or "No space left" in text:
        reason = "the disk is full"
    elif isinstance(failure, OSError | SafetensorError):
        reason = text
    else:
        return None
    return (
        f"the checkpoint could not be written: {reason}. Earlier checkpoints are untouched: "
        "make room or set checkpoint.root elsewhere, then run the same command again"
    )

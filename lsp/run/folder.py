"""The folder of a run: one training at a time, and what lies there beside the checkpoints."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_pipelines.prepare import PreparedData
from lsp.checkpointing.files import write_text
from lsp.core.errors import UserError
from lsp.parallel.collectives import main_process_only
from lsp.run import phases
from lsp.run.compose import save_yaml
from lsp.run.config import RunConfig


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Keeps two trainings out of one run's folder.

    Raises:
        UserError: If another process is training there, or the folder cannot be made.
    """
    lock = main_process_only(lambda: _lock(run_dir))
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _lock(run_dir: Path) -> IO[str]:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"checkpoint.root: {run_dir} cannot be written ({error.strerror}); "
            "name a folder that can"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise UserError(
            f"another process is training in {run_dir}; wait for it, or choose another run_name"
        ) from error
    except OSError:  # some network file systems have no locks
        print(f"lsp: {run_dir} cannot be locked; train there with one command", file=sys.stderr)
    return lock


def write_run_files(config: RunConfig, prepared: PreparedData, *, fresh: bool) -> None:
    """Writes what a run has beside its checkpoints: the configuration and the tokenizer.

    Args:
        config: Completed.
        prepared: The data.
        fresh: Whether the run has no checkpoint yet.
    """
    write_text(config.run_dir / "config.yaml", save_yaml(config))
    tokenizer = config.run_dir / "tokenizer"
    if config.phase:
        phases.check_same_tokenizer(tokenizer, prepared.tokenizer_path)
    if fresh and tokenizer.exists():  # of a start that never came to a checkpoint
        shutil.rmtree(tokenizer)
    if not tokenizer.exists():
        aside = config.run_dir / ".tokenizer.aside"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(prepared.tokenizer_path, aside)
        aside.rename(tokenizer)

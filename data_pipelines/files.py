"""Files that are whole or not there: write aside, flush to disk, rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a crash leaves the old file or the new one, never a part."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(aside, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears as `path` only if the block ends well.

    If `path` has appeared meanwhile, that one is kept: who made it had the same contents in mind.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        commit(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def commit(aside: Path, path: Path) -> None:
    """Flushes a folder and everything in it to disk, then renames it to `path`."""
    for folder, _, names in os.walk(aside):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))
    try:
        os.rename(aside, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes renames inside a folder last through a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(path: Path, when_busy: Callable[[], None]) -> Iterator[None]:
    """Holds a lock that ends with the process, however that ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            when_busy()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def explain_disk_errors(root: str) -> Iterator[None]:
    """Turns a full or closed disk under `data.cache_root` into a message for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"no space left under data.cache_root={root}: free some, or choose another "
                "folder; what is done so far is kept and used again"
            ) from error
        if error.errno in _CLOSED:
            raise DataError(
                f"data.cache_root={root} cannot be written ({os.strerror(error.errno)}: "
                f"{error.filename}): choose another folder"
            ) from error
        raise


def checksum(path: Path) -> str:
    """Of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

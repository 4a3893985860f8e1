"""Who this process is, read from the variables that torchrun, Slurm's srun wrapper and MPI set."""

from __future__ import annotations

import os
import time
from typing import NoReturn


def rank() -> int:
    """Number of this process among all."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_one_machine() -> bool:
    """Whether all processes are known to be on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == world_size()


def is_main() -> bool:
    """Whether this process speaks to the user and writes the shared files."""
    return rank() == 0


def leave_quietly(code: int) -> NoReturn:
    """Ends this process because of something that another one tells the user.

    The launcher ends all processes as soon as it sees that one has left, so this one gives the
    other a second to speak.
    """
    time.sleep(1)
    raise SystemExit(code)

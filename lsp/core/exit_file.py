"""What workers and the launchers in `launch/` owe each other, across torchrun between them.

torchrun exits with 1 whatever its workers left with. So a launcher names a file on its machine in
`LSP_EXIT_FILE`; every worker adds the line `<attempt> <code>` as it leaves, and `launch/env.sh`
exits with what the lines of the last attempt say.

torchrun forgets workers that it is just starting when a signal ends it, and all when it is killed.
So workers ask the kernel for a signal when it ends, and keep a lock on the file while they live, on
which the launcher waits.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from lsp.core.exit_codes import DIVERGED, INTERRUPTED, LEAK, USER_ERROR

VARIABLE = "LSP_EXIT_FILE"
LAUNCHER = "LSP_LAUNCHER"
"""Number of the launcher's process: the parent of torchrun."""

PR_SET_PDEATHSIG = 1

FINAL = (USER_ERROR, DIVERGED, LEAK)
"""Codes after which starting again would only repeat what happened."""


def attempt() -> int:
    """How often torchrun has restarted the workers."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def attach() -> None:
    """Ties this process to the launcher that started it, if one did.

    Raises:
        SystemExit: If torchrun has already gone.
    """
    path = os.environ.get(VARIABLE)
    if not path or sys.platform != "linux":
        return
    try:
        # Held to the end of the process; inherited by none, so that only workers count.
        fcntl.flock(os.open(path, os.O_RDWR | os.O_CLOEXEC), fcntl.LOCK_SH)
    except OSError:
        raise SystemExit(INTERRUPTED) from None  # the launcher has removed it: nobody waits
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if _parent_of(os.getppid()) not in (None, os.environ.get(LAUNCHER)):
        raise SystemExit(INTERRUPTED)  # it ended before the kernel knew


def _parent_of(pid: int) -> str | None:
    """The number of a process's parent; None where that is kept from us."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))


def record(code: int) -> None:
    """Tells the launcher, if there is one that asks, with which code this process leaves."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    # Where it cannot be told, the launcher takes this process for lost, and starts it again.
    with suppress(OSError):
        # One short line in append mode is whole, whatever the workers beside it write.
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(file, f"{attempt()} {code}\n".encode())
        os.close(file)


def settled() -> int | None:
    """A final code of an earlier attempt under the same launcher, if there was one.

    torchrun restarts workers whatever they left with; those that it restarts leave at once.
    """
    path = os.environ.get(VARIABLE)
    if not path or not attempt():
        return None
    try:
        with open(path, encoding="utf-8") as file:
            codes = [int(line.split()[1]) for line in file]
    except (OSError, ValueError, IndexError):
        return None
    return next((code for code in codes if code in FINAL), None)

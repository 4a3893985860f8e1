"""Exit codes that reach what is above torchrun, which itself exits with 1 whatever they were.

A launcher names a file on its machine in `LSP_EXIT_FILE`; every worker adds the line
`<attempt> <code>` as it leaves, and `launch/env.sh` exits with what the lines of the last attempt
say.
"""

from __future__ import annotations

import os

from lsp.core.exit_codes import DIVERGED, USER_ERROR

VARIABLE = "LSP_EXIT_FILE"

FINAL = (USER_ERROR, DIVERGED)
"""Codes after which starting again would only repeat what happened."""


def attempt() -> int:
    """How often torchrun has restarted the workers."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def record(code: int) -> None:
    """Tells the launcher, if there is one that asks, with which code this process leaves."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        # One short line in append mode is whole, whatever the workers beside it write.
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{attempt()} {code}\n")
    except OSError:
        pass  # the launcher then takes this process for lost, and starts it again


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

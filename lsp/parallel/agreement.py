"""Processes that would not do the same are refused, before one waits for another for ever.

Every collective has to be entered by every process, and the number of collectives follows from the
configuration, the code and the shapes: the same everywhere, or the run hangs, or trains something
that nobody asked for.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lsp.core.errors import UserError
from lsp.core.exit_codes import USER_ERROR
from lsp.core.ranks import leave_quietly
from lsp.parallel.collectives import (
    broadcast_object,
    gather_objects,
    is_distributed,
    main_process_only,
    rank,
)

SHOWN = 8
"""Differences that are told; a process started in another way has many."""

VISIBLE_WITHIN = 10.0
"""Seconds until a file that one host wrote has to be seen by the others: network file systems
remember for a few that it was not there."""

Facts = Mapping[str, Any]


def agree(facts: Facts) -> None:
    """Compares what every process is about to do; every process must call it.

    Args:
        facts: Plain values by name; small.

    Raises:
        UserError: On rank 0, if any process has other facts; it names the ranks and what differs.
            The others leave without a word.
    """
    if not is_distributed():
        return
    facts = {key: json.dumps(value, default=str) for key, value in facts.items()}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if len(set(gather_objects(digest))) == 1:
        return
    everyone = gather_objects((socket.gethostname(), facts))
    if rank() == 0:
        raise UserError(_disagreement([f for _, f in everyone], [host for host, _ in everyone]))
    leave_quietly(USER_ERROR)


def _disagreement(facts: Sequence[Facts], hosts: Sequence[str]) -> str:
    keys = sorted(set().union(*facts))
    different = [key for key in keys if len({f.get(key) for f in facts}) > 1]
    lines = [f"  {key}: {_by_value(key, facts, hosts)}" for key in different[:SHOWN]]
    if len(different) > SHOWN:
        lines.append(f"  and {len(different) - SHOWN} more")
    return "\n".join(
        [
            "the processes are not about to do the same, and would hang or compute nonsense:",
            *lines,
            "Start every process with the same command, the same code and the same packages",
        ]
    )


def _by_value(key: str, facts: Sequence[Facts], hosts: Sequence[str]) -> str:
    """`0.1 on ranks 0-2, 0.2 on rank 3 (host-b)`: what most have comes first."""
    values = [f.get(key, "absent") for f in facts]
    parts = []
    for value, _ in Counter(values).most_common():
        who = [number for number, other in enumerate(values) if other == value]
        places = sorted({hosts[number] for number in who})
        where = f" ({', '.join(places[:4])})" if len(set(hosts)) > 1 else ""
        parts.append(f"{value} on {ranks_text(who)}{where}")
    return ", ".join(parts)


def ranks_text(who: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0-2, 5`."""
    runs = [
        [n for _, n in run] for _, run in groupby(enumerate(sorted(who)), lambda p: p[1] - p[0])
    ]
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank {text}" if len(who) == 1 else f"ranks {text}"


def check_shared(folder: Path, key: str) -> None:
    """Makes sure that a folder is one and the same for every process; all must call it.

    Args:
        folder: Exists on rank 0.
        key: The option that names it, for the message.

    Raises:
        UserError: On rank 0, if another process does not see there what rank 0 wrote.
    """
    if not is_distributed():
        return
    name = broadcast_object(main_process_only(lambda: _leave_note(folder)))
    seen = gather_objects((socket.gethostname(), _appears(folder / str(name))))
    if rank() == 0:
        (folder / str(name)).unlink(missing_ok=True)
    blind = [number for number, (_, found) in enumerate(seen) if not found]
    if not blind:
        return
    if rank() == 0:
        hosts = ", ".join(sorted({seen[number][0] for number in blind})[:8])
        raise UserError(
            f"{key}: {folder} is not the same folder for every process: {ranks_text(blind)} "
            f"({hosts}) do not see what rank 0 ({seen[0][0]}) wrote there. "
            "Name a folder on a file system that all hosts share"
        )
    leave_quietly(USER_ERROR)


def _leave_note(folder: Path) -> str:
    name = f".seen-by-all-{secrets.token_hex(8)}"
    (folder / name).touch()
    return name


def _appears(path: Path) -> bool:
    end = time.monotonic() + VISIBLE_WITHIN
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True

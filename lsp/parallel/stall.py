"""What a process can tell about where it stands, and what the reports of all say together."""

from __future__ import annotations

import json
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lsp.parallel.agreement import ranks_text

FRAMES = 12
"""Innermost calls that are shown of a stack."""


@dataclass(frozen=True)
class Collective:
    """The newest collective of a process in one group of processes.

    Attributes:
        number: How many this process has entered in the group.
        name: For example `gloo:all_reduce`.
        waiting: Whether it is still waiting in it.
    """

    number: int
    name: str
    waiting: bool


@dataclass(frozen=True)
class Report:
    """Where a process stands.

    Attributes:
        rank: Its number.
        host: Its machine.
        phase: What the loop said last that it does, with the step.
        seconds: Since it said so.
        samples: Numbers of the samples it works on; empty outside of micro-batches.
        collectives: The newest by group; empty where torch keeps no record.
        newest: The group of the last collective; None without one.
        stack: Calls of the main thread, the innermost last.
    """

    rank: int
    phase: str
    seconds: float
    samples: str = ""
    host: str = field(default_factory=socket.gethostname)
    collectives: dict[str, Collective] = field(default_factory=dict)
    newest: str | None = None
    stack: tuple[str, ...] = ()

    def text(self, reason: str) -> str:
        """The block that a person reads."""
        lines = [f"lsp: rank {self.rank} on {self.host}: {reason}"]
        lines.append(f"  phase            {self.phase}, for {self.seconds:.0f} s")
        if self.samples:
            lines.append(f"  samples          {self.samples}")
        if self.newest is not None:
            last = self.collectives[self.newest]
            state = "waiting in it" if last.waiting else "left it"
            lines.append(
                f"  last collective  #{last.number} {last.name} of group {self.newest}, {state}"
            )
        labels = ["stack", *[""] * len(self.stack)]
        lines += [f"  {label:<15}  {call}" for label, call in zip(labels, self.stack, strict=False)]
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        values = json.loads(text)
        groups = values.pop("collectives").items()
        collectives = {group: Collective(**collective) for group, collective in groups}
        return cls(**values | {"collectives": collectives, "stack": tuple(values["stack"])})


def report(rank: int, phase: str, seconds: float, samples: str) -> Report:
    """What this process can tell of itself, from any of its threads."""
    collectives, newest = last_collectives()
    return Report(
        rank,
        phase,
        seconds,
        samples,
        collectives=collectives,
        newest=newest,
        stack=main_thread_stack(),
    )


def main_thread_stack() -> tuple[str, ...]:
    """Calls of the main thread, the innermost last."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    calls = traceback.extract_stack(frame)[-FRAMES:] if frame is not None else []
    return tuple(f"{_short(call.filename)}:{call.lineno} in {call.name}" for call in calls)


def _short(path: str) -> str:
    """A path from its package on."""
    parts = Path(path).parts
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[parts.index(root) + 1 :])
    return "/".join(parts[-3:])


def last_collectives() -> tuple[dict[str, Collective], str | None]:
    """The newest collective of each group, and the group of the last, from torch's flight recorder.

    Empty where this torch keeps no record.
    """
    newest: dict[str, dict[str, Any]] = {}
    for entry in sorted(_flight_record(), key=lambda e: e["record_id"]):
        # Messages between two processes are not counted alike on both sides.
        if not entry["is_p2p"]:
            newest[entry["process_group"][0]] = entry
    found = {
        group: Collective(
            entry["collective_seq_id"],
            entry["profiling_name"],
            not entry["retired"] and entry["state"] != "completed",
        )
        for group, entry in newest.items()
    }
    return found, max(newest, key=lambda group: newest[group]["record_id"], default=None)


def _flight_record() -> list[dict[str, Any]]:
    try:
        from torch._C import _distributed_c10d

        recorder: Any = _distributed_c10d
        entries = json.loads(recorder._dump_fr_trace_json()).get("entries", [])
        needed = {"record_id", "is_p2p", "process_group", "collective_seq_id", "retired", "state"}
        return [entry for entry in entries if needed | {"profiling_name"} <= entry.keys()]
    except (ImportError, ValueError, AttributeError, RuntimeError):
        return []  # an interface without promises: the rest of the report does without


def summary(reports: Sequence[Report], world_size: int) -> str:
    """Who is behind, from what all processes tell."""
    silent = sorted(set(range(world_size)) - {r.rank for r in reports})
    lines = []
    if silent:
        have = "has" if len(silent) == 1 else "have"
        lines.append(f"{ranks_text(silent)} {have} left no report: frozen, unreachable or gone")
    lines += _behind(reports)
    by_phase: dict[str, list[int]] = {}
    for one in reports:
        by_phase.setdefault(one.phase, []).append(one.rank)
    if len(by_phase) > 1:
        lines += [f"{ranks_text(who)}: {phase}" for phase, who in by_phase.items()]
    return "\n".join(f"  {line}" for line in lines)


def _behind(reports: Sequence[Report]) -> list[str]:
    """Collectives that some wait in and others of the group have not entered."""
    lines = []
    for group in sorted({group for r in reports for group in r.collectives}):
        members = [r for r in reports if group in r.collectives]
        waits = {r.rank: r.collectives[group] for r in members if r.collectives[group].waiting}
        if not waits:
            continue
        last = max(collective.number for collective in waits.values())
        late = [r.rank for r in members if r.collectives[group].number < last]
        inside = [number for number, collective in waits.items() if collective.number == last]
        if late:
            name = waits[inside[0]].name
            have, wait = ("has", "waits"), ("have", "wait")
            lines.append(
                f"{ranks_text(late)} {(have if len(late) == 1 else wait)[0]} not entered "
                f"collective #{last} ({name}) of group {group} that {ranks_text(inside)} "
                f"{(have if len(inside) == 1 else wait)[1]} in"
            )
    return lines

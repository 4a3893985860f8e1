"""Several processes that tokenize units of work.

They are started as plain subprocesses rather than through `multiprocessing`: the caller's main
module is not run again in them (it may be any script), nothing of its threads or CUDA state is
inherited, and when it is killed they see the end of their input and leave too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from data_pipelines.config import DataConfig, PackingConfig
from data_pipelines.errors import DataError
from data_pipelines.sources import Unit

_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); " + (
    "from data_pipelines.worker import main; main()"
)


def run(
    units: Sequence[Unit],
    data: DataConfig,
    packing: PackingConfig,
    tokenizer: Path,
    root: Path,
    processes: int,
    report: Callable[[int], None],
    done: Callable[[Unit], bool],
) -> None:
    """Tokenizes units in several processes.

    Args:
        units: What to do; they are begun in this order.
        data: How to read them.
        packing: Whether documents end in an eos token.
        tokenizer: Folder of the tokenizer.
        root: Where units are stored.
        processes: How many.
        report: Is told bytes as they are done.
        done: Is called here, in this thread, for each finished unit; no more are begun once it
            returns False.

    Raises:
        DataError: if a unit cannot be read or stored.
    """
    job = {
        "data": asdict(data),
        "packing": asdict(packing),
        "tokenizer": str(tokenizer),
        "root": str(root),
    }
    waiting = iter(units)
    taking = threading.Lock()
    events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    stopped = threading.Event()

    def next_unit() -> Unit | None:
        with taking:
            return None if stopped.is_set() else next(waiting, None)

    workers = [_start(job) for _ in range(min(processes, len(units)))]
    threads = [
        threading.Thread(target=_serve, args=(worker, next_unit, events), daemon=True)
        for worker in workers
    ]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            kind, value = events.get()
            if kind == "bytes":
                report(value)
            elif kind == "end":
                running -= 1
            elif kind == "done":
                if not done(value):
                    stopped.set()
            else:
                raise _failure(kind, value)
    finally:
        stopped.set()
        for worker, thread in zip(workers, threads, strict=True):
            worker.kill()
            worker.wait()
            thread.join()
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def _start(job: dict[str, Any]) -> subprocess.Popen[str]:
    # One process per core is enough: the libraries must not start a thread per core in each.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(job) + "\n")
    return worker


def _serve(
    worker: subprocess.Popen[str],
    next_unit: Callable[[], Unit | None],
    events: SimpleQueue[tuple[str, Any]],
) -> None:
    """Gives one worker a unit after the other and passes on what it says."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        while (unit := next_unit()) is not None:
            worker.stdin.write(json.dumps(unit.to_json()) + "\n")
            worker.stdin.flush()
            for line in worker.stdout:
                kind, value = json.loads(line)
                if kind == "done":
                    events.put(("done", unit))
                    break
                events.put((kind, value))
                if kind != "bytes":
                    return
            else:
                events.put(("lost", worker.wait()))
                return
    except BrokenPipeError:
        events.put(("lost", worker.wait()))
        return
    events.put(("end", None))


def _failure(kind: str, value: Any) -> Exception:
    if kind == "data_error":
        return DataError(value)
    if kind == "os_error":
        return OSError(*value)
    if kind == "lost":
        reason = f"was killed by signal {-value}" if value < 0 else f"ended with code {value}"
        hint = " (out of memory? try a smaller data.num_processes)" if value == -9 else ""
        return DataError(
            f"a process that tokenizes {reason}{hint}; start again: what is done is kept"
        )
    return RuntimeError(f"a process that tokenizes failed:\n{value}")

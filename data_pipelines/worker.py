"""The process at the other end of `pool.run`: units come in as lines, news go out as lines."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from data_pipelines.config import DataConfig, PackingConfig
from data_pipelines.errors import DataError
from data_pipelines.sources import Unit
from data_pipelines.tokenizers import load_encoder
from data_pipelines.units import encode_unit

_REPORT_EVERY = 0.5  # seconds


def main() -> None:
    """Serves until the input ends; then leaves at once, whatever it is doing."""
    # Ctrl-C reaches the whole process group; the parent decides, and closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for news

    def say(kind: str, value: object = None) -> None:
        channel.write(json.dumps([kind, value]) + "\n")
        channel.flush()

    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    try:
        job = json.loads(lines.get())
        data, packing = DataConfig(**job["data"]), PackingConfig(**job["packing"])
        encoder, root = load_encoder(Path(job["tokenizer"])), Path(job["root"])
        while True:
            unit = Unit.from_json(json.loads(lines.get()))
            news = _Bytes(say)
            encode_unit(unit, data, packing, encoder, root, news.add)
            news.flush()
            say("done")
    except DataError as error:
        say("data_error", str(error))
    except OSError as error:
        say("os_error", [error.errno, error.strerror, str(error.filename)])
    except Exception:
        say("bug", traceback.format_exc())


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    # The parent is done or dead. A unit half written is removed by whoever prepares next.
    os._exit(0)


class _Bytes:
    """Adds up bytes and reports them now and then."""

    def __init__(self, say: Callable[[str, object], None]) -> None:
        self._say = say
        self._held = 0
        self._last = time.monotonic()

    def add(self, count: int) -> None:
        self._held += count
        if time.monotonic() - self._last > _REPORT_EVERY:
            self.flush()

    def flush(self) -> None:
        self._say("bytes", self._held)
        self._held, self._last = 0, time.monotonic()

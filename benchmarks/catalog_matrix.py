"""Does every architecture train with each of its objectives, resume exactly, and shard?

python benchmarks/catalog_matrix.py                           # what is not done; writes the table
python benchmarks/catalog_matrix.py --only big_bird t5        # some rows; only prints
python benchmarks/catalog_matrix.py --only t5 --again --save  # anew, and into the table

Each cell is `lsp train` itself, on a tiny model and a small corpus, on CPU with gloo:

- trains: four steps, the losses finite
- resume: killed after the third step, it goes on from the second; weights and optimizer state at
  the end are those of `trains`, bit for bit
- zero2, zero3: two processes; losses as in `trains`

Processes run through many cells. One that hangs is ended, its cell says so, and others go on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks._catalog import Pair, pairs, write_corpus
from benchmarks._common import save, stamp, table
from lsp.checkpointing.files import read_tensors
from lsp.checkpointing.store import CheckpointStore, read_weights
from lsp.data.config import ObjectiveConfig
from lsp.parallel.config import ParallelismConfig
from lsp.parallel.runtime import forget_engine, runtime
from lsp.run import build
from lsp.run.compose import load_train_config
from lsp.run.config import RunConfig
from lsp.tracking.tracker import read_rows
from lsp.training.trainer import Trainer

STATE = Path("checkpoints/catalog_matrix.jsonl")
"""Finished cells, a line for each; the last of a cell counts."""
ALONE, SHARDED = ("trains", "resume"), ("zero2", "zero3")
COLUMNS = (*ALONE, *SHARDED)
WORKS, NOT_RUN = "works", "not run"
STEPS, KILLED_AFTER = 4, 3
LENGTH, ROWS = 128, 4
CLOSE = 1e-4
"""Largest relative difference of a loss between one process and two."""
PATIENCE = 180.0
"""Seconds that a cell may take."""
PRELOADED = ["lsp.run.build", "lsp.parallel.zero", "lsp.parallel.plain", "torch._dynamo"]
PRELOADED += ["lsp.models.registry", "transformers"]


@dataclass(frozen=True)
class Cell:
    """One training, or two of which one goes on with the other."""

    pair: Pair
    column: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.pair.name, self.pair.objective, self.column


class KilledError(Exception):
    """What a run dies of on purpose."""


@cache
def composed(root: Path) -> RunConfig:
    """What all cells have; composing takes longer than four steps."""
    return load_train_config(
        [
            "data=text",
            "data.num_processes=1",
            "data.validation_fraction=0.1",
            f"data.cache_root={root / 'prepared'}",
            f"data.paths=[{root / 'corpus'}/*.txt]",
            "tokenizer=word",
            "tokenizer.vocab_size=120",
            f"sequence_length={LENGTH}",
            f"tokens_per_step={ROWS * LENGTH}",
            f"checkpoint.root={root / 'runs'}",
            "checkpoint.every=2",
            f"trainer.max_steps={STEPS}",
            "trainer.log_every=1",
            "trainer.eval_every=0",
            "trainer.sample_tokens=0",
            "trainer.peak_tflops=1",
            "trainer.dry_run=false",
            "verify.at_start=false",
            "watchdog.seconds=0",
            "schedule.warmup_steps=1",
        ]
    )


def config_of(cell: Cell, root: Path, run_name: str) -> RunConfig:
    """The configuration of a cell."""
    config, pair = copy.deepcopy(composed(root)), cell.pair
    config.run_name, config.architecture = run_name, pair.architecture
    config.objective = ObjectiveConfig(pair.objective, decoder_start=pair.start or None)
    config.packing.strategy = pair.packing
    if pair.objective == "translation":
        config.data = replace(
            config.data,
            source="jsonl",
            paths=[str(root / "corpus" / "*.jsonl")],
            field="text",
            target_field="other",
        )
    strategy = cell.column if cell.column in SHARDED else "single"
    config.parallelism = ParallelismConfig(strategy, param_persistence_threshold=0)
    return config


def run_cell(cell: Cell, root: Path) -> str:
    """Works, or why not."""
    name = re.sub(r"[ ()]+", "_", f"{cell.pair.name}-{cell.pair.objective}")
    folder = root / "runs" / (name if cell.column == "trains" else f"{name}-{cell.column}")
    if int(os.environ.get("RANK", "0")) == 0:
        shutil.rmtree(folder, ignore_errors=True)
    if cell.column == "resume":
        with killed(), suppress(KilledError):
            build.run_training(config_of(cell, root, folder.name))
    build.run_training(config_of(cell, root, folder.name))
    losses = losses_of(folder)
    if not all(map(math.isfinite, losses)) or len(losses) != STEPS:
        return f"losses {losses}"
    expected = root / "runs" / name
    if cell.column == "resume":
        ours, theirs = tensors(folder), tensors(expected)
        differ = [key for key, value in theirs.items() if not torch.equal(ours[key], value)]
        return f"{len(differ)} tensors differ, {differ[0]} first" if differ else WORKS
    if cell.column in SHARDED:
        pairs_of = zip(losses, losses_of(expected), strict=True)
        difference = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs_of)
        return WORKS if difference <= CLOSE else f"losses differ by {difference:.1e}"
    return WORKS


@contextmanager
def killed() -> Iterator[None]:
    """Runs end after the third step, between two checkpoints."""
    after_step = Trainer.after_step

    def dying(self: Trainer, result: Any) -> None:
        after_step(self, result)
        if self.state.step == KILLED_AFTER:
            raise KilledError

    Trainer.after_step = dying  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.after_step = after_step  # type: ignore[method-assign]


def losses_of(folder: Path) -> list[float]:
    """Of the steps of a run."""
    return [float(row["loss"]) for row in read_rows(folder / "metrics.jsonl")]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state at the end of a run."""
    step_dir = CheckpointStore(folder).latest()
    assert step_dir is not None
    return {**read_weights(step_dir), **read_tensors(step_dir, "optimizer")}


def work(rank: int, processes: int, port: int, cells: list[Cell], root: Path, events: Path) -> None:
    """What a process does: one cell after the other; the first of a group keeps the record."""
    log = (root / f"{events.stem}-{rank}.log").open("a", buffering=1)
    torch.set_num_threads(1)
    build._finish = lambda *_, **__: None  # pictures of the losses, which nobody looks at
    with redirect_stdout(log), redirect_stderr(log), ExitStack() as stack:
        if processes > 1:
            os.environ |= launched(rank, processes, port)
            # One process group for all cells: DeepSpeed holds on to the first that it sees.
            place = stack.enter_context(runtime(ParallelismConfig("ddp", timeout_seconds=60)))
            build.runtime = lambda _: nullcontext(place)
        for cell in cells:
            if rank == 0:
                note(events, {"began": cell.key})
            try:
                result = run_cell(cell, root)
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                result = f"{type(error).__name__}: {first}"
            if rank == 0:
                note(events, {"cell": cell.key, "result": result})
            if processes > 1 and result != WORKS:
                os._exit(1)  # the other may be elsewhere: this group is of no use any more
            forget_engine()


def launched(rank: int, processes: int, port: int) -> dict[str, str]:
    """What a launcher would set."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def note(events: Path, event: dict[str, Any]) -> None:
    with events.open("a") as file:
        file.write(json.dumps(event) + "\n")


def run_pairs(
    chosen: Sequence[Pair],
    root: Path,
    state: Path,
    columns: Sequence[str],
    known: dict[tuple[str, ...], str],
) -> None:
    """Runs the cells of some pairs that have no result yet."""
    waiting = [
        pair
        for pair in chosen
        if any((pair.name, pair.objective, column) not in known for column in columns)
    ]
    # The others are compared with `trains`, whose folder has to be there.
    alone = [
        Cell(pair, column) for pair in waiting for column in ALONE if column in ("trains", *columns)
    ]
    halves = [[cell for cell in alone if cell.pair in waiting[lane::2]] for lane in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda half: run(half, root, state, processes=1), halves))
    found, sharded = finished(state), []
    for cell in (Cell(pair, column) for pair in waiting for column in SHARDED if column in columns):
        if found[(cell.pair.name, cell.pair.objective, "trains")] == WORKS:
            sharded.append(cell)
        else:
            record(state, cell, "does not train alone")
    run(sharded, root, state, processes=2)


def run(cells: Iterable[Cell], root: Path, state: Path, *, processes: int) -> None:
    """Runs cells that `processes` take part in; a group that stops is replaced.

    Args:
        cells: Of `ALONE` for one process, of `SHARDED` for two.
        root: Scratch folder.
        state: Gets a line for each finished cell.
        processes: Of a group.
    """
    waiting = list(cells)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    while waiting:
        number = len(list(root.glob("events-*.jsonl")))
        events = root / f"events-{number}-{waiting[0].pair.name}-{len(waiting)}.jsonl"
        events.touch()
        arguments = (processes, free_port(), waiting, root, events)
        group = [
            context.Process(target=work, args=(rank, *arguments), daemon=True)
            for rank in range(processes)
        ]
        for process in group:
            process.start()
        done = watch(group, events, state)
        unfinished = [cell for cell in waiting if cell.key not in done]
        if unfinished and len(unfinished) == len(waiting):
            record(state, unfinished.pop(0), "the processes ended before it began")
        waiting = unfinished


def watch(group: list[ForkServerProcess], events: Path, state: Path) -> set[tuple[str, ...]]:
    """Follows a group until it ends or hangs; returns the cells that have a result."""
    done: set[tuple[str, ...]] = set()
    current: tuple[str, ...] | None = None
    since, position = time.monotonic(), 0
    while True:
        alive = [process for process in group if process.is_alive()]
        if len(alive) < len(group):  # the others follow, or wait for what has gone
            for process in alive:
                process.join(5)
        text = events.read_text()
        lines, position = text[position:].splitlines(), len(text)
        for event in map(json.loads, lines):
            since = time.monotonic()
            if "began" in event:
                current = tuple(event["began"])
            else:
                current, result = None, event["result"]
                done.add(tuple(event["cell"]))
                record(state, tuple(event["cell"]), result)
        hangs = time.monotonic() - since > PATIENCE
        if len(alive) < len(group) or hangs:
            break
        time.sleep(0.05)
    for process in group:
        process.kill()
    for process in group:
        process.join()
    if current is not None:
        codes = ", ".join(str(process.exitcode) for process in group)
        reason = f"no end after {PATIENCE:.0f} s" if hangs else f"the process ended ({codes})"
        done.add(current)
        record(state, current, reason)
    return done


def record(state: Path, cell: Cell | tuple[str, ...], result: str) -> None:
    """Keeps a result, and tells it."""
    key = cell.key if isinstance(cell, Cell) else cell
    state.parent.mkdir(parents=True, exist_ok=True)
    note(state, {"cell": key, "result": result})
    print(f"{' '.join(key)}: {result}", file=sys.stderr, flush=True)


def finished(state: Path) -> dict[tuple[str, ...], str]:
    """Results so far."""
    if not state.exists():
        return {}
    events = map(json.loads, state.read_text().splitlines())
    return {tuple(event["cell"]): event["result"] for event in events}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="rows")
    parser.add_argument("--objectives", nargs="+", default=[])
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument("--again", action="store_true", help="finished cells too")
    parser.add_argument("--save", action="store_true", help="write the table also with --only")
    parser.add_argument("--table", action="store_true", help="run nothing, write what is finished")
    parser.add_argument("--state", type=Path, default=STATE)
    arguments = parser.parse_args()
    everything = pairs()
    chosen = [
        pair
        for pair in everything
        if pair.name in (arguments.only or [pair.name])
        and pair.objective in (arguments.objectives or [pair.objective])
    ]
    if arguments.table:
        print(write(everything, finished(arguments.state)))
        return 0
    known = {} if arguments.again else finished(arguments.state)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lsp-matrix-") as folder:
        root = Path(folder)
        write_corpus(root / "corpus")
        # What papers train their architectures for comes first.
        for number in range(1 + max(pair.number for pair in chosen)):
            some = [pair for pair in chosen if pair.number == number]
            run_pairs(some, root, arguments.state, arguments.columns, known)
    found = finished(arguments.state)
    seconds = time.perf_counter() - began
    print(f"{seconds:.0f} s", file=sys.stderr)
    print(as_text(chosen, found))
    if arguments.save or not (arguments.only or arguments.objectives):
        print(write(everything, found))
    keys = [(pair.name, pair.objective, column) for pair in chosen for column in arguments.columns]
    return int(any(found.get(key) != WORKS for key in keys))


def write(shown: Sequence[Pair], found: dict[tuple[str, ...], str]) -> Path:
    """Keeps the table."""
    title = "Every architecture with each of its objectives"
    return save("catalog_matrix", title, as_text(shown, found), stamp("transformers", "deepspeed"))


def as_text(shown: Sequence[Pair], found: dict[tuple[str, ...], str]) -> str:
    """The table, and what it means."""
    rows = [
        {"architecture": pair.name, "objective": pair.objective}
        | {c: found.get((pair.name, pair.objective, c), NOT_RUN) for c in COLUMNS}
        for pair in shown
    ]
    cells = [row[column] for row in rows for column in COLUMNS]
    works, waiting = cells.count(WORKS), cells.count(NOT_RUN)
    head = TEXT.format(
        close=CLOSE,
        works=works,
        waiting=waiting,
        fails=len(cells) - works - waiting,
        count=len(cells),
    )
    return f"{head}\n\n{table(rows)}"


TEXT = """Each cell is `lsp train` on a tiny model and a small corpus of text, four steps of AdamW
in fp32 on CPU, without dropout and routers' noise.

- `trains`: the losses are finite
- `resume`: killed after the third step, the run goes on from the checkpoint of the second; weights
  and optimizer state at the end are those of the run that was not killed, bit for bit
- `zero2`, `zero3`: two processes with gloo; losses within {close:.0e} of one process

Of {count} cells {works} work, {fails} do not, and {waiting} were not run."""


if __name__ == "__main__":
    raise SystemExit(main())

"""Two processes write one checkpoint: training goes on meanwhile, and it is whole or absent."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lsp.checkpointing.store import CheckpointStore
from lsp.core.exit_codes import DONE, USER_ERROR
from lsp.tracking.tracker import read_rows
from tests.distributed.spawn import environment, free_port
from tests.processes import Session
from tests.run.tiny import assert_same_run, words, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("shared") / "corpus")


def train(
    folder: Path, corpus: Path, *before: Callable[[], None] | None, name: str = "run"
) -> list[Session]:
    """Two processes of ZeRO-2; `before` is done in each of them."""
    port, number = free_port(), len(list(folder.glob("*.log")))
    typed = words(folder, corpus, "parallelism=zero2", "checkpoint.keep_last=9", name=name)
    return [
        Session(
            ["train", *typed], folder / f"{number}-{rank}.log", hook, environment(rank, 2, port)
        )
        for rank, hook in enumerate(before or (None, None))
    ]


def before_writing(step: int, work: Callable[[], Any]) -> None:
    """Does something in the thread that writes this process's part of a step's checkpoint."""
    import lsp.checkpointing.background as background

    original = background.hand_over

    def hand_over(folder: Path, rank: int, records: Any) -> None:
        if folder.name.startswith(f".step-{step:08d}"):
            work()
        original(folder, rank, records)

    background.hand_over = hand_over


def wait_for_row(path: Path, step: int) -> None:
    while not any(row["step"] >= step for row in read_rows(path)):
        time.sleep(0.01)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_training_goes_on_while_a_process_writes(tmp_path, corpus):
    """The second process does not end writing step 4 before both have trained step 7."""
    rows = tmp_path / "run" / "metrics.jsonl"
    slow = partial(before_writing, 4, partial(wait_for_row, rows, 7))
    sessions = train(tmp_path, corpus, None, slow)
    assert [session.wait() for session in sessions] == [DONE, DONE], sessions[0].output
    output = sessions[0].output
    assert output.index("step 7/12") < output.index("step 4: saved") < output.index("step 9/12")
    assert CheckpointStore(tmp_path / "run").steps() == [4, 8, 12]
    stalls = {row["step"]: row["save_stall_seconds"] for row in read_rows(rows)}
    assert [step for step, stall in stalls.items() if stall is not None] == [5, 9]

    sessions = train(tmp_path, corpus, name="whole")
    assert [session.wait() for session in sessions] == [DONE, DONE]
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    for step in (4, 8, 12):  # to the byte, where no clock is in it
        ours, theirs = (
            {
                path.name: path.read_bytes()
                for path in CheckpointStore(run).path(step).glob("*.saf*")
            }
            for run in (tmp_path / "run", tmp_path / "whole")
        )
        assert ours == theirs
        assert {"model-00002.safetensors", "optimizer-00002.safetensors"} < ours.keys()


@pytest.mark.parametrize("step", [8, 12], ids=["amid", "last"])
def test_a_full_disk_of_one_process_ends_both(tmp_path, corpus, step):
    sessions = train(tmp_path, corpus, None, partial(before_writing, step, full_disk))
    assert [session.wait() for session in sessions] == [USER_ERROR, USER_ERROR]
    told = [session.output.count("the disk is full. Earlier checkpoints") for session in sessions]
    assert told == [0, 1]
    assert all("Traceback" not in session.output for session in sessions)
    store = CheckpointStore(tmp_path / "run")
    assert store.steps() == list(range(4, step, 4))
    assert store.latest() == store.path(step - 4)
    assert not list(store.run_dir.glob(".step*"))
    if step == 8:  # room was made
        sessions = train(tmp_path, corpus)
        assert [session.wait() for session in sessions] == [DONE, DONE]
        assert "resuming" in sessions[0].output


def test_killed_while_the_other_has_written(tmp_path, corpus):
    run = tmp_path / "run"
    slow = partial(before_writing, 8, partial(time.sleep, 1000))
    sessions = train(tmp_path, corpus, None, slow)
    sessions[0].until(lambda: list(run.glob(".step-00000008-*.aside/.written-00000.json")))
    for session in reversed(sessions):
        session.signal(signal.SIGKILL)
        assert session.wait() == -signal.SIGKILL
    store = CheckpointStore(run)
    assert store.latest() == store.path(4)
    sessions = train(tmp_path, corpus)
    assert [session.wait() for session in sessions] == [DONE, DONE]
    assert f"resuming {run} at step 4" in sessions[0].output
    assert store.steps() == [4, 8, 12]
    assert not list(run.glob(".step*"))

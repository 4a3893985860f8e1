"""`kill -9` of a random process at a random moment: checkpoints are whole, no more is lost."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from lsp.checkpointing.files import verify
from lsp.checkpointing.store import CheckpointStore
from lsp.core.exit_codes import DONE, STALLED
from tests.distributed.spawn import environment, free_port
from tests.processes import Session
from tests.run.tiny import assert_same_run, words

EVERY = 3


@pytest.mark.parametrize(
    "kills",
    [pytest.param(2, id="twice"), pytest.param(20, id="20 times", marks=pytest.mark.slow)],
)
def test_killed_at_random(tmp_path, corpus, kills):
    generator, run = random.Random(kills), tmp_path / "run"
    steps = [f"trainer.max_steps={kills * 6 + 10}", f"checkpoint.every={EVERY}"]
    steps += ["trainer.eval_every=20", "parallelism=zero2"]

    def start(name: str = "run") -> list[Session]:
        typed, port = ["train", *words(tmp_path, corpus, *steps, name=name)], free_port()
        number = len(list(tmp_path.glob("*.log")))
        return [
            Session(typed, tmp_path / f"{number}-{rank}.log", None, environment(rank, 2, port))
            for rank in range(2)
        ]

    assert [session.wait(240) for session in start("whole")] == [DONE, DONE]
    moments = {"starting": 0, "training": 0, "saving": 0}
    for number in range(kills):
        moment = ("saving", "training", "starting", "saving", "training")[number % 5]
        before = saved(run)
        sessions = start()
        # Judged by what this session says: rows and folders may be those of the one before.
        if moment == "starting":
            time.sleep(generator.uniform(0, 2))
        elif moment == "training":
            reach = before + EVERY + generator.randint(1, EVERY)
            sessions[0].until(lambda reach=reach: f"step {reach}/" in sessions[0].output)
            sessions[0].until(lambda before=before: saved(run) > before)
            time.sleep(generator.uniform(0, 0.05))
        else:
            sessions[0].until(lambda: "reformer:" in sessions[0].output)
            sessions[0].until(lambda: list(run.glob(".step-*.aside")))
            time.sleep(generator.uniform(0, 0.03))
        moments[moment] += bool(moment != "saving" or list(run.glob(".step-*.aside")))

        killed, left = generator.sample(sessions, 2)
        killed.signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        complete = saved(run)  # what the next start has to find
        if moment == "starting":
            left.signal(signal.SIGKILL)  # it may wait for the other's first word, as launchers know
            left.wait()
        else:
            # Nobody has to end the other: it meets the loss at the next thing they do together.
            assert left.wait(60) == STALLED, left.output
        for step in CheckpointStore(run).steps():
            verify(CheckpointStore(run).path(step))
        assert saved(run) >= complete >= before

    at = saved(run)
    sessions = start()
    assert [session.wait(240) for session in sessions] == [DONE, DONE], sessions[0].output
    assert at > 0
    assert f"resuming {run} at step {at}" in sessions[0].output
    assert_same_run(run, tmp_path / "whole")
    assert not list(run.glob(".step-*"))
    assert moments["saving"] > 0


def saved(run: Path) -> int:
    return max(CheckpointStore(run).steps(), default=0)

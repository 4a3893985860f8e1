"""`launch/local.sh` with the real torchrun: workers are killed, launchers told to stop."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from lsp.checkpointing.store import CheckpointStore
from lsp.core.exit_codes import DONE, INTERRUPTED, USER_ERROR
from tests.launch.scripts import LAUNCH, STEPS, Launcher, last_step, missing, workers
from tests.run.tiny import assert_same_run, words

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing("bash") is not None, reason="bash is not installed"),
]


def local(folder: Path, corpus: Path, *overrides: str, **variables: str) -> Launcher:
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    command = ["bash", str(LAUNCH / "local.sh"), *words(folder, corpus, *STEPS, *overrides)]
    return Launcher(command, log, {"NPROC": "2", "OMP_NUM_THREADS": "1"} | variables)


def test_lost_workers_are_replaced(tmp_path, corpus, whole):
    run, generator = tmp_path / "run", random.Random(1)
    launched = local(tmp_path, corpus, MAX_RESTARTS="2")
    for step in (12, 31):
        launched.until(lambda step=step: last_step(run) >= step)
        os.kill(generator.choice(workers(launched.process.pid)), signal.SIGKILL)
        launched.until(lambda step=step: last_step(run) < step)  # it went back
    assert launched.wait(180) == DONE, launched.output
    assert launched.output.count(f"resuming {run} at step") == 2
    assert_same_run(run, whole)


def test_workers_that_are_lost_too_often(tmp_path, corpus):
    launched = local(tmp_path, corpus, "trainer.max_steps=100000", MAX_RESTARTS="0")
    launched.until(lambda: last_step(tmp_path / "run") >= 2)
    os.kill(workers(launched.process.pid)[-1], signal.SIGKILL)
    assert launched.wait(60) == 76, launched.output


def test_a_mistake_is_told_once_and_not_tried_again(tmp_path, corpus):
    launched = local(tmp_path, corpus, "optimizer=muon")
    assert launched.wait() == USER_ERROR
    assert launched.output.count("optimizer=muon needs whole weight matrices") == 1


def test_told_to_stop_at_any_moment(tmp_path, corpus, whole):
    """Saved and left within 30 seconds, never started again, and nothing is lost."""
    run, generator = tmp_path / "run", random.Random(2)
    moments = [
        lambda launched: time.sleep(generator.uniform(0, 4)),  # while torchrun begins
        lambda launched: launched.until(lambda: workers(launched.process.pid)),
        lambda launched: launched.until(lambda: (run / ".lock").exists()),
        lambda launched: launched.until(lambda: list(run.glob(".step-*.aside"))),
        lambda launched: launched.until(lambda: last_step(run) >= at + generator.randint(2, 6)),
        lambda launched: launched.until(lambda: last_step(run) >= at + generator.randint(2, 6)),
    ]
    for number, reach in enumerate(moments):
        at = max(CheckpointStore(run).steps(), default=0)
        launched = local(tmp_path, corpus)
        reach(launched)
        begun, reached = time.monotonic(), last_step(run)
        launched.process.send_signal(generator.choice((signal.SIGTERM, signal.SIGUSR1)))
        assert launched.wait(60) == INTERRUPTED, launched.output
        assert time.monotonic() - begun < 30
        assert 'Traceback (most recent call last):\n  File "' + str(LAUNCH.parent / "lsp") not in (
            launched.output
        )
        assert max(CheckpointStore(run).steps(), default=0) >= (reached if number > 2 else at)
        assert launched.output.count("resuming") <= 1  # not started again
    launched = local(tmp_path, corpus)
    assert launched.wait(180) == DONE, launched.output
    assert_same_run(run, whole)

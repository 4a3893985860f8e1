"""Hangs that are caused on purpose: told by every process, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from lsp.core.errors import UserError
from lsp.core.exit_codes import BUG, DONE, STALLED, USER_ERROR
from tests.distributed.spawn import environment, free_port
from tests.processes import Session
from tests.run.tiny import assert_same_run, words, write_corpus

# Long enough for an honest step on a machine that does much else.
WATCHED = ["watchdog.seconds=4", "trainer.eval_every=0", "checkpoint.every=0"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("shared") / "corpus")


def at_phase(doing: str, action: Callable[[], None]) -> None:
    """Does something where the loop says for the first time that it comes to `doing`."""
    from lsp.parallel.watchdog import Watchdog

    original, done = Watchdog.phase, []

    def phase(self: Watchdog, what: str, samples: range | None = None) -> None:
        original(self, what, samples)
        if what == doing and not done:
            done.append(what)
            action()

    pytest.MonkeyPatch().setattr(Watchdog, "phase", phase)


def asleep() -> None:
    time.sleep(60)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def bug() -> None:
    raise KeyError("of ours")


def mistake() -> None:
    raise UserError("of the user's")


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def skip_sums() -> None:
    """Leaves out the collective that the others are about to wait in."""
    from lsp.training import trainer

    pytest.MonkeyPatch().setattr(trainer, "sum_over_ranks", lambda values, device: values)


def less_grace() -> None:
    pytest.MonkeyPatch().setattr("lsp.parallel.watchdog.GRACE", 1.0)


def launch(
    folder: Path,
    corpus: Path,
    before: Callable[[], None] | None,
    *overrides: str,
    first: Callable[[], None] | None = None,
) -> list[Session]:
    """Two processes, of which the second has something done to it."""
    port = free_port()
    typed = ["train", *words(folder, corpus, "parallelism=ddp", *WATCHED, *overrides)]
    return [
        Session(typed, folder / "0.log", first, environment(0, 2, port)),
        Session(typed, folder / "1.log", before, environment(1, 2, port)),
    ]


def test_a_rank_asleep(tmp_path, corpus):
    doing = "step 3: fetching the rows"
    sessions = launch(tmp_path, corpus, partial(at_phase, doing, asleep))
    assert [session.wait() for session in sessions] == [STALLED, STALLED]
    first, second = (session.output for session in sessions)
    assert "phase            step 3: counting the tokens, for 4 s" in first
    assert "gloo:all_reduce of group 0, waiting in it" in first
    assert "in sum_over_ranks" in first
    assert "phase            step 3: fetching the rows, for 4 s" in second
    assert "in asleep" in second
    assert "  rank 1 has not entered collective #" in first
    assert "(gloo:all_reduce) of group 0 that rank 0 waits in" in first
    assert [text.count("lsp: the run hangs:") for text in (first, second)] == [1, 0]
    assert "Traceback" not in first + second
    # The same command goes on, and nothing of the reports is taken for one of its own.
    again = launch(tmp_path, corpus, None, "trainer.max_steps=3")
    assert [session.wait() for session in again] == [DONE, DONE], again[0].output
    assert not (tmp_path / "run" / ".watchdog").exists()


def test_samples_are_named(tmp_path, corpus):
    doing = "step 3: forward and backward of micro-batch 2 of 2"
    sessions = launch(tmp_path, corpus, partial(at_phase, doing, asleep), "trainer.micro_batch=1")
    assert [session.wait() for session in sessions] == [STALLED, STALLED]
    # Steps of four rows: the third begins at sample 8, its second half is of rank 1.
    assert "samples          11..11" in sessions[1].output


def test_a_rank_that_skips_a_collective(tmp_path, corpus):
    doing = "step 12: adding up the loss"
    sessions = launch(tmp_path, corpus, partial(at_phase, doing, skip_sums))
    assert [session.wait() for session in sessions] == [STALLED, STALLED]
    first, second = (session.output for session in sessions)
    assert "phase            step 12: adding up the loss" in first
    assert "phase            after step 12: saving" in second
    assert "  rank 0 has not entered collective #" in first
    assert "(gloo:broadcast) of group 1 that rank 1 waits in" in first
    assert "  rank 0: step 12: adding up the loss\n  rank 1: after step 12: saving" in first


def test_a_rank_that_dies(tmp_path, corpus):
    doing = "step 3: updating the weights"
    sessions = launch(tmp_path, corpus, partial(at_phase, doing, die))
    assert [session.wait() for session in sessions] == [STALLED, -signal.SIGKILL]
    told = [line for line in sessions[0].output.splitlines() if "lost contact" in line]
    assert len(told) == 1
    assert told[0].startswith(
        "lsp: rank 0 lost contact with another process while it was at: step 4: counting"
    )
    assert "Traceback" not in sessions[0].output


def test_a_rank_that_is_frozen(tmp_path, corpus):
    doing = "step 3: updating the weights"
    sessions = launch(tmp_path, corpus, partial(at_phase, doing, freeze), first=less_grace)
    try:
        assert sessions[0].wait() == STALLED
    finally:
        sessions[1].process.kill()
    assert "  rank 1 has left no report: frozen, unreachable or gone" in sessions[0].output


def test_patience_with_a_collective_ends_too(tmp_path, corpus):
    doing = "step 3: fetching the rows"
    given = ["watchdog.seconds=0", "parallelism.timeout_seconds=1"]
    sessions = launch(tmp_path, corpus, partial(at_phase, doing, partial(time.sleep, 2.5)), *given)
    assert [session.wait() for session in sessions] == [STALLED, STALLED]
    assert "rank 0 lost contact with another process while it was at: step 3: counting" in (
        sessions[0].output
    )
    assert "Traceback" not in sessions[0].output + sessions[1].output


@pytest.mark.parametrize(
    ("action", "code", "told"),
    [
        (bug, BUG, "KeyError: 'of ours'"),
        (mistake, USER_ERROR, "lsp (rank 1): of the user's"),
        (no_memory, USER_ERROR, "lsp (rank 1): out of memory on rank 1 (cpu), step 3: fetching"),
    ],
    ids=["bug", "mistake", "memory"],
)
def test_who_waits_for_one_that_told_why_it_left_leaves_quietly(
    tmp_path, corpus, action, code, told
):
    sessions = launch(tmp_path, corpus, partial(at_phase, "step 3: fetching the rows", action))
    assert [session.wait() for session in sessions] == [code, code]
    assert told in sessions[1].output
    assert "lost contact" not in sessions[0].output
    assert "Traceback" not in sessions[0].output


def test_what_befalls_all_at_once_is_told_by_one(tmp_path, corpus):
    at = partial(at_phase, "dry run before the first step", no_memory)
    sessions = launch(tmp_path, corpus, at, first=at)
    assert [session.wait() for session in sessions] == [USER_ERROR, USER_ERROR]
    assert sum(session.output.count("most effective first") for session in sessions) == 1
    assert all("Traceback" not in session.output for session in sessions)


def test_one_process_alone(tmp_path, corpus):
    typed = ["train", *words(tmp_path, corpus, *WATCHED)]
    doing = "step 3: fetching the rows"
    session = Session(typed, tmp_path / "log", partial(at_phase, doing, asleep))
    assert session.wait() == STALLED
    assert "lsp: rank 0 on " in session.output
    assert "in asleep" in session.output


@pytest.mark.slow
def test_torchrun_starts_again_and_the_run_finishes(tmp_path, corpus):
    """Under a real launcher: told, ended, restarted, resumed, and the curve is the whole one."""
    typed = [*WATCHED, "checkpoint.every=5", "parallelism=zero2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "--master-port", str(free_port()), "-m"]
    command += ["tests.distributed.hangs_once", "train", *words(tmp_path, corpus, *typed)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "rank 1 has not entered collective #" in done.stderr
    assert f"resuming {tmp_path / 'run'} at step 5" in done.stderr
    for session in launch(tmp_path, corpus, None, *typed, "run_name=whole"):
        assert session.wait() == DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")

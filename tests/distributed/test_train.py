"""`lsp train` on two processes: the same run, the same mistakes, told once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lsp.checkpointing.store import CheckpointStore
from lsp.core.exit_codes import DONE, INTERRUPTED, USER_ERROR
from lsp.run.build import run_training
from lsp.run.compose import load_train_config
from lsp.tracking.tracker import read_rows
from tests.distributed.spawn import environment, free_port
from tests.processes import Session
from tests.run.test_full_disk import limit_files
from tests.run.tiny import assert_same_run, curve, tensors, words, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("shared") / "corpus")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run of 20 steps on one process."""
    root = tmp_path_factory.mktemp("alone")
    assert run_training(load_train_config(words(root, corpus, *STEPS))) == DONE
    return root / "run"


STEPS = ["trainer.max_steps=20", "trainer.eval_every=10", "checkpoint.every=5"]
SHARDED = "parallelism.param_persistence_threshold=0"


def launch(
    folder: Path,
    typed: list[str],
    before: Callable[[], None] | None = None,
    processes: int = 2,
) -> list[Session]:
    """Processes with the variables that torchrun sets."""
    port, number = free_port(), len(list(folder.glob("*.log")))
    return [
        Session(
            ["train", *typed],
            folder / f"{number}-{rank}.log",
            before,
            environment(rank, processes, port),
        )
        for rank in range(processes)
    ]


def assert_close_run(found: Path, expected: Path) -> None:
    """Losses within 1e-4 (they are much closer), and everything that is counted equal."""
    ours, theirs = curve(found), curve(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() == other.keys()
        for key, value in other.items():
            if key == "reversible_drift":  # rounding itself, of the rows of one process
                continue
            rel = 1e-3 if key == "gradient_norm" else 1e-4
            assert row[key] == (None if value is None else pytest.approx(value, rel=rel)), key
    saved = tensors(expected)
    for name, value in tensors(found).items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_curve_of_one_process(tmp_path, corpus, alone, strategy):
    typed = words(tmp_path, corpus, *STEPS, f"parallelism={strategy}", SHARDED)
    sessions = launch(tmp_path, typed)
    assert [session.wait(120) for session in sessions] == [DONE, DONE], sessions[0].output
    assert_close_run(tmp_path / "run", alone)
    assert "2 process(es) x 1 x 2 rows" in sessions[0].output
    assert "step 20" not in sessions[1].output


@pytest.mark.slow
def test_interrupted_on_two_goes_on_alone_and_on_two(tmp_path, corpus, alone):
    """A signal to one process stops both; what is saved goes on at any number."""
    run = tmp_path / "run"
    on_two = words(tmp_path, corpus, *STEPS, "parallelism=zero3", SHARDED)

    sessions = launch(tmp_path, on_two)
    sessions[0].until(lambda: any(row["step"] >= 6 for row in read_rows(run / "metrics.jsonl")))
    sessions[1].signal(signal.SIGTERM)
    assert [session.wait() for session in sessions] == [INTERRUPTED, INTERRUPTED]
    at = CheckpointStore(run).steps()[-1]
    assert 6 <= at < 20

    single = words(tmp_path, corpus, *STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsp.training.trainer.Trainer.model_seed", _stop_after(at + 3))
        assert run_training(load_train_config(single)) == INTERRUPTED

    sessions = launch(tmp_path, on_two)
    assert [session.wait() for session in sessions] == [DONE, DONE]
    assert f"resuming {run} at step {at + 3}" in sessions[0].output
    assert_close_run(run, alone)


@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 2), ("zero3", 4)])
def test_curve_with_shared_rows(tmp_path, corpus, alone, strategy, processes):
    """Two processes to a row; with four, two such groups, each with rows of its own."""
    typed = [*STEPS, f"parallelism={strategy}", SHARDED, "parallelism.sequence=2"]
    sessions = launch(tmp_path, words(tmp_path, corpus, *typed), processes=processes)
    codes = [session.wait() for session in sessions]
    assert codes == [DONE] * processes, sessions[0].output
    assert_close_run(tmp_path / "run", alone)


def _stop_after(step: int) -> Any:
    from lsp.training.trainer import Trainer

    original = Trainer.model_seed

    def model_seed(self: Trainer) -> int:
        if self.state.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    return model_seed


def test_resume_on_two_is_exact(tmp_path, corpus):
    typed = ["trainer.max_steps=15", "trainer.log_every=3", "trainer.micro_batch=1"]
    typed.append("parallelism=zero2")
    for session in launch(tmp_path, words(tmp_path, corpus, *typed, name="whole")):
        assert session.wait() == DONE
    sessions = launch(tmp_path, words(tmp_path, corpus, *typed))
    rows = tmp_path / "run" / "metrics.jsonl"
    sessions[0].until(lambda: any(row["step"] >= 6 for row in read_rows(rows)))
    for session in sessions:
        session.signal(signal.SIGKILL)
        assert session.wait() == -signal.SIGKILL
    for session in launch(tmp_path, words(tmp_path, corpus, *typed)):
        assert session.wait() == DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["checkpoint.resume=never"], "checkpoint.resume=never but"),
        (["seed=5"], "seed was 0, now 5"),
        (["architecture.num_hashes=3"], "architecture.num_hashes was 1, now 3"),
        (["tokens_per_step=384"], "tokens_per_step=384 is not a multiple of 256"),
        (["parallelism=single"], "parallelism=single is for one process, and 2 were started"),
        (["parallelism=zero2", "optimizer=muon"], "optimizer=muon needs whole weight matrices"),
        (["data.paths=[nowhere/*.txt]", "run_name=new"], "nowhere/*.txt"),
        (["trainer.max_steps=-1"], "trainer.max_steps=-1"),
        (["parallelism.sequence=3"], "parallelism.sequence=3 does not divide the number of"),
        (
            ["parallelism.sequence=2", "architecture.num_attention_heads=1", "run_name=new"],
            "num_attention_heads=1, which lsh attention deals out, is not a multiple of it",
        ),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_a_mistake_is_told_once_and_ends_both(tmp_path, corpus, alone, overrides, told):
    typed = words(alone.parent, corpus, *STEPS, "parallelism=ddp", *overrides)
    sessions = launch(tmp_path, typed)
    assert [session.wait() for session in sessions] == [USER_ERROR, USER_ERROR]
    told_by = [session.output.count(told) for session in sessions]
    assert told_by == [1, 0], sessions[1].output
    assert all("Traceback" not in session.output for session in sessions)


def test_full_disk_ends_both(tmp_path, corpus):
    typed = words(tmp_path, corpus, "parallelism=ddp")
    sessions = launch(tmp_path, typed, partial(limit_files, 100_000))
    assert [session.wait() for session in sessions] == [USER_ERROR, USER_ERROR]
    told = [session.output.count("the checkpoint could not be written") for session in sessions]
    assert told == [1, 0]
    assert all("Traceback" not in session.output for session in sessions)
    assert not list((tmp_path / "run").glob(".step*"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_torchrun(tmp_path, corpus, alone, strategy):
    """The launcher itself, in fresh interpreters."""
    typed = words(tmp_path, corpus, *STEPS, f"parallelism={strategy}", SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "-m", "lsp", "train", *typed]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_close_run(tmp_path / "run", alone)

"""A request to stop does not wait for a long step or evaluation: both are left in the middle."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from lsp.checkpointing.store import CheckpointStore
from lsp.core.exit_codes import DONE, INTERRUPTED
from lsp.data.batches import EvaluationBatches
from lsp.models.reformer import Reformer
from lsp.run.build import run_training
from lsp.run.compose import load_train_config
from lsp.tracking.tracker import read_rows
from tests.distributed.spawn import environment, free_port
from tests.processes import Session
from tests.run.tiny import assert_same_run, words

DROPOUT = [
    "architecture.hidden_dropout_prob=0.1",
    "architecture.lsh_attention_probs_dropout_prob=0.1",
]
ACCUMULATE = ["trainer.micro_batch=1", "trainer.log_every=3", "trainer.eval_every=0"]


class StopAt:
    """Sends this process a signal when it begins a micro-batch, counted from 0, of some step."""

    def __init__(self, step: int, micro_batch: int, accumulation: int) -> None:
        self.countdown = step * accumulation + micro_batch
        self.original = Reformer.begin_micro_batch

    def __call__(self, model: Reformer, seed: int, *row: int) -> None:
        if self.countdown == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        self.countdown -= bool(row)  # the dry run before the first step names none
        self.original(model, seed, *row)


def stop_at(step: int, micro_batch: int, accumulation: int) -> None:
    stop = StopAt(step, micro_batch, accumulation)
    Reformer.begin_micro_batch = lambda *words: stop(*words)  # type: ignore[method-assign]


def test_alone(tmp_path, corpus, monkeypatch):
    overrides = [*ACCUMULATE, *DROPOUT, "checkpoint.every=0"]
    assert run_training(load_train_config(words(tmp_path, corpus, *overrides, name="whole"))) == 0

    typed = words(tmp_path, corpus, *overrides)
    store = CheckpointStore(tmp_path / "run")
    # (steps of the session, micro-batch of the next, step of the checkpoint): the last of the
    # four micro-batches is no reason to abandon anything.
    for steps, micro_batch, saved in ((0, 1, None), (3, 0, 3), (2, 2, 5), (1, 3, 7)):
        with monkeypatch.context() as patch:
            patch.setattr(Reformer, "begin_micro_batch", Reformer.begin_micro_batch)
            stop_at(steps, micro_batch, accumulation=4)
            assert run_training(load_train_config(typed)) == INTERRUPTED
        assert store.steps()[-1:] == ([] if saved is None else [saved])
    assert run_training(load_train_config(typed)) == DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_during_an_evaluation(tmp_path, corpus, monkeypatch):
    """The next session evaluates, and logs the row; also that of the last step."""
    overrides = ["trainer.micro_batch=1", "trainer.log_every=4", "trainer.eval_every=6", *DROPOUT]
    assert run_training(load_train_config(words(tmp_path, corpus, *overrides, name="whole"))) == 0

    typed = words(tmp_path, corpus, *overrides)
    original = EvaluationBatches.__getitem__
    for count, saved in ((2, 6), (1, 6), (2 + 4, 12)):  # evaluations have four rows each
        with monkeypatch.context() as patch:
            fetched = iter(range(1, 100))

            def fetch(batches, index, count=count, fetched=fetched):
                if next(fetched) == count:
                    os.kill(os.getpid(), signal.SIGTERM)
                return original(batches, index)

            patch.setattr(EvaluationBatches, "__getitem__", fetch)
            assert run_training(load_train_config(typed)) == INTERRUPTED
        assert CheckpointStore(tmp_path / "run").steps()[-1] == saved
        rows = [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
        assert rows == ([4] if saved == 6 else [4, 6, 8])
    assert run_training(load_train_config(typed)) == DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("zero2", marks=pytest.mark.slow),
        "zero3",
    ],
)
def test_all_abandon_what_one_was_told_to(tmp_path, corpus, strategy):
    overrides = [*ACCUMULATE, *DROPOUT, f"parallelism={strategy}", "checkpoint.every=0"]
    overrides.append("parallelism.param_persistence_threshold=0")

    def run(name: str, told: int | None = None) -> list[int]:
        typed, port = ["train", *words(tmp_path, corpus, *overrides, name=name)], free_port()
        sessions = []
        for rank in range(2):
            before = partial(stop_at, 4, 1, 2) if rank == told else None
            log = tmp_path / f"{name}-{told}-{rank}.log"
            sessions.append(Session(typed, log, before, environment(rank, 2, port)))
        return [session.wait() for session in sessions]

    assert run("whole") == [DONE, DONE]
    assert run("run", told=1) == [INTERRUPTED, INTERRUPTED]
    assert CheckpointStore(tmp_path / "run").steps() == [5]  # too late: it was the last of two
    assert run("run", told=0) == [INTERRUPTED, INTERRUPTED]
    assert run("run") == [DONE, DONE]
    assert_same_run(tmp_path / "run", tmp_path / "whole")
